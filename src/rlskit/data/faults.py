"""What can be wrong with data, said in one sentence."""

from __future__ import annotations

from rlskit.errors import RequestError


class MissingSplitError(RequestError):
    """The data are there, but without the split that was asked for."""


def reason(error: Exception) -> str:
    """Return the first sentence of another library's error, to stand in brackets in ours."""
    sentence = str(error).partition("\n")[0].partition(". ")[0]
    return sentence.rstrip(".:") or type(error).__name__
