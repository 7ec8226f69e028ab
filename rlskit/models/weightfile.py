"""What a weight file holds, read without running anything of it: safetensors, or a .pth.

A .pth is a pickle, and a training script puts more into it than tensors: its arguments, paths,
NumPy numbers. torch's own reader, which calls nothing but what rebuilds tensors, gets inert records
in place of the harmless names below; any other name is refused.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rlskit.errors import RequestError, reason

_LONGEST_HEADER = 2**24  # of safetensors, in bytes: some 150,000 tensors
_EXPANSION, _ALWAYS_ALLOWED = 10, 2**24  # torch.save does not compress

_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; `git lfs pull` fetches it",
    b"<!doctype": "a web page (HTML), as a failed download leaves it; fetch the file again",
    b"<html": "a web page (HTML), as a failed download leaves it; fetch the file again",
    b"<?xml": "an XML text, as a failed download leaves it; fetch the file again",
    b"{": "a JSON text, not weights; name the file that holds the tensors",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"\x89hdf": "an HDF5 file, as Keras writes them; store its tensors as safetensors",
    b"gguf": "a GGUF file; store its tensors as safetensors",
}
"""Beginning of a file, in lower case -> what it is and what to do."""


def format_of(path: Path) -> str:
    """Return `safetensors`, `zip` (PyTorch's since 1.6) or `pickle` (before), by a file's content.

    Raises:
        RequestError: It is missing, empty, or something else, which is named.
    """
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name the file of weights in it")
    if not path.is_file():
        raise RequestError(
            f"{path} is no regular file" if path.exists() else f"there is no weight file {path}"
        )
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})") from error
    if not head:
        raise RequestError(f"{path} is empty; fetch or save it again")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < 2**32:
        if length > _LONGEST_HEADER:
            raise RequestError(f"{path} has a header of {length:,} bytes, beyond reason")
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, what in _FOREIGN.items():
        if start.startswith(beginning):
            raise RequestError(f"{path} is {what}")
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and b"pytorch" in head[:64]):
        raise RequestError(f"{path} is an ONNX graph; weights are read from safetensors or .pth")
    if head[:1] in (b"\x80", b"("):
        return "pickle"
    raise RequestError(f"{path} is neither safetensors nor a PyTorch file; save it as safetensors")


def read_content(path: Path) -> Any:
    """Return what a weight file holds: dicts, lists, numbers, texts, and tensors.

    NumPy arrays of numbers become tensors; what is neither becomes an inert record.

    Raises:
        RequestError: It is missing, damaged, enormous, or holds code's objects.
    """
    kind = format_of(path)
    if kind == "safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise RequestError(f"{path} is not a readable safetensors file ({error})") from error
    if kind == "zip":
        _check_archive(path)
    return _read_torch(path)


def _check_archive(path: Path) -> None:
    """Require a zip file of torch.save's, and that its members are about as large as the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"{path} cannot be read as plain weights ({reason(error)}); fetch or save it again"
        ) from error
    names = {Path(member.filename).name for member in members}
    if "constants.pkl" in names:
        raise RequestError(
            f"{path} is a TorchScript program, which `rlskit.convert({str(path)!r})` takes whole; "
            "or save the state_dict() of its module"
        )
    if "data.pkl" not in names:
        raise RequestError(
            f"{path} is a zip archive, but not one of torch.save's; save its tensors as safetensors"
        )
    total, stored = sum(member.file_size for member in members), path.stat().st_size
    if total > _EXPANSION * stored + _ALWAYS_ALLOWED:
        raise RequestError(
            f"{path} would unpack from {stored:,} to {total:,} bytes, which no file of "
            "torch.save's does; save it again"
        )


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
            warnings.simplefilter("ignore")  # of old pickle protocols
            with path.open("rb") as file:  # of a path, torch looks at the ending
                return _plain(torch.load(file, map_location="cpu", weights_only=True))
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            why = f"it holds more than tensors: {named[1]}, whose code would have to run"
            advice = "save the network's state_dict() alone"
        else:
            damaged = "Weights only" in str(error)
            why = "it is damaged, or not of torch.save's" if damaged else reason(error)
            advice = "fetch it again, or save it as safetensors"
        raise RequestError(f"{path} cannot be read as plain weights ({why}); {advice}") from error


