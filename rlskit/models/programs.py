"""Networks saved as programs, with their weights: `torch.export` (.pt2) and TorchScript archives.

Both become a graph of torch's operations around ordinary parameters and buffers, so that tensors
can be exchanged in it as in any network. A program is code: reading one is left to `own`, which
knows whom the user trusts.

Shapes: B images, C x H x W pixels.
"""

from __future__ import annotations

import functools
import logging
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.graph import CodeGen
from torch.utils._pytree import tree_leaves, tree_unflatten

from rlskit.errors import RequestError, reason
from rlskit.models.copying import duplicate
from rlskit.models.stated import Stated
from rlskit.torchvision_ops import declare_missing_operators

_IN_TRAIN_MODE = {"batch_norm": 5, "native_batch_norm": 5, "_native_batch_norm_legit": 5,
                  "instance_norm": 5, "dropout": 2, "native_dropout": 2, "alpha_dropout": 2,
                  "feature_dropout": 2, "dropout_": 2}  # fmt: skip
"""Operation -> the place of the argument that says whether it trains."""


class Program(nn.Module):
    """A program's graph; batches of another size than it was made for are cut and filled up.

    Args:
        graph: Images `[B, C, H, W]` to the tensors of its answer, one after the other.
        answer: Puts them together as the program does.
        batch: B, where the graph takes no other.
    """

    def __init__(
        self, graph: nn.Module, answer: Callable[[list[Any]], Any], batch: int | None
    ) -> None:
        super().__init__()
        self.graph = graph
        self.answer = answer
        self.batch = batch

    def forward(self, images: Tensor) -> Any:
        """Return what the program answers."""
        if self.batch in (None, len(images)):
            return self.answer(list(self.graph(images)))
        assert self.batch is not None
        filled = -len(images) % self.batch
        padded = torch.cat([images, images[-1:].expand(filled, *images.shape[1:])])
        parts = zip(*map(self.graph, torch.split(padded, self.batch)), strict=True)
        return self.answer([_joined(part, len(images)) for part in parts])


def _joined(parts: tuple[Any, ...], count: int) -> Any:
    """Return one answer for all images; what is no tensor of a batch stays as the first has it."""
    first = parts[0]
    return torch.cat(parts)[:count] if isinstance(first, Tensor) and first.ndim else first


def is_program(name: str) -> bool:
    """Whether a name is that of a program's file, by its ending."""
    return Path(name).suffix in (".pt2", ".pt", ".pth", ".ts", ".torchscript")


def stated_by(path: str, digest: str) -> Stated:
    """Return what a program says of the images that it takes; TorchScript says nothing."""
    if _kind(Path(path)) == "torchscript":
        return Stated()
    channels, *sides = (
        size if isinstance(size, int) else None for size in _exported(path, digest)[1][1:]
    )
    height, width = sides
    return Stated(
        channels=channels,
        size=(height, width) if height is not None and width is not None else None,
    )


def read_program(path: str, digest: str, shape: tuple[int, int, int] | None) -> nn.Module:
    """Return a network of its own that computes what a program's file does.

    Args:
        path: The file, which is trusted.
        digest: Its sha256; the same file is read once.
        shape: `(C, H, W)` of the images, which TorchScript must be shown.

    Raises:
        RequestError: It is no program that takes such images, or one for training.
    """
    if _kind(Path(path)) == "torchscript":
        return duplicate(_scripted(path, digest, shape or (3, 224, 224)))
    return duplicate(_exported(path, digest)[0])


