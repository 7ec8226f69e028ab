"""Names that a package hands out and that take long to load: each is loaded when it is asked for.

The package's `__getattr__` is what `names_of` returns. Type checkers read its imports below
`if TYPE_CHECKING`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`.

    Args:
        package: Its name.
        homes: Name -> the module it is defined in; after a colon its name there, if that differs.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = homes[name].partition(":")
        return getattr(importlib.import_module(module), own or name)

    return load