class _Record:
    """Stands for an object that is no tensor: it takes whatever makes it, and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> _Record:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


class _Dtype:
    """Stands for a NumPy dtype: `f8` and, from its state, the byte order."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Keep the byte order."""
        self.order = state[1]

    def numpy(self) -> np.dtype[Any] | None:
        """Return the dtype of plain numbers; None of anything else."""
        plain = isinstance(self.code, str) and re.fullmatch(r"[fiu][1248]|b1", self.code)
        return np.dtype(f"{self.order}{self.code}") if plain and self.order in "<>=|" else None


class _Array:
    """Stands for a NumPy array: its shape, dtype and bytes."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Keep shape, dtype, order and bytes."""
        self.state = state

    def tensor(self) -> Tensor | None:
        """Return the array as a tensor, where it holds plain numbers."""
        try:
            _, shape, kind, by_columns, data = self.state
            dtype = kind.numpy()
            if dtype is None or len(data) != math.prod(shape) * dtype.itemsize:
                return None
            array = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
            return torch.from_numpy(np.array(array, dtype.newbyteorder("="), order="C"))
        except (AttributeError, TypeError, ValueError):
            return None


def _new_dict(*_: object) -> dict[Any, Any]:
    return {}


def _new_list(*_: object) -> list[Any]:
    return []


def _stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    found: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for core in ("numpy.core", "numpy._core"):
        found += [(_Array, f"{core}.multiarray._reconstruct")]
        found += [(_Record, f"{core}.multiarray.scalar")]
    found += [(_Array, "numpy.ndarray"), (_Dtype, "numpy.dtype")]
    found += [(_new_dict, "collections.defaultdict"), (_new_list, "collections.deque")]
    found += [(OrderedDict, name) for name in _DICTS]
    return found + [(_Record, name) for name in _HARMLESS]


_DICTS = (
    "addict.addict.Dict", "easydict.EasyDict", "ml_collections.config_dict.config_dict.ConfigDict",
    "yacs.config.CfgNode", "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)  # fmt: skip
"""Dicts under another name: their contents are looked through."""

_HARMLESS = (
    "argparse.Namespace", "types.SimpleNamespace", "decimal.Decimal",
    *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple",
                                      "frozenset", "slice", "range", "object", "bytes")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(f"pathlib{module}.{name}" for module in ("", "._local") for name in (
        "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    *(f"numpy.{name}" for name in ("bool", "bool_", "float16", "float32", "float64", "int8",
                                   "int16", "int32", "int64", "uint8")),
    *(f"numpy.random._pickle.__{name}_ctor" for name in (
        "randomstate", "generator", "bit_generator")),
    "numpy.random._mt19937.MT19937", "numpy.random._pcg64.PCG64",
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
    "omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata",
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Integer", "Float", "String", "Boolean")),
    "typing.Any", "uuid.UUID", "copyreg._reconstructor",
    *(f"torch.optim.{module}.{name}" for module, name in (
        ("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW"), ("rmsprop", "RMSprop"))),
    *(f"torch.optim.lr_scheduler.{name}" for name in (
        "StepLR", "MultiStepLR", "CosineAnnealingLR", "OneCycleLR", "LambdaLR", "ExponentialLR",
        "ReduceLROnPlateau", "LinearLR", "SequentialLR", "ConstantLR")),
)  # fmt: skip
"""Names that training scripts leave in a checkpoint; a record stands for each."""

_STAND_INS = _stand_ins()


def _plain(content: Any, depth: int = 0) -> Any:
    """Return the content with its arrays as tensors."""
    if isinstance(content, _Array):
        return content.tensor()
    if depth < 8 and isinstance(content, dict):
        return {key: _plain(value, depth + 1) for key, value in content.items()}
    if depth < 8 and isinstance(content, list | tuple):
        return [_plain(value, depth + 1) for value in content]
    return content
