"""The three reports of a run, written into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlskit.report.gallery import Origin, gallery
from rlskit.report.job_summary import job_summary
from rlskit.report.junit import junit
from rlskit.report.reported import Reported, read_reported, side_by_side
from rlskit.report.webpage import webpage
from rlskit.results import RESULTS
from rlskit.storage.files import refuse_existing, write_text
from rlskit.storage.locks import make_folder

REPORTS = ("report.html", "summary.md", "junit.xml")
"""The page for people, Markdown for a job's summary, and the test cases for a CI server."""


def report_runs(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Write the reports of finished runs, side by side where there are several; return the page.

    Args:
        runs: Folders of `rlskit run`, `attack`, `eval` or `diversity`, their `results.json`, or
            files of an audit.
        out: The folder to write to; it is made.
        data: What the attacked images were before, where they are from a path: a file of results
            names one, but it may come from anyone. It is believed where its digest is the run's.
        data_dir: Where torchvision's data sets lie.
        force: Replace reports that are there.

    Raises:
        RequestError: A run cannot be read, or a report is there and `force` is not given.
    """
    reported = read_runs(runs)
    folder = Path(out)
    make_folder(folder)
    for name in REPORTS:
        refuse_existing(folder / name, force)
    return write_reports(reported, folder, Origin(data, data_dir))


def read_runs(runs: Sequence[str | Path]) -> Reported:
    """Return finished runs, side by side where there are several.

    Raises:
        RequestError: One cannot be read.
    """
    names = _names([Path(run) for run in runs])
    return side_by_side([read_reported(run) for run in runs], names)


def write_reports(reported: Reported, folder: Path, origin: Origin) -> Path:
    """Write `REPORTS` into a folder, replacing those that are there; return the page's file."""
    page, markdown, cases = REPORTS
    write_text(folder / markdown, job_summary(reported), force=True)
    write_text(folder / cases, junit(reported), force=True)
    pictures = gallery(reported.rows, origin)
    write_text(folder / page, webpage(reported, pictures), force=True)
    return folder / page


def _names(runs: Sequence[Path]) -> list[str]:
    """Return as short a name for each run as tells them apart."""
    short = [run.parent.resolve().name if run.name == RESULTS else run.stem for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]
