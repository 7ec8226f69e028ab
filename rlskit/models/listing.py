"""The names of the classification models that timm and torchvision list."""

from __future__ import annotations

from difflib import get_close_matches
from fnmatch import fnmatchcase

from rlskit.errors import RequestError
from rlskit.torchvision_ops import declare_missing_operators

LIBRARIES = ("timm", "torchvision")
"""Where a bare name is looked up, in this order."""


def list_models(pattern: str = "*") -> list[str]:
    """Return all names that `rlskit.models.resolve` knows and that match, timm's first.

    A torchvision name that timm has too is listed with its prefix.

    Args:
        pattern: A glob, or part of a name.
    """
    timm_names = library_names("timm")
    taken = set(timm_names)
    names = timm_names + [
        f"torchvision:{name}" if name in taken else name for name in library_names("torchvision")
    ]
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in names if fnmatchcase(name, wanted)]


def library_names(library: str) -> list[str]:
    """Return the names that one of `LIBRARIES` lists."""
    declare_missing_operators()
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(torchvision.models))


def lists(library: str, name: str) -> bool:
    """Whether a library lists a name; timm's may carry the tag of its weights: resnet50.a1_in1k."""
    return name in library_names(library) or (library == "timm" and name in _tagged(name))


def unknown_model(name: str, library: str | None = None) -> RequestError:
    """Return the error for a name that no library lists, or not this one; it names the nearest."""
    if library is None:
        known = [known for source in LIBRARIES for known in library_names(source)]
    else:
        known = library_names(library)
    if library != "torchvision":
        known = _tagged(name) or known
    near = get_close_matches(name.lower(), dict.fromkeys(known), n=4, cutoff=0.5)
    names = ", ".join(f"{library}:{name}" if library else name for name in near)
    hint = f"did you mean {names}?" if near else "`rlskit.list_models()` lists them"
    return RequestError(f"no model is called {name!r}; {hint}")


def _tagged(name: str) -> list[str]:
    """Return the names with a tag of weights that share this name's bare one, if it has a tag."""
    bare, dot, _ = name.partition(".")
    if not dot or bare not in library_names("timm"):
        return []
    import timm

    return list(timm.list_pretrained(bare))
