"""A draw made ready for many gradients: BatchNorm folded into its convolution, channels last.

In eval mode a BatchNorm is an affine map per channel, and a convolution directly before it can do
that map's work. Which pairs there are is seen in one observed forward pass, so that it holds for
any architecture; the result is compared with the draw itself before it is used.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel, Classifier
from rlskit.models.copying import duplicate
from rlskit.models.layout import in_layout, layout_of

TOLERANCE = 1e-5
"""Largest change of a logit that folding may make, as a fraction of the largest logit."""

PIECE = 32
"""Images that a draw takes at a time on a CPU."""

_LOOKS = {"__get__", "dim", "size"}
"""Torch functions that look at a tensor's shape and not at its values."""


class Made:
    """What was made of the banks' tensors, so that draws share it as they share those."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], tuple[object, tuple[Tensor, ...]]] = {}

    def once(
        self, what: str, tensors: Sequence[Tensor | None], make: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Return what is made of tensors, at the first call by `make`; `what` names it."""
        places = (None if t is None else (t.data_ptr(), t.size(), t.stride()) for t in tensors)
        key = (what, *places)
        if key not in self._made:  # what lies there is held, also if a network lets go of it
            self._made[key] = [t if t is None else t.detach() for t in tensors], make()
        return self._made[key][1]


def ready_for_attack(
    model: BankedModel, draws: list[nn.Module], made: Made | None = None
) -> list[nn.Module]:
    """Fold the draws in place and lay their convolutions out channels last, where that works.

    The logits agree with those of the draws as they were to `TOLERANCE`; a draw of a kind that
    cannot be folded, or that would not agree, is returned as it was.

    Args:
        model: Whose draws they are; it remembers what can be folded, and the layout.
        draws: From `rlskit.defenses.draws`.
        made: For earlier draws of the model, whose tensors have not changed since.
    """
    if not all(isinstance(draw, Classifier) for draw in draws):
        return draws
    if model.foldable is None:
        model.foldable = _agreed_pairs(model, model.sampled(_first_plan(model)))
    layout, made = layout_of(model), made or Made()

    def laid_out(tensor: Tensor) -> Tensor:
        if tensor.ndim not in (4, 5):
            return tensor
        if not isinstance(tensor, nn.Parameter):  # a buffer may be the draw's own
            return tensor.to(memory_format=layout)
        own = tensor.detach()  # of its own, as a network may give the parameter other data
        return made.once("layout", [own], lambda: (own.to(memory_format=layout),))[0]

    for draw in draws:
        fold(draw, model.foldable, made)
        draw._apply(laid_out)  # type: ignore[no-untyped-call]  # as `to_layout`, but once for all draws
    return draws


