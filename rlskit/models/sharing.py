"""Logits of several draws on the same images, computing once what they have in common.

A forward pass is a list of torch calls. Draws that chose the same banks for their first layers make
the same calls with the same results, up to the first call that reads a tensor in which they differ.
The first draw is observed in full. Where a later draw will part from it, what it still holds is
kept; the later draw goes through its own code from the start, but until that point each call is
answered with what was kept. The draws come in the order of a depth-first walk through the tree of
their choices, so that little is kept at a time.

Nothing here knows of plans, layers or modules: two draws share a tensor if it lies at the same
place in memory. Calls are seen by a `TorchFunctionMode`, as in `trace`; no draw is patched.

Numbers are those of calling each draw by itself, bit for bit. Hence a draw that is answered must
make exactly the recorded calls, what was kept must not have been written to since, and a result
that nobody held any more is answered with a tensor on the meta device, which holds no numbers that
could go astray. Whatever is not understood is computed by plain calls; with gradients that is also
what goes through a network's own `autograd.Function`, which is called unseen, and a pass a part of
which is to be computed again (`torch.utils.checkpoint`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction as _OwnNode
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_Token = str | tuple[int, int]
"""What stands for a tensor in a record: a name in the draw, or (call, position in its result)."""

_IMAGES = ""  # the name of the images, which no tensor of a module can have
_PLAIN = frozenset(
    {bool, int, float, complex, str, type(None), type(...), type, torch.dtype, torch.device,
     torch.layout, torch.memory_format}
)  # fmt: skip


class _AstrayError(BaseException):  # so that no network's `except Exception` goes on after it
    """A draw made another call than the recorded one; a plain call follows."""


class _Result(NamedTuple):
    """A tensor that a call returned: who it is, how often it had been written to, its looks."""

    token: _Token
    version: int
    shell: Tensor  # on the meta device, which holds no numbers


class _Call(NamedTuple):
    """A torch call: function and flattened arguments, tokens for tensors; and what it returned."""

    what: list[Any]
    leaves: list[Any]  # of the result: plain values and `_Result`
    spec: TreeSpec | None  # None: the result is the one leaf


class _Checkpoint(NamedTuple):
    """A point in a forward pass: the calls before it, and the results that were still held."""

    calls: list[_Call]
    kept: dict[_Token, tuple[Tensor, int]]

    def is_intact(self) -> bool:
        """Say whether nobody has written to what was kept."""
        return all(tensor._version == version for tensor, version in self.kept.values())


_BEGINNING = _Checkpoint([], {})


def draw_logits(draws: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Return the draws' logits `[N, B, classes]`, bit for bit those of calling each by itself.

    Draws of one model share what they compute alike. Gradients flow back through it once, summed
    over the draws, so that they are those of separate draws but for the order of the sums. Draws
    with hooks, which would see it, are called plainly; so are compiled ones, those of which a part
    says that it is not `is_observable`, and those with an `nn.MultiheadAttention`, which asks torch
    whether it is observed and then takes a way with other rounding.

    Args:
        draws: At least one; images to logits.
        images: `[B, C, H, W]` in [0, 1].
    """
    answers: dict[int, Tensor] = {}
    if _may_share(draws, images):
        _answer_together(draws, images, answers)
    for index, draw in enumerate(draws):
        if index not in answers:
            answers[index] = draw(images)
    return torch.stack([answers[index] for index in range(len(draws))])


def _may_share(draws: Sequence[nn.Module], images: Tensor) -> bool:
    """Say whether observing the draws is harmless; whether it is of use shows later."""
    return (
        len(draws) > 1
        and type(images) is Tensor
        and not images.is_inference()  # such tensors do not count how often they are written to
        and not torch.is_inference_mode_enabled()
        and images.device.type in ("cpu", "cuda")  # whose random generators are looked at below
    )


