"""What a network answers, read in one place: which tensor holds the classes, and what it holds.

Attacks, defenses and training work on logits. A network may also answer with several tensors, in
half precision, or with probabilities; everywhere else in rlskit its answer is float32 logits.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlskit.errors import RequestError
from rlskit.text import nearest

OUTPUTS = ("logits", "probabilities", "log-probabilities", "sigmoid")
"""What the numbers that a network answers with may be (`--outputs`)."""

SLACK = 1e-2
"""By how much probabilities in half precision may miss 1."""

ONE_NUMBER = (
    "answers with one number per image; where that tells two classes apart, let it answer with "
    "both logits, as torch.cat([torch.zeros_like(z), z], 1) of what goes into its sigmoid"
)

Network = Callable[[Tensor], object]
"""Maps images to whatever the network answers."""


class HeadlessError(RequestError):
    """The network is no classifier: none of the tensors it answers with is `[B, K]`."""


@dataclass(frozen=True)
class Reading:
    """How a network's answer is read.

    Attributes:
        key: Which of several tensors holds the classes, as `logits` or `0`, dots for nested ones;
            "" for the only one.
        outputs: One of `OUTPUTS`; "" where nobody said, which is read as logits.
        dtype: Of the images that the network takes.
        lone_twice: Whether a lone image is to be shown twice: a `squeeze()` would drop its axis.
    """

    key: str = ""
    outputs: str = ""
    dtype: torch.dtype = torch.float32
    lone_twice: bool = False

    def logits(self, network: Network, inputs: Tensor) -> Tensor:
        """Return the network's logits for normalised images, float32 `[B, K]`.

        Probabilities become logits again. Where a softmax or sigmoid is the network's last step,
        what went into it is read, exactly; elsewhere the inverse function is applied, and values
        that were rounded to 0 or 1 have no gradient left to follow. What lies outside [0, 1] is no
        probability, but the logits of a network whose softmax is left out in training.

        Raises:
            RequestError: There is no such tensor.
        """
        inputs = inputs.to(self.dtype)
        if inputs.size(1) == 1:  # the strides of one channel may be those of channels last as well
            # Sizes one by one: what draws share is not understood through a whole shape.
            inputs = inputs.contiguous().flatten().view(-1, 1, inputs.size(2), inputs.size(3))
        if self.lone_twice and len(inputs) == 1:
            return self._read(network, torch.cat([inputs, inputs]))[:1]
        return self._read(network, inputs)

    def _read(self, network: Network, inputs: Tensor) -> Tensor:
        if self.outputs not in _SQUASHES:
            return _numbers(tensor_at(network(inputs), self.key)).float()
        watch = _Watch()
        with watch:
            squashed = _numbers(tensor_at(network(inputs), self.key))
        name, before = watch.before(squashed)
        if name == self.outputs or bool((squashed < 0).any() or (squashed > 1 + SLACK).any()):
            return before.float()
        return _INVERSES[self.outputs](squashed.float())


LOGITS = Reading()
"""A lone tensor of logits, for float32 images."""


def reading_of(network: nn.Module, key: str = "", outputs: str = "") -> Reading:
    """Return how a network's answers are read; it takes images of its first weight's precision.

    A scale that stands before the first weight may have another.
    """
    floating = [p for p in network.parameters() if p.is_floating_point()]
    first = next((p for p in floating if p.ndim > 1), next(iter(floating), None))
    return Reading(key, outputs, torch.float32 if first is None else first.dtype)


def key_of(output: object, images: int | None = None, classes: int | None = None) -> str:
    """Return the key of the tensor that holds the classes.

    It is `[B, K]`, of K classes if there is such a one. Of several it is the one called logits, or
    the first of a tuple; between others there is nothing to choose by.

    Args:
        output: What a network answered.
        images: B; None for any.
        classes: K; None for any.

    Raises:
        HeadlessError: No tensor is `[B, K]`.
        RequestError: Several are, and nothing says which is meant.
    """
    found = dict(_tensors(output))
    fitting = [k for k, t in found.items() if t.ndim == 2 and images in (None, len(t))]
    fitting = [k for k in fitting if found[k].shape[1] == classes] or fitting
    if not fitting:
        shapes = ", ".join(f"{list(t.shape)} {k}".strip() for k, t in found.items())
        raise HeadlessError(
            f"it answers with features of shape {shapes}, not [B, classes]"
            if found
            else f"it answers with a {type(output).__name__}, not with logits"
        )
    named = [key for key in fitting if key.rpartition(".")[2] == "logits"]
    outermost = min((key.count(".") for key in named), default=0)
    chosen = [key for key in named if key.count(".") == outermost] or fitting
    if len({id(found[key]) for key in chosen}) > 1 and not _is_first(chosen[0], output):
        listed = ", ".join(f"{key} {list(found[key].shape)}" for key in chosen)
        raise RequestError(
            f"the network answers with {len(chosen)} tensors that may hold the classes ({listed}), "
            f"and nothing says which does; name it, as in `output_key={chosen[0]!r}`"
        )
    return chosen[0]


def _is_first(key: str, output: object) -> bool:
    """Whether it is the first of a plain tuple, where the logits stand; a list may hold exits."""
    return key == "0" and isinstance(output, tuple)


def tensor_at(output: object, key: str) -> Tensor:
    """Return the tensor that an answer holds under a key of `key_of`.

    Some networks answer with one tensor, and with several while they are trained, or the other way
    round: a lone tensor is what is meant, and without a key the first that may be it.

    Raises:
        RequestError: There is none.
    """
    if isinstance(output, Tensor):
        return output
    found = dict(_tensors(output))
    key = key or key_of(output)
    if key not in found:
        raise RequestError(
            f"the model answers with no tensor called {key!r}: there is "
            f"{', '.join(found) or type(output).__name__}; convert it with another `output_key`"
        )
    return found[key]


def kind_of(network: Network, inputs: Tensor, key: str = "") -> str:
    """Say what a network's answers show themselves to be, one of `OUTPUTS`, or "" if nothing tells.

    Its last step tells, or rows that are probabilities. Numbers in [0, 1] alone tell nothing: they
    may be those of a sigmoid, or small logits.
    """
    watch = _Watch()
    with torch.no_grad(), watch:
        answer = tensor_at(network(inputs), key)
    name, _ = watch.before(answer)
    return name or ("probabilities" if are_probabilities(answer) else "")


def are_probabilities(answer: Tensor) -> bool:
    """Say whether every row of `[B, K]` is a distribution over more than one class."""
    values = answer.detach().float()
    if values.is_meta or values.shape[1] < 2 or not in_unit_range(values):
        return False
    return bool(((values.sum(1) - 1).abs() < SLACK).all())


def in_unit_range(answer: Tensor) -> bool:
    """Say whether all of the numbers lie in [0, 1], and not all of them are one and the same."""
    values = answer.detach().float()
    return bool((values >= 0).all() and (values <= 1).all() and (values != values[0, 0]).any())


def check_outputs(outputs: str) -> None:
    """Require one of `OUTPUTS`, or "" for what shows itself.

    Raises:
        RequestError: It is another.
    """
    if outputs and outputs not in OUTPUTS:
        raise RequestError(f"`outputs` {outputs!r} is unknown; {nearest(outputs, OUTPUTS)}")


def _tensors(output: object, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of an answer under their keys."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield key, output
        return
    if isinstance(output, Mapping):
        parts = dict(output)
    elif hasattr(output, "_asdict"):
        parts = output._asdict()
    elif isinstance(output, tuple | list):
        parts = dict(enumerate(output))
    else:
        parts = {**getattr(output, "__dict__", {})}
        if hasattr(output, "logits"):  # a property, perhaps
            parts = {"logits": output.logits, **parts}
    for name, part in parts.items():
        yield from _tensors(part, f"{key}.{name}" if key else str(name))


def _numbers(answer: Tensor) -> Tensor:
    if not answer.is_floating_point():
        raise RequestError(
            f"the model answers with {answer.dtype}, not with one floating-point number per class"
        )
    return answer


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()


def _logit(shares: Tensor) -> Tensor:
    kept = shares.clamp(torch.finfo(torch.float32).tiny, 1 - torch.finfo(torch.float32).eps / 2)
    return kept.log() - (-kept).log1p()


_INVERSES: dict[str, Callable[[Tensor], Tensor]] = {"probabilities": _log, "sigmoid": _logit}

_ATEN = torch.ops.aten  # what a program's graph calls

_SQUASHES: dict[str, tuple[Any, ...]] = {
    "probabilities": (
        F.softmax, torch.softmax, Tensor.softmax, _ATEN.softmax.int, _ATEN._softmax.default,
        torch.exp, Tensor.exp, _ATEN.exp.default,
    ),
    "sigmoid": (
        torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit, _ATEN.sigmoid.default,
    ),
}  # fmt: skip
"""What `Reading` undoes -> the functions that are undone by reading what went into them.

