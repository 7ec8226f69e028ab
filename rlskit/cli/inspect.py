"""`rlskit inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rlskit.cli.flags import DEFAULT_CHECKPOINT
from rlskit.cli.show import print_table, say
from rlskit.cli.wording import worded
from rlskit.text import printable

_SHOWN = 5


def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(envvar="RLSKIT_CHECKPOINT", help="The model.")
    ] = DEFAULT_CHECKPOINT,
    as_json: Annotated[bool, typer.Option("--json", help="The metadata as JSON.")] = False,
) -> None:
    """Show architecture, L, M, M^L, parameters per layer and the training record."""
    from rich.table import Table

    from rlskit.models.checkpoint import inspect as read

    about = read(checkpoint)
    if as_json:
        say(json.dumps(about, indent=2))
        return
    layers, banks, pixels = about["partition"]["layers"], about["banks"], about["pixels"]
    architecture = about["architecture"]
    facts = {
        "architecture": f"{architecture['source']}:{architecture['name']} {architecture['kwargs']}",
        "defense": about["defense"]["name"],
        "layers L": f"{len(layers)} (granularity {about['partition']['granularity']})",
        "banks M": banks,
        "sampled models M^L": f"{banks**len(layers):,}" if len(layers) < 40 else
        f"{banks}^{len(layers)}",
        "parameters of one bank": f"{sum(about['parameters']):,}",
        "shared by all banks": f"{len(about['partition']['shared'])} tensors",
        "pixels": f"{pixels['channels']}x{pixels['height']}x{pixels['width']}, "
        f"mean {pixels['mean']}, std {pixels['std']}",
        "classes": f"{about['classes']}{_named(about.get('class_names', ()))}",
        "made for": about["data"] or "–",
        "weights from": about["pretrained"] or "random initialisation",
        "sha256": about["sha256"],
    }  # fmt: skip
    for name, value in facts.items():
        say(f"{name:24}{printable(str(value))}")
    for sentence in (*about.get("assumed", ()), *about.get("notes", ())):
        say(f"{'':24}{printable(worded(str(sentence)))}")
    for number, record in enumerate(about["training"], 1):
        say(f"{f'training {number}':24}{printable(_summary(record))}")
    if not about["training"]:
        say(f"{'training':24}none")
    table = Table("layer", "name", "parameters", "tensors")
    for index, (layer, size) in enumerate(zip(layers, about["parameters"], strict=True)):
        table.add_row(str(index), str(layer["name"]), f"{size:,}", str(len(layer["tensors"])))
    print_table(table)


def _named(names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f" ({', '.join(map(str, names[:_SHOWN]))}{more})" if names else ""


def _summary(record: dict[str, Any]) -> str:
    try:
        return (
            f"{record['epochs']} epochs, {record['steps']} steps on {record['data']}, "
            f"loss {record['loss']:.4f}, seed {record['options']['seed']}"
        )
    except (KeyError, TypeError, ValueError):  # a checkpoint may come from anyone
        return f"unreadable record {record}"
