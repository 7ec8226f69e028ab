"""Words made fit to be shown: a terminal obeys control characters; and what was meant by one."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def printable(text: str) -> str:
    r"""Return the text with what is no visible character escaped, as `\x1b`, line ends included.

    Those are control characters, unpaired surrogates, line and paragraph separators, and the
    invisible characters that turn the direction of writing.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if _hidden(one) else one for one in text)


def lines(text: str) -> str:
    """Return the text, which may have several lines, with each of them `printable`."""
    return "\n".join(map(printable, text.split("\n")))


_LISTED = 40
"""Names that an error lists."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at what was probably meant: what is nearest, or what there is, if not much."""
    names = list(known)
    near = {one: difflib.SequenceMatcher(None, one, name).ratio() for one in names}
    best = max(near.values(), default=0.0)
    if best < 0.6:
        more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return f"it is one of {', '.join(names[:_LISTED])}{more}"
    return f"did you mean {' or '.join(one for one in near if near[one] == best)}?"


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