The exponential is one of them after a log-softmax only.
"""

_LOG_SOFTMAX = (
    F.log_softmax, torch.log_softmax, Tensor.log_softmax, _ATEN.log_softmax.int,
    _ATEN._log_softmax.default,
)  # fmt: skip


class _Watch(TorchFunctionMode):
    """Remembers what went into the functions that may be a classifier's last step."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[
            int, tuple[str, Tensor, Tensor]
        ] = {}  # holds them, so that ids stay theirs

    def before(self, answer: Tensor) -> tuple[str, Tensor]:
        """Return what made an answer, and from what; "" and the answer where nothing known did."""
        name, before, _ = self._made.get(id(answer), ("", answer, answer))
        return name, before

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = next((kind for kind, made_by in _NAMES.items() if func in made_by), None)
        if name is not None and isinstance(result, Tensor) and result.ndim == 2:
            given = args[0] if args else kwargs["input"]
            over = args[1] if len(args) > 1 else kwargs.get("dim", 1)
            exponential = func in (torch.exp, Tensor.exp, _ATEN.exp.default)
            if exponential and self.before(given)[0] != "log-probabilities":
                return result
            if name == "sigmoid" or exponential or over in (1, -1, None):
                self._made[id(result)] = name, given, result
        return result


_NAMES = {**_SQUASHES, "log-probabilities": _LOG_SOFTMAX}