def _kind(path: Path) -> str:
    """Return `torchscript` or `export`, by a file's content.

    Raises:
        RequestError: It is something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        names = set()
    if "constants.pkl" in names:
        return "torchscript"
    if names & {"archive_format", "serialized_exported_program.json"}:
        return "export"
    raise RequestError(
        f"{path} holds no program (torch.export or TorchScript); of weights alone give the network "
        f"and `weights={str(path)!r}`"
    )


@functools.lru_cache(maxsize=2)
def _exported(path: str, digest: str) -> tuple[Program, tuple[Any, ...]]:  # noqa: ARG001
    """Return the network of a `torch.export` file, and the shape of its images."""
    try:
        program = _quietly(torch.export.load, path)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise RequestError(
            f"{path} cannot be read as a program of torch.export ({reason(error)}); export it with "
            f"torch {torch.__version__.partition('+')[0]}"
        ) from error
    return _network(program, path), _image_shape(program, path)


@functools.lru_cache(maxsize=2)
def _scripted(path: str, digest: str, shape: tuple[int, int, int]) -> Program:  # noqa: ARG001
    """Return the network of a TorchScript archive, after showing it two images."""
    try:
        from torch._export.converter import TS2EPConverter

        script = _quietly(torch.jit.load, path, map_location="cpu").eval()
        floating = (p.dtype for p in script.parameters() if p.is_floating_point())
        images = torch.zeros(2, *shape, dtype=next(floating, torch.float32))
        with torch.no_grad():
            script(images)  # its own words are better than the converter's
        program = _quietly(lambda: TS2EPConverter(script, (images,)).convert())
    except Exception as error:  # whatever a program, or the converter, raises
        raise RequestError(
            f"{path} cannot be turned into a graph for images of {'x'.join(map(str, shape))} "
            f"({reason(error)}); if it is made for others, give `image_size` or `in_chans`; else "
            "save the network with torch.export"
        ) from error
    network = _network(program, path)
    for name, parameter in script.named_parameters():
        _let_train(network.graph, name, parameter.requires_grad)
    return network


def _let_train(graph: nn.Module, name: str, requires_grad: bool) -> None:
    """Make a parameter again of what the converter left as a buffer; an unused one is not there."""
    path, _, leaf = name.rpartition(".")
    modules = dict(graph.named_modules())
    if path in modules and leaf in modules[path]._buffers:
        value = modules[path]._buffers.pop(leaf)
        assert value is not None
        parameter = nn.Parameter(value.detach(), requires_grad=requires_grad)
        modules[path].register_parameter(leaf, parameter)


def _quietly(function: Any, *args: Any, **kwargs: Any) -> Any:
    declare_missing_operators()  # it may name some of torchvision's
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated, to those who write programs
            return function(*args, **kwargs)
    finally:
        logging.disable(before)


def _image_shape(program: Any, path: str) -> tuple[Any, ...]:
    """Return the shape of the one input, of numbers and of symbols.

    Raises:
        RequestError: There are several, or one that is no batch of images.
    """
    names = set(program.graph_signature.user_inputs)
    found = [
        n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names
    ]
    if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].ndim != 4:
        raise RequestError(f"{path} takes other things than one batch of images [B, C, H, W]")
    return tuple(found[0].shape)


def _network(program: Any, path: str) -> Program:
    """Return an ordinary module of an exported program.

    Raises:
        RequestError: It was exported in train mode, or takes no images alone.
    """
    for node in program.graph.nodes:
        place = _IN_TRAIN_MODE.get(getattr(node.target, "__name__", "").partition(".")[0])
        if place is not None and node.args[place : place + 1] == (True,):
            raise RequestError(
                f"{path} was saved in train mode ({node.name} is of it); save it after eval()"
            )
    shape = _image_shape(program, path)
    module = program.module(check_guards=False)
    module.graph.set_codegen(CodeGen())  # plain tensors in and out
    for node in module.graph.nodes:
        node.meta.clear()  # of the export; every copy would copy it
    graph = GraphModule(module, module.graph)  # without its hooks, and with modes
    specification = program.call_spec.out_spec

    def answer(leaves: list[Any]) -> Any:
        return tree_unflatten(leaves, specification)

    fixed = Program(graph, answer, shape[0]).eval()
    if not isinstance(shape[0], int) or _takes_any_batch(fixed, shape):
        fixed.batch = None
    return fixed


@torch.no_grad()
def _takes_any_batch(program: Program, shape: tuple[Any, ...]) -> bool:
    """Whether a graph for one size of batches gives each image the same answer in others."""
    batch, *image = (size if isinstance(size, int) else 64 for size in shape)
    dtypes = (p.dtype for p in program.parameters() if p.is_floating_point())
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3 * batch + 1, *image, generator=random).to(next(dtypes, torch.float32))
    try:
        return all(
            torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
            for count in (batch + 1, 2 * batch, 3 * batch + 1)
            for one, other in zip(
                program.graph(images[:count]), tree_leaves(program(images[:count])), strict=True
            )
        )
    except Exception:  # whatever an operation with another size raises
        return False