def _answer_together(
    draws: Sequence[nn.Module], images: Tensor, answers: dict[int, Tensor]
) -> None:
    """Put into `answers` what the draws answer, as far as that is understood."""
    tensors: list[_Named] = []
    for draw in draws:
        named = _named_tensors(draw)
        if named is None:
            return
        tensors.append(named)
    if not _any_shared(tensors):
        return
    origins = _Origins(tensors)
    checkpoints = dict.fromkeys(range(len(draws)), _BEGINNING)
    while checkpoints:
        # Depth first: what was kept last is used up first.
        index = max(checkpoints, key=lambda i: len(checkpoints[i].calls))
        start = checkpoints.pop(index)
        own = {_IMAGES: images} | {name: tensor for name, (tensor, _) in tensors[index].items()}
        start = start if start.is_intact() else _BEGINNING
        one = _Pass(index, own, origins, start, checkpoints)
        del start  # so that what it keeps can be let go of
        try:
            answers[index] = one.answer(draws[index]) if answers else one.first_answer(draws[index])
        except (Exception, _AstrayError):
            return  # not understood, no memory for it, or an error that a plain call raises as well
        if not one.understood and len(answers) == 1:
            return


def _is_observable(module: nn.Module) -> bool:
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or isinstance(module, nn.MultiheadAttention)
        or "_orig_mod" in module._modules  # compiled
        or not getattr(type(module), "is_observable", True)
    )


_Named = dict[str, tuple[Tensor, bool]]


def _named_tensors(draw: nn.Module) -> _Named | None:
    """Return every parameter and buffer by name, and whether a state dict has it.

    None for a draw that is not to be observed.
    """
    named: _Named = {}
    for prefix, module in draw.named_modules(remove_duplicate=False):
        if not _is_observable(module):
            return None
        dot = f"{prefix}." if prefix else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                named[dot + name] = (tensor, name not in module._non_persistent_buffers_set)
    return named


def _any_shared(tensors: Sequence[_Named]) -> bool:
    """Say whether the draws have the same names, and two of them a tensor of the same bank."""
    if any(named.keys() != tensors[0].keys() for named in tensors):
        return False
    stored = [name for name, (_, is_stored) in tensors[0].items() if is_stored]
    return any(len({named[n][0].data_ptr() for named in tensors}) < len(tensors) for n in stored)


class _Origins(dict[str, tuple[int, ...]]):
    """By name: a number per draw, equal for draws whose tensor of that name is the same one.

    The banks' tensors are the same if they lie at the same place in memory. A buffer that no state
    dict has, such as the mean and std of the first step, is each draw's own: its values count.
    """

    def __init__(self, tensors: Sequence[_Named]) -> None:
        super().__init__({_IMAGES: (0,) * len(tensors)})
        self._tensors = tensors

    def __missing__(self, name: str) -> tuple[int, ...]:
        kinds: list[Tensor] = []
        origins = []
        for tensor, stored in (named[name] for named in self._tensors):
            same = _same_place if stored else _same_values
            kind = next((k for k, other in enumerate(kinds) if same(tensor, other)), len(kinds))
            if kind == len(kinds):
                kinds.append(tensor)
            origins.append(kind)
        self[name] = tuple(origins)
        return self[name]


def _same_place(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and _alike(a, b)


def _same_values(a: Tensor, b: Tensor) -> bool:
    return _alike(a, b) and torch.equal(a, b)


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.size(), a.stride(), a.dtype, a.device) == (b.size(), b.stride(), b.dtype, b.device)