class InPieces(nn.Module):
    """A draw that takes its images a few at a time, so that a CPU's caches hold what it computes.

    On two cores a ResNet-20's forward and backward pass over 128 images takes 0.93 of the time.

    Args:
        draw: Images to logits.
        layout: Of the images that it gets, whatever an attack makes of them.
    """

    def __init__(self, draw: nn.Module, layout: torch.memory_format) -> None:
        super().__init__()
        self.draw = draw
        self._layout = layout

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[B, classes]` of images `[B, C, H, W]`."""
        images = in_layout(images, self._layout)
        return torch.cat([self.draw(piece) for piece in pieces_of([self], images)])


def pieces_of(draws: Sequence[nn.Module], images: Tensor) -> Sequence[Tensor]:
    """Return images as all of the draws take them, a few at a time where they are `InPieces`."""
    if images.is_cuda or not all(isinstance(draw, InPieces) for draw in draws):
        return (images,)
    return torch.split(images, PIECE)


def compile_draw(draw: nn.Module) -> nn.Module:
    """Return the draw compiled for any batch size; the next draw of a model reuses the code."""
    return cast(nn.Module, torch.compile(draw, dynamic=True))


def check_compiler() -> None:
    """Require what `torch.compile` needs on a CPU.

    Raises:
        RequestError: There is no C++ compiler.
    """
    names = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, names)):
        raise RequestError(f"`compiled` needs a C++ compiler on the path: {' or '.join(names)}")


def fold(draw: nn.Module, pairs: tuple[tuple[str, str], ...], made: Made | None = None) -> None:
    """Let each convolution do the work of its BatchNorm, in place; the banks stay untouched.

    Args:
        draw: In eval mode.
        pairs: Paths of convolutions and of the BatchNorms that alone read their outputs, as
            `foldable_pairs` finds them.
        made: For earlier draws.
    """
    made = made or Made()
    for conv_path, norm_path in pairs:
        conv: Any = draw.get_submodule(conv_path)
        norm: Any = draw.get_submodule(norm_path)
        own = conv.weight, conv.bias, norm.running_mean, norm.running_var
        affine = norm.weight, norm.bias
        fuse = partial(fuse_conv_bn_weights, *own, norm.eps, *affine)
        weight, bias = made.once(conv_path, own + affine, fuse)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        parent, _, name = norm_path.rpartition(".")
        setattr(draw.get_submodule(parent), name, _rest_of(norm))


@torch.no_grad()
def foldable_pairs(draw: nn.Module, images: Tensor) -> tuple[tuple[str, str], ...]:
    """Return the paths of each convolution whose output only one BatchNorm reads, and of that one.

    Args:
        draw: In eval mode.
        images: `[B, C, H, W]` in [0, 1].
    """
    watch = _Watch()
    hooks = []
    for path, module in draw.named_modules():
        if not _is_plain(module):
            continue
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(watch.conv_hook(path)))
        elif _foldable_norm(module):
            hooks.append(module.register_forward_pre_hook(watch.norm_hook(path)))
    try:
        with watch:
            draw(images)
    finally:
        for hook in hooks:
            hook.remove()
    return watch.pairs()


class _Watch(TorchFunctionMode):
    """Notes which convolution made a tensor, who read it, and how often each module ran."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[str, Tensor]] = {}  # holds the tensor, so that its id stays its
        self._reads: Counter[int] = Counter()
        self._runs: Counter[str] = Counter()
        self._normed: dict[str, int] = {}

    def conv_hook(self, path: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001
            self._runs[path] += 1
            self._made[id(output)] = path, output

        return note

    def norm_hook(self, path: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            self._runs[path] += 1
            if id(inputs[0]) in self._made:
                self._normed[path] = id(inputs[0])

        return note

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Return the pairs, each module having run once and nobody else reading between them."""
        found = []
        for norm, tensor in self._normed.items():
            conv, _ = self._made[tensor]
            if self._reads[tensor] == self._runs[conv] == self._runs[norm] == 1:
                found.append((conv, norm))
        return tuple(found)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in _LOOKS:
            read = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            self._reads.update(read & self._made.keys())
        return func(*args, **(kwargs or {}))


def _is_plain(module: nn.Module) -> bool:
    """Whether a module's weights are its own: hooks may compute them (`weight_norm`, `prune`)."""
    own = vars(module).get("weight") is None and not hasattr(module, "parametrizations")
    return own and not (module._forward_hooks or module._forward_pre_hooks)


def _foldable_norm(module: nn.Module) -> bool:
    known = type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"
    return known and getattr(module, "running_mean", None) is not None


def _rest_of(norm: Any) -> nn.Module:
    """Return what a BatchNorm does after its affine map: timm's own drop and activate there."""
    return nn.Identity() if type(norm) is nn.BatchNorm2d else nn.Sequential(norm.drop, norm.act)


def _first_plan(model: BankedModel) -> Tensor:
    return torch.zeros(model.num_layers, dtype=torch.long)


@torch.no_grad()
def _agreed_pairs(model: BankedModel, draw: Classifier) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a model, or none where folding them changes what a draw answers."""
    pixels, rng = model.card.pixels, torch.Generator().manual_seed(0)
    shape = (2, pixels.channels, pixels.height, pixels.width)
    images = torch.rand(shape, generator=rng).to(model.device)
    draw = cast(Classifier, duplicate(draw))
    for module in draw.modules():
        if _foldable_norm(module):
            _stir(module, rng)
    expected = draw(images)
    pairs = foldable_pairs(draw, images)
    fold(draw, pairs)
    change = (draw(images) - expected).abs().max()
    return pairs if change <= TOLERANCE * expected.abs().max() else ()


def _stir(norm: Any, rng: torch.Generator) -> None:
    """Give a BatchNorm statistics that matter: those of an untrained one change nothing."""
    for statistic in (norm.running_mean, norm.running_var):
        statistic.copy_(0.5 + torch.rand(statistic.shape, generator=rng))
