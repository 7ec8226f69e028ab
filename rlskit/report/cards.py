"""The files that registries of models want, written into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlskit.arguments import checked
from rlskit.errors import RequestError
from rlskit.report.attestation import test_result
from rlskit.report.carded import Card, card_of
from rlskit.report.cyclonedx import bill_of_materials
from rlskit.report.huggingface import MARK, eval_results, model_card
from rlskit.report.report_files import read_runs
from rlskit.storage.files import refuse_existing, write_text
from rlskit.storage.locks import make_folder

CARD, BILL, STATEMENT = "card.md", "model.cdx.json", "test-result.intoto.json"
EVAL_RESULTS = ".eval_results"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: The files.
        notes: What was left out, and why.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]


@checked()
def write_card(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    name: str | None = None,
    benchmark: str | None = None,
    force: bool = False,
) -> Written:
    """Write what registries want of the finished runs of one model.

    That is `card.md` (Hugging Face), `model.cdx.json` (CycloneDX 1.6), `test-result.intoto.json`
    (in-toto) where gates were set, and `.eval_results/*.yaml` (Hugging Face) where a benchmark is
    named.

    Args:
        runs: Folders of `rlskit run`, `attack` or `eval`, or their `results.json`.
        out: The folder to write to; it is made.
        checkpoint: The model's file; by default the one that the runs name.
        name: Of the model; by default its file's.
        benchmark: The data set on the Hub that the images are of, `OWNER/NAME`.
        force: Replace files that are there; those of an earlier card that are not written now go.

    Raises:
        RequestError: A run cannot be read, they are not of this model, or a file is there and
            `force` is not given.
        UntrustedError: The numbers cannot be trusted, so that none is published.
    """
    if benchmark is not None and benchmark.count("/") != 1:
        raise RequestError(f"`benchmark` is OWNER/NAME of a data set on the Hub, not {benchmark}")
    folder = Path(out)
    if force:
        _clear(folder)  # so that nothing of an earlier model stays beside this one
    given = None if checkpoint is None else Path(checkpoint)
    card = card_of(read_runs(runs), given, name)
    texts, notes = _texts(card, benchmark)
    files = tuple(folder / place for place in texts)
    for file in files:
        make_folder(file.parent)
        refuse_existing(file, force)
    for file, text in zip(files, texts.values(), strict=True):
        write_text(file, text, force=force)
    return Written(files, notes)


def _texts(card: Card, benchmark: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return place -> text, and what is left out."""
    texts = {CARD: model_card(card, benchmark), BILL: bill_of_materials(card)}
    notes = list(card.left_out)
    statement = test_result(card)
    if statement is not None:
        texts[STATEMENT] = statement
    elif card.gates:
        notes.append(f"{STATEMENT}, as a model in memory has no file that it could be about")
    else:
        notes.append(f"{STATEMENT}, as no gate was set: nothing was tested")
    if benchmark is None:
        notes.append(f"{EVAL_RESULTS}/, as no data set on the Hub was named with `benchmark`")
    else:
        found = eval_results(card, benchmark)
        texts |= {f"{EVAL_RESULTS}/{file}": text for file, text in found.items()}
    return texts, tuple(notes)


def _clear(folder: Path) -> None:
    """Remove the files of an earlier card."""
    for name in (CARD, BILL, STATEMENT):
        if (folder / name).is_file():
            (folder / name).unlink()
    for file in (folder / EVAL_RESULTS).glob("*.yaml"):
        with file.open(encoding="utf-8", errors="replace") as opened:
            ours = opened.readline().strip() == MARK
        if ours:
            file.unlink()