class _Pass(TorchFunctionMode):
    """One draw's forward pass: answered up to a checkpoint, then computed and recorded.

    Attributes:
        understood: Whether all calls that were observed could be recorded.

    Args:
        index: Of the draw.
        own: The draw's tensors by name, and the images.
        origins: Of all these names.
        start: Where the draw parts from those before it.
        checkpoints: By draw that is still to come, where it parts from those before it; a later
            such point is put in.
    """

    def __init__(
        self,
        index: int,
        own: dict[str, Tensor],
        origins: _Origins,
        start: _Checkpoint,
        checkpoints: dict[int, _Checkpoint],
    ) -> None:
        super().__init__()
        self.understood = True
        self._index = index
        self._own = own
        self._origins = origins
        self._recorded, self._held = start
        self._checkpoints = checkpoints
        # Those of them that have not parted from this one yet.
        self._later = [i for i, c in checkpoints.items() if c is start or start is _BEGINNING]
        self._whole = False  # observe the pass to its end, whoever needs it
        self._astray = False  # another call came than the recorded one
        self._calls: list[_Call] = []
        # Ids are only unique among the living, and the record must keep no result alive.
        self._tokens: dict[int, tuple[Callable[[], Tensor | None], _Token]] = {}
        self._versions: dict[_Token, int] = {}  # of results, when they were last returned
        for name, tensor in reversed(own.items()):
            self._name(tensor, name)

    def first_answer(self, draw: nn.Module) -> Tensor:
        """Return the first draw's logits, after observing the whole pass.

        It is not understood if the draw uses tensors from nowhere, writes to its own, or is random.
        """
        self._whole = True
        device = self._own[_IMAGES].device
        before = self._written(), _random_states(device)
        logits = self.answer(draw)
        self.understood &= before == (self._written(), _random_states(device))
        return logits

    def answer(self, draw: nn.Module) -> Tensor:
        """Return the draw's logits.

        Raises:
            _AstrayError: It made another call than the recorded one.
        """
        images = self._own[_IMAGES]
        with self, _no_checkpointing():
            logits: Tensor = draw(images)
        if self._astray or len(self._calls) < len(self._recorded):
            raise _AstrayError  # whatever the draw made of the error
        if self._recorded and logits.device != images.device:
            raise _AstrayError
        if self._observes():
            self.understood &= self._known(logits) is not None
            self._part(self._later)
        return logits

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if len(self._calls) < len(self._recorded):
            return self._replay(func, args, kwargs)
        if not self._observes():
            return func(*args, **kwargs)
        what, reads = self._described(func, args, kwargs)
        self._part(self._parting(reads))
        result = func(*args, **kwargs)
        self._record(what, result)
        return result

    def _observes(self) -> bool:
        return self.understood and (self._whole or bool(self._later))

    def _parting(self, reads: list[str]) -> list[int]:
        """Return the later draws that have another tensor than this one under such a name."""
        if not self._later:
            return []
        columns = [self._origins[name] for name in reads]
        return [i for i in self._later if any(c[i] != c[self._index] for c in columns)]

    def _replay(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call with the recorded result, if it is the recorded call."""
        call = self._recorded[len(self._calls)]
        what, _ = self._described(func, args, kwargs)  # what it reads is the recorder's as well
        if self._astray or not self.understood or call.what != what:
            self._astray = True
            raise _AstrayError
        self._calls.append(call)
        if call.leaves == [None] and Tensor not in what:
            return func(*args, **kwargs)  # such as a change of the gradient mode
        leaves = [self._kept(x) if type(x) is _Result else x for x in call.leaves]
        if len(self._calls) == len(self._recorded):
            self._let_go()
        return leaves[0] if call.spec is None else tree_unflatten(leaves, call.spec)

    def _let_go(self) -> None:
        """Leave it to the draw what is held from here on; those that share more part later on."""
        self._held = {}
        self._checkpoints.update(dict.fromkeys(self._later, _BEGINNING))

    def _kept(self, result: _Result) -> Tensor:
        """Return what was kept of a result; an empty shell if nobody held it, or not as it was."""
        if isinstance(result.token, str):
            return self._own[result.token]
        tensor, version = self._held.get(result.token, (None, 0))
        if tensor is None or version != result.version:
            tensor = result.shell
        self._name(tensor, result.token)
        self._versions[result.token] = version
        return tensor

    def _record(self, what: list[Any], result: Any) -> None:
        if isinstance(result, Tensor):
            leaves, spec = [self._noted(result, 0)], None
        elif type(result) in _PLAIN:
            leaves, spec = [result], None
        else:
            leaves, spec = tree_flatten(result)
            leaves = [self._noted(leaf, place) for place, leaf in enumerate(leaves)]
        self._calls.append(_Call(what, leaves, spec))

    def _noted(self, leaf: Any, place: int) -> Any:
        """Return what the record keeps of a part of a result."""
        if type(leaf) in _PLAIN:
            return leaf
        if not isinstance(leaf, Tensor):
            self.understood = False
            return None
        token = self._known(leaf)
        if token is None:
            token = (len(self._calls), place)
            self._name(leaf, token)
        self._versions[token] = leaf._version
        shell = torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
        return _Result(token, leaf._version, shell)

    def _part(self, parting: list[int]) -> None:
        """Make a checkpoint for the draws that part from this one here."""
        if not parting or not self.understood:
            return
        self._later = [i for i in self._later if i not in parting]
        kept: dict[_Token, tuple[Tensor, int]] = {}
        for holder, token in self._tokens.values():
            tensor = holder()
            if tensor is None or tensor.is_meta or isinstance(token, str):
                continue
            if tensor._version != self._versions[token]:
                return  # written to through a view, or by a call that did not return it
            kept[token] = (tensor, tensor._version)
        checkpoint = _Checkpoint(self._calls.copy(), kept)
        for index in parting:
            if len(checkpoint.calls) > len(self._checkpoints[index].calls):
                self._checkpoints[index] = checkpoint

    def _described(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], list[str]]:
        """Return what a call is, and the names of the draw's tensors that it reads."""
        what: list[Any] = [func]
        reads: list[str] = []
        # What is written by way of `.data` is not counted as written.
        self.understood &= getattr(func, "__self__", None) is not Tensor.data
        self._describe(args, what, reads)
        if kwargs:
            what.append(list(kwargs))
            self._describe(kwargs.values(), what, reads)
        return what, reads

    def _describe(self, values: Iterable[Any], what: list[Any], reads: list[str]) -> None:
        """Append arguments to `what`, tokens for tensors, and the names of the draw's own."""
        for value in values:
            kind = type(value)
            if kind in _PLAIN:
                what += (kind, value)
            elif isinstance(value, Tensor):
                token = self._known(value)
                what += (Tensor, token)
                self.understood &= token is not None  # else it was made where calls are not seen
                if isinstance(token, str):
                    reads.append(token)
            elif isinstance(value, tuple | list):
                what += (kind, len(value))
                self._describe(value, what, reads)
            elif kind is dict:
                what += (kind, list(value))
                self._describe(value.values(), what, reads)
            elif kind is slice:
                what.append(kind)
                self._describe((value.start, value.stop, value.step), what, reads)
            else:
                self.understood = False

    def _name(self, tensor: Tensor, token: _Token) -> None:
        self._tokens[id(tensor)] = (weakref.ref(tensor), token)

    def _known(self, tensor: Tensor) -> _Token | None:
        """Return a tensor's token; None if it, or its gradient, was made where nobody saw it."""
        holder, token = self._tokens.get(id(tensor), (None, _IMAGES))
        if holder is None or holder() is not tensor or isinstance(tensor.grad_fn, _OwnNode):
            return None
        return token

    def _written(self) -> list[int]:
        return [tensor._version for tensor in self._own.values()]


def _no_checkpointing() -> AbstractContextManager[None]:
    """Let a network fail that would compute a part of its pass again for the gradients."""
    if not torch.is_grad_enabled():
        return nullcontext()
    return disable_saved_tensors_hooks("draws that compute together do so once")


def _random_states(device: torch.device) -> list[bytes]:
    """Return the states of the global random generators."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [state.numpy().tobytes() for state in states]
