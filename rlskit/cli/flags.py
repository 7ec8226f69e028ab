"""Options that several subcommands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CheckpointArgument = Annotated[
    Path, typer.Argument(envvar="RLSKIT_CHECKPOINT", help="The model.", metavar="[CHECKPOINT]")
]
DEFAULT_CHECKPOINT = Path("rls.safetensors")

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="FILE.py:factory that builds a model of one's own."),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, folder:PATH or npz:PATH; "
        "by default what the model was made for.",
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="RLSKIT_DATA_DIR", help="Where torchvision's data sets lie."),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Fetch the data set when it is missing.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Use this many images, spread evenly.")
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and count them.")
]
SplitOption = Annotated[str, typer.Option("--split", help="train or test.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="Images per block.")]
WorkersOption = Annotated[
    int, typer.Option("--num-workers", help="Threads that read images ahead.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
SeedOption = Annotated[int, typer.Option("--seed", help="All randomness derives from it.")]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the run; by default a new one in runs/."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
JsonOption = Annotated[
    str | None, typer.Option("--json", help="Also write the result as JSON to FILE, or - (stdout).")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
FailUnderOption = Annotated[
    float | None,
    typer.Option(
        "--fail-under",
        help="Exit 1 when the lower bound of the accuracy is under this share (0.40). The bound is "
        "the one-sided 95 % Clopper-Pearson bound over images, or the t bound over repeats where "
        "that is lower.",
    ),
]
ExpectCleanOption = Annotated[
    float | None,
    typer.Option(
        "--expect-clean",
        help="Exit 4 when the clean accuracy is below this share (0.90): wrong size, constants, "
        "classes or range.",
    ),
]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", help="R: attacker's views and defender's draws.")
]
PerExampleOption = Annotated[
    bool, typer.Option("--per-example", help="Each image has draws of its own; far slower.")
]
