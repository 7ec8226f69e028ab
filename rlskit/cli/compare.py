"""`rlskit compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import ForceOption, JsonOption, QuietOption
from rlskit.cli.show import note, print_table, say, stdout
from rlskit.text import printable


def compare(
    a: Annotated[Path, typer.Argument(help="Run folder of attack or eval, or its results.json.")],
    b: Annotated[Path, typer.Argument(help="The other one, measured on the same images.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Exit 1 unless B surely lost no more: 0.02 is 2 points."),
    ] = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
    quiet: QuietOption = False,
) -> int:
    """Compare two runs image by image: B - A with its interval, and an exact paired test."""
    import rlskit
    from rlskit.report import fallen_lines, paired_table
    from rlskit.results.verdict import PASS, drops
    from rlskit.storage.files import write_text

    found = rlskit.compare(a, b, seed=seed)
    text = json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"
    for warning in found.warnings:
        note(warning, loud=True)
    for reason in found.left_out:
        note(f"left out: {reason}", quiet=quiet)
    if json_to == "-":
        print(text, end="", file=stdout())
    else:
        if json_to is not None:
            write_text(Path(json_to), text, force=force)
        print_table(paired_table(found))
        for pair in found.pairs:
            if pair.hidden:
                say(pair.hidden)
        for line in fallen_lines(found):
            say(printable(line))
    verdicts = () if max_drop is None else drops(found, max_drop)
    for verdict in verdicts:
        note(verdict.sentence, loud=True)
    return int(any(verdict.verdict != PASS for verdict in verdicts))
