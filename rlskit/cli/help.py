"""What `--help` says: options under headings, and examples of every command."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from rlskit.cli.flags import HEADINGS, OUTPUT

EXAMPLES: dict[str, tuple[str, ...]] = {
    "convert": (
        "convert resnet18 --data cifar10 --banks 2 --small-images",
        "convert resnet50 --data folder:photos --weights a.pth",
        "convert net.py:make --defense dropout --settings p=0.2",
    ),
    "train": (
        "train rls.safetensors --epochs 100 --augment crop-flip",
        "train rls.safetensors --adversarial pgd --adversarial-eps 4/255",
    ),
    "attack": (
        "attack --protocol adaptive --eps 8/255",
        "attack --steps 40 --eps 8/255 --protocol eot --n-attacked 10",
        "attack --method fgsm,square --eps 2/255,4/255 --fail-under 0.4",
    ),
    "attacks": ("attacks", "attacks apgd"),
    "eval": (
        "eval rls.safetensors --n-samples 1,5,10,15",
        "eval rls.safetensors --abstain 0.05 --eps 8/255",
        "eval --adversarial run/adversarial.safetensors --json -",
    ),
    "diversity": (
        "diversity rls.safetensors --n-samples 10",
        "diversity --transfer --eps 0.03 --plot transfer.png",
    ),
    "merge": (
        "merge runs/whole",
        "merge runs/shard-0 runs/shard-1 -o runs/whole --fail-under 0.4",
    ),
    "submit": (
        "submit --shards 16 -- attack --eps 8/255 --out runs/whole",
        "submit --shards 3 --cluster local -- run small/table3 --trust",
    ),
    "compare": (
        "compare runs/before runs/after --max-drop 0.02",
        "compare a/results.json b/results.json --json -",
    ),
    "audit": (
        "audit rls.safetensors --eps 8/255 --n-samples 10",
        "audit --method apgd-dlr --protocol eot --n-attacked 10",
    ),
    "models": ("models resnet", "models 'vit_*'"),
    "inspect": ("inspect rls.safetensors", "inspect rls.safetensors --json"),
    "export": ("export rls.safetensors --bank 0", "export --plan 0,1,1,0 --out one.safetensors"),
    "doctor": ("doctor", "doctor rls.safetensors", "doctor resnet18 --weights a.pth --data mnist"),
    "init": (
        "init rls.safetensors",
        "init resnet18 --weights weights.pth --data folder:photos --github",
    ),
    "run": (
        "run small/table3 --dry-run",
        "run small/table3 --set train.epochs=1 --only 'rls/*'",
    ),
    "recipes": ("recipes", "recipes table3"),
    "report": (
        "report runs/small-table3 -o report",
        "report runs/before runs/after -o both --data folder:photos",
    ),
    "baseline": (
        "baseline runs/small-table3 -o last-release.zip",
        "baseline runs/release -o baseline.zip --force",
    ),
    "verify": (
        "verify runs/attack-001 --checkpoint rls.safetensors",
        "verify runs/photos --data folder:photos --json -",
    ),
    "card": (
        "card runs/release -o card",
        "card runs/eval-001 runs/attack-001 --checkpoint rls.safetensors",
    ),
}
"""Command -> command lines that show what it is for, without the `rlskit` before them."""


def epilog(command: str) -> str:
    """Return the examples of a command as the text that ends its help."""
    unwrapped = "\b"  # what Typer keeps the lines of a paragraph by
    return "\n".join([unwrapped, "Examples:", *(f"  rlskit {one}" for one in EXAMPLES[command])])


class GroupedCommand(TyperCommand):
    """A command whose help lists its options under the headings of `rlskit.cli.flags`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options under no heading, then each heading's."""
        found: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                found.setdefault(_heading(parameter), []).append(record)
        width = max(len(first) for rows in found.values() for first, _ in rows if len(first) <= 30)
        for heading in sorted(found, key=(ARGUMENTS, OPTIONS, *HEADINGS).index):
            with formatter.section(heading):
                rows = [(f"{first:{width}}", rest) for first, rest in found[heading]]
                formatter.write_dl(rows, col_max=width)


ARGUMENTS, OPTIONS = "Arguments", "Options"


def _heading(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    if parameter.name == "help":
        return OUTPUT
    return getattr(parameter, "rich_help_panel", None) or OPTIONS
