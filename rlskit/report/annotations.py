"""Verdicts as GitHub's annotations: workflow commands that a job prints."""

from __future__ import annotations

from collections.abc import Sequence

from rlskit.results.verdict import PASS, Verdict
from rlskit.text import printable


def github_annotations(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a line for each verdict: a notice where it is `pass`, else an error.

    Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions.
    """
    found = []
    for one in verdicts:
        kind = "notice" if one.verdict == PASS else "error"
        title = (
            _escaped(f"rlskit: {one.verdict}: {one.name}").replace(":", "%3A").replace(",", "%2C")
        )
        found.append(f"::{kind} title={title}::{_escaped(one.sentence)}")
    return found


def _escaped(text: str) -> str:
    """Return a text that no name in it ends or begins a command by."""
    return printable(text).replace("%", "%25")
