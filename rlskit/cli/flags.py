"""Options that several subcommands share, each defined once, and the headings of the help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlskit.attacks.options import OPTIONS
from rlskit.cli import complete
from rlskit.errors import RequestError

WHAT = "What to run"
TRANSFER = "With --transfer"
ABSTAIN = "With --abstain"
VIEW = "The attacker's view"
SCORING = "Scoring"
DATA = "Data"
MACHINE = "How it runs"
OUTPUT = "Output"

HEADINGS = (
    WHAT,
    TRANSFER,
    ABSTAIN,
    *dict.fromkeys(row.group for row in OPTIONS.values()),
    VIEW,
    SCORING,
    DATA,
    MACHINE,
    OUTPUT,
)
"""The headings of a command's help, in order; what stands under none comes before them."""


def flag(option: str) -> str:
    """Return the command line's name of an option: `step_size` -> `--step-size`."""
    return "--" + option.replace("_", "-")


def under(heading: str, help: str, *spelled: str, **more: Any) -> Any:  # noqa: A002
    """Return Typer's description of an option that stands under a heading."""
    return typer.Option(*spelled, help=help, rich_help_panel=heading, **more)


def one_of(option: str, names: Sequence[str]) -> Callable[[str | None], str | None]:
    """Return what has Typer refuse all but some values of an option."""

    def checked(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise RequestError(f"{option} is {', '.join(names[:-1])} or {names[-1]}, not {value!r}")
        return value

    return checked


CheckpointArgument = Annotated[
    Path, typer.Argument(envvar="RLSKIT_CHECKPOINT", help="The model.", metavar="CHECKPOINT")
]
DEFAULT_CHECKPOINT = Path("rls.safetensors")

ModelOption = Annotated[
    str | None, under(WHAT, "FILE.py:factory that builds a model of one's own.", "--model")
]
DataOption = Annotated[
    str | None,
    under(
        DATA,
        "digits, mnist, fashion-mnist, cifar10, cifar100, svhn, folder:PATH, manifest:FILE "
        "(CSV or parquet: path, label) or npz:PATH; by default what the model was made for.",
        "--data",
        autocompletion=complete.data,
    ),
]
DataDirOption = Annotated[
    Path | None,
    under(DATA, "Where torchvision's data sets lie.", "--data-dir", envvar="RLSKIT_DATA_DIR"),
]
DownloadOption = Annotated[
    bool, under(DATA, "Fetch the data set when it is missing.", "--download")
]
LimitOption = Annotated[int | None, under(DATA, "Use this many images, spread evenly.", "--limit")]
SkipBadOption = Annotated[
    bool, under(DATA, "Leave out images that cannot be read, and count them.", "--skip-bad")
]
ClassesOption = Annotated[
    str | None,
    under(
        DATA,
        "Text file: what the model calls the data's classes, OWN = NAME a line; or, where they "
        "are numbers, a name a line in order, or imagenet.",
        "--classes",
    ),
]
ShuffleOption = Annotated[
    bool,
    under(
        DATA,
        "Images in a random order, by --seed: --limit takes the first, more of them keep what is "
        "done, and intervals hold however often one looks.",
        "--shuffle",
    ),
]
SplitOption = Annotated[str, under(DATA, "train or test.", "--split")]
BatchSizeOption = Annotated[int, under(MACHINE, "Images per block.", "--batch-size")]
WorkersOption = Annotated[int, under(MACHINE, "Threads that read images ahead.", "--num-workers")]
DeviceOption = Annotated[str, under(MACHINE, "auto, cpu, cuda, cuda:1, ...", "--device")]
SeedOption = Annotated[int, under(MACHINE, "All randomness derives from it.", "--seed")]
OutOption = Annotated[
    Path | None, under(OUTPUT, "Folder of the run; by default a new one in runs/.", "--out", "-o")
]
ForceOption = Annotated[bool, under(OUTPUT, "Replace an existing output.", "--force")]
JsonOption = Annotated[
    str | None, under(OUTPUT, "Also write the result as JSON to FILE, or - (stdout).", "--json")
]
PerImageOption = Annotated[
    Path | None,
    under(OUTPUT, "Also write a line for each image to FILE.csv or FILE.parquet.", "--per-image"),
]
NONE, PLAIN, BAR = "none", "plain", "bar"
PROGRESS = (NONE, PLAIN, BAR)
ProgressOption = Annotated[
    str | None,
    under(
        OUTPUT,
        "none, plain (a line every half minute) or bar; bar on a terminal, else plain.",
        "--progress",
        callback=one_of("--progress", PROGRESS),
        autocompletion=lambda incomplete: [one for one in PROGRESS if one.startswith(incomplete)],
    ),
]
QuietOption = Annotated[bool, under(OUTPUT, "No progress, no notes.", "--quiet", "-q")]
ShardOption = Annotated[
    str | None,
    under(
        MACHINE,
        "Do this part of the blocks, as 0/3, 1/3, 2/3 beside each other in one --out or several; "
        "`rlskit merge` makes the result. auto: what torchrun or a Slurm array says.",
        "--shard",
    ),
]
FailUnderOption = Annotated[
    float | None,
    under(
        SCORING,
        "Exit 1 when the lower bound of the accuracy is under this share (0.40). The bound is "
        "the one-sided 95 % Clopper-Pearson bound over images, or the t bound over repeats where "
        "that is lower.",
        "--fail-under",
    ),
]
ExpectCleanOption = Annotated[
    float | None,
    under(
        SCORING,
        "Exit 4 when the clean accuracy is below this share (0.90): wrong size, constants, "
        "classes or range.",
        "--expect-clean",
    ),
]
RepeatsOption = Annotated[
    int, under(SCORING, "R: attacker's views and defender's draws.", "--repeats")
]
PerExampleOption = Annotated[
    bool, under(SCORING, "Each image has draws of its own; far slower.", "--per-example")
]
