"""One's own: `path/to/file.py:factory`, `package.module:factory`, and programs (`FILE.pt2`).

A checkpoint is untrusted input, so nothing in it may decide which code runs. Whoever names a
factory on the command line or in Python trusts it: it is remembered on this machine, by the sha256
of its source file, and a checkpoint that carries the same digest finds it again. On another
machine, or after the file has changed, the factory must be named once more (`--model`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from rlskit.errors import RequestError, RlskitError, RunError
from rlskit.models.hub_folder import PREFIX, config_file
from rlskit.models.programs import is_program
from rlskit.storage.files import parse_json, write_text
from rlskit.torchvision_ops import declare_missing_operators

_introduced: dict[str, str] = {}  # "digest:factory" -> the spec to load, of this process


def introduce(spec: str) -> tuple[str, str]:
    """Trust the factory that the user named; return its display name and its source's digest.

    Raises:
        RequestError: There is no such file, module or factory.
    """
    if _is_file(spec):
        return _introduce_file(spec)
    place, _, factory_name = spec.rpartition(":")
    file = _source_file(place)
    digest = _sha256(file)
    load_as = f"{file.resolve() if place.endswith('.py') else place}:{factory_name}"
    _load(load_as)
    _trust(f"{digest}:{factory_name}", load_as)
    shown = file.name if place.endswith(".py") else place
    return f"{shown}:{factory_name}", digest


def factory(name: str, digest: str) -> Callable[..., nn.Module]:
    """Return the factory that was introduced under this digest.

    Args:
        name: Its display name; only the part after the colon is used, as part of the key.
        digest: The sha256 of its source file when it was introduced.

    Raises:
        RequestError: It was never introduced on this machine, or its source has changed since.
    """
    return _load(_introduced_spec(name, digest))


def place_of(name: str, digest: str) -> str:
    """Return where the program, or the folder of `hf:`, that was introduced so lies.

    Raises:
        RequestError: As `factory`.
    """
    return _introduced_spec(name, digest).removeprefix(PREFIX)


def _introduced_spec(name: str, digest: str) -> str:
    key = f"{digest}:{name.rpartition(':')[2]}"
    spec = _introduced.get(key) or _remembered().get(key)
    hint = f"name it with `architecture`, as in `architecture={name!r}`"
    if spec is None:
        raise RequestError(
            f"the model is built by {name}, code of its author's unknown on this machine; {hint}"
        )
    source = _source_file(spec if _is_file(spec) else spec.rpartition(":")[0])
    if _sha256(source) != digest:
        raise RequestError(f"{source} has changed since the model was converted; {hint}")
    return spec


def takes(name: str, digest: str, argument: str) -> bool:
    """Whether the factory has a parameter called `argument`."""
    if _is_file(name):
        return False
    parameters = inspect.signature(factory(name, digest)).parameters
    return argument in parameters


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Let what one's own code prints go to stderr: stdout is for results.

    Raises:
        RunError: It calls `sys.exit`, which must not end the process as if all were well.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise RunError(f"the model's own code ends the process (SystemExit: {error})") from error


def _is_file(spec: str) -> bool:
    """Whether it is a program, or a folder of `hf:`, and not a factory."""
    return is_program(spec) or spec.startswith(PREFIX)


def _introduce_file(spec: str) -> tuple[str, str]:
    file = _source_file(spec)
    digest = _sha256(file)
    prefix = PREFIX if spec.startswith(PREFIX) else ""
    place = file.resolve().parent if prefix else file.resolve()
    _trust(f"{digest}:{place.name}", f"{prefix}{place}")
    return f"{prefix}{place.name}", digest


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _trust(key: str, load_as: str) -> None:
    _introduced[key] = load_as
    _remember(key, load_as)


def _load(spec: str) -> Callable[..., nn.Module]:
    place, _, factory_name = spec.rpartition(":")
    declare_missing_operators()  # it may import torchvision
    try:
        with heard():
            is_file = place.endswith(".py")
            module = _file_module(Path(place)) if is_file else importlib.import_module(place)
    except RlskitError:
        raise
    except Exception as error:
        raise RequestError(
            f"{place} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    found: Any = getattr(module, factory_name, None)
    if not callable(found):
        raise RequestError(f"{place} has no factory called {factory_name!r}")
    if isinstance(found, nn.Module):
        raise RequestError(
            f"{spec} is one network, and each bank is built by itself: name a class or a function "
            "that makes it"
        )
    return found  # type: ignore[no-any-return]


def _file_module(path: Path) -> ModuleType:
    name = f"rlskit_own_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # it may import its neighbours
    spec.loader.exec_module(module)
    return module


def _source_file(place: str) -> Path:
    if place.startswith(PREFIX):
        return config_file(place)
    if place.endswith(".py") or is_program(place):
        file = Path(place)
        if not file.is_file():
            raise RequestError(f"there is no file {place}")
        return file
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        spec = importlib.util.find_spec(place)
    except Exception:  # the packages around it are imported, and may fail in any way
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RequestError(
            f"there is no Python module {place!r}; a model of one's own is FILE.py:factory "
            "or package.module:factory"
        )
    return Path(spec.origin)


def _memory_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "rlskit" / "own-models.json"


def _remembered() -> dict[str, str]:
    try:
        memory = parse_json(_memory_file().read_text())
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _remember(key: str, spec: str) -> None:
    memory = _remembered()
    if memory.get(key) == spec:
        return
    try:
        _memory_file().parent.mkdir(parents=True, exist_ok=True)
        write_text(_memory_file(), json.dumps({**memory, key: spec}, indent=1), force=True)
    except OSError:
        pass  # without a writable home the factory has to be named each time
