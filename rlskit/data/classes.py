"""Names of classes: read from a file, and matched between data and a network's head."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlskit.errors import RequestError

MOST_CLASSES = 1_000_000
"""More classes than this are a mistake in a label, or an attack on memory."""

IMAGENET = "imagenet"
"""In the place of a file of names: ImageNet's 1000 classes, by their WordNet names, in order."""

ClassNames = str | Path | Sequence[str] | Mapping[str, str]
"""Names in order, names by other names, or a file of either."""

_LARGEST_FILE = 2**26  # bytes
_SHOWN = 5
_SYNSET = re.compile(r"n\d{8}")


def read_classes(names: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of classes in the order of the logits.

    Args:
        names: The names, a text file with one a line, or `IMAGENET`; None for none.

    Raises:
        RequestError: The file is missing or no text, or a name is empty or comes twice.
    """
    if names is None:
        return ()
    where = "the classes"
    if isinstance(names, str | Path):
        where, names = str(names), _lines(Path(names))
    stripped = tuple(str(name).strip() for name in names)
    if not stripped or not all(stripped):
        raise RequestError(f"{where}: a class has no name; one stands on each line")
    twice = [name for name, count in Counter(stripped).items() if count > 1]
    if twice:
        raise RequestError(f"{where}: the name {twice[0]!r} comes twice")
    return stripped


def read_names(names: ClassNames) -> tuple[str, ...] | dict[str, str]:
    """Return what a model calls the classes of some data: by their names, or in their order.

    Args:
        names: As of `read_classes`, for data whose classes are numbers; or the model's name of a
            class by the data's, also as a text file with a line `OWN = NAME` each.

    Raises:
        RequestError: The file is missing or no text, a name is empty, or an own one comes twice.
    """
    if isinstance(names, Mapping):
        pairs = [(str(own), str(name)) for own, name in names.items()]
    else:
        given = _lines(Path(names)) if isinstance(names, str | Path) else list(names)
        if not any("=" in line for line in given):
            return read_classes(given)
        split = [line.partition("=") for line in given if line.strip()]
        pairs = [(own.strip(), name.strip()) for own, _, name in split]
    found = dict(pairs)
    if len(found) < len(pairs) or not all(own and name for own, name in pairs):
        raise RequestError("`classes` needs one line OWN = NAME for each class of the data")
    return found


def _lines(path: Path) -> list[str]:
    if str(path) == IMAGENET and not path.exists():
        return list(_descriptions())
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        raise RequestError(f"`classes` {path} is no file with a name a line, nor {IMAGENET!r}")
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"`classes` {path} cannot be read as UTF-8 text") from error


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the names say no more than the classes' numbers."""
    return all(name == str(number) for number, name in enumerate(names))


def placed(own: Sequence[str], head: Sequence[str], where: str) -> list[int] | None:
    """Return the number in `head` of each class of some data, by its name.

    Case and punctuation do not matter; a WordNet name (n01440764) is also known by what it stands
    for in ImageNet.

    Args:
        own: The data's names; all of them, some or none may be in `head`.
        head: The names of a network's classes; empty where they are not known.
        where: The data's name, for the error.

    Returns:
        None where the names say nothing: one side has only numbers, or nothing in common.

    Raises:
        RequestError: Some of the data's classes are among the network's and others are not.
    """
    if not head or are_numbers(own):
        return None
    places: dict[str, int] = {}
    unclear: set[str] = set()
    for number, name in enumerate(head):
        for form in set(_forms(name)):
            if places.setdefault(form, number) != number:
                unclear.add(form)
    found = [
        next((places[f] for f in _forms(name) if f in places and f not in unclear), None)
        for name in own
    ]
    known = [number for number in found if number is not None]
    if not known:
        return None
    if len(known) == len(own) == len(set(known)):
        return known
    odd = [name for name, number in zip(own, found, strict=True) if number is None] or list(own)
    more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
    raise RequestError(
        f"{where} has other classes than the model: {', '.join(map(repr, odd[:_SHOWN]))}{more} "
        f"{'is' if len(odd) == 1 else 'are'} none of its {len(head)} ({', '.join(head[:_SHOWN])}"
        f"{', ...' if len(head) > _SHOWN else ''}); use data of its classes, or say with `classes` "
        "what it calls them"
    )


def _forms(name: str) -> Iterator[str]:
    """Yield what a class may be called, the most exact first."""
    yield _bare(name)
    if _SYNSET.fullmatch(name):
        description = _descriptions().get(name, "")
        yield from (_bare(part) for part in (description, *description.split(",")) if part)


def _bare(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " "))) or name


@functools.cache
def _descriptions() -> dict[str, str]:
    """Return WordNet name -> what it stands for, of ImageNet's 1000 classes."""
    from rlskit.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return dict(zip(info.label_names(), info.label_descriptions(), strict=True))
