"""M banks of weights of one architecture, and the sampled models they hold (paper, section 3.1).

Shapes: B images, C channels, H x W pixels, L layers, M banks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rlskit.errors import RequestError, own_code
from rlskit.models.architecture import Architecture
from rlskit.models.copying import duplicate
from rlskit.models.listing import LIBRARIES
from rlskit.models.outputs import LOGITS, Reading, reading_of
from rlskit.models.own import heard
from rlskit.models.partition import Partition
from rlskit.models.streams import kept, sources_of
from rlskit.models.trace import tensor_names
from rlskit.pixels import Pixels


@dataclass
class Card:
    """What a model knows of itself besides its weights; the checkpoint's metadata.

    Attributes:
        architecture: How to build one network again.
        pixels: What an image must look like.
        classes: Number of classes.
        defense: A key of `rlskit.defenses.DEFENSES`.
        bank_probs: Probability of each bank in a random plan (mu of eq. 2); empty for 1/M each.
        settings: The defense's own numbers by name.
        data: The data set's name, or "" when it was never said.
        training: One record per training run; empty for an untrained model.
        pretrained: Where the first weights came from, or "".
        outputs: What the network answers with, one of `rlskit.models.outputs.OUTPUTS`; "" where
            nobody said and nothing showed.
        output_key: Of the tensor that holds the classes, where it answers with several.
        class_names: Name of each class in the order of the logits; empty where nothing says.
        assumed: What `convert` took for granted of weights that were trained elsewhere, a sentence
            each; a wrong assumption makes every number wrong.
        notes: What else must be known of where the weights came from, a sentence each.
    """

    architecture: Architecture
    pixels: Pixels
    classes: int
    defense: str = "rls"
    bank_probs: tuple[float, ...] = ()
    settings: dict[str, float] = field(default_factory=dict)
    data: str = ""
    training: list[dict[str, Any]] = field(default_factory=list)
    pretrained: str = ""
    outputs: str = ""
    output_key: str = ""
    class_names: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names: those recorded, or those of the last training in an older file."""
        found = self.class_names or (
            self.training[-1].get("class_names", ()) if self.training else ()
        )
        names = tuple(map(str, found))
        return names if len(names) == self.classes else ()

    @property
    def trained(self) -> bool:
        """Whether the weights are more than a random initialisation."""
        return bool(self.training or self.pretrained)

    def default_data(self) -> str:
        """Return the data set to use when none is named: what the model was made for.

        Raises:
            RequestError: That was a folder or file; a path from a checkpoint is not followed. Or
                the weights come from elsewhere, and nothing says.
        """
        if (not self.data and self.trained) or self.data == "memory":
            raise RequestError(
                "the checkpoint does not say what data its weights are for; name it with `data`"
            )
        if ":" in self.data:
            raise RequestError(
                f"the model was made for {self.data}, but a path from a checkpoint is not "
                f"followed; name it: `data={self.data!r}`"
            )
        return self.data or "digits"


class Normalize(nn.Module):
    """The classifier's first step: `(images - mean) / std` per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(pixels, name)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map `[B, C, H, W]` in [0, 1] to the network's input."""
        return (images - self.mean) / self.std


class Classifier(nn.Module):
    """A draw: images `[B, C, H, W]` in [0, 1] to logits `[B, classes]`, no randomness left in it.

    It stays in eval mode whatever it is told, so that a library that calls `train()` on it attacks
    and scores the same function. Its tensors share storage with the banks and need no gradient.
    """

    def __init__(self, network: nn.Module, normalize: Normalize, reading: Reading = LOGITS) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network
        self.reading = reading
        self.eval()

    def train(self, mode: bool = True) -> Classifier:  # noqa: ARG002
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32."""
        with own_code(len(images)):
            return self.reading.logits(self.network, self.normalize(images))


class BankedModel(nn.Module):
    """M ordinary networks and a partition of their tensors into L layers.

    Nothing patches the architecture's own modules: a sampled model is a lookup, for each name the
    tensor of the bank that the plan chose. It starts in eval mode.

    Args:
        networks: M networks of one architecture, the banks.
        partition: The layers; it must cover the networks' tensors exactly.
        card: What else belongs in the checkpoint.

    Raises:
        RequestError: The partition does not fit, or the networks differ.
    """

    def __init__(self, networks: Sequence[nn.Module], partition: Partition, card: Card) -> None:
        super().__init__()
        partition.check_covers(networks[0])
        self.banks = nn.ModuleList(networks)
        self.normalize = Normalize(card.pixels)
        self.partition = partition
        self.card = card
        self.path: str | None = None  # of the checkpoint it was loaded from, for the record
        self.warnings: tuple[str, ...] = ()  # what a reader of its numbers must know
        self.foldable: tuple[tuple[str, str], ...] | None = None  # once `folding` has looked
        self.layouts: dict[bool, torch.memory_format] = {}  # in training or not: as `layout` found
        self.batching: dict[str, bool] = {}  # as `defenses.stochastic` found
        self._share(partition.shared)
        self._names = [tuple(tensor_names(network)) for network in networks]
        if any(names != self._names[0] for names in self._names):
            raise RequestError("the banks are not of one architecture")
        first_paths = dict(networks[0].named_modules())
        self._places = [n for n in self._names[0] if n.rpartition(".")[0] in first_paths]
        self._listens = any(map(_listens, networks[0].modules()))
        self._check_constants()
        _check_probabilities(card.bank_probs, len(networks))
        self.eval()

    @property
    def num_banks(self) -> int:
        """M."""
        return len(self.banks)

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.partition.layers)

    @property
    def reading(self) -> Reading:
        """How the networks' answers are read."""
        found = reading_of(self.banks[0], self.card.output_key, self.card.outputs)
        return replace(found, lone_twice=self.lone_twice)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = itertools.chain(self.banks.parameters(), self.banks.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def bank_tensors(self) -> list[dict[str, Tensor]]:
        """Return, per bank, every parameter and persistent buffer by its state-dict name."""
        return [tensor_names(bank) for bank in self.banks]

    def tensors(self, plan: Tensor) -> dict[str, Tensor]:
        """Return the sampled model's tensors by name: those of the bank that `plan` chose.

        Args:
            plan: Long `[L]`, one bank index per layer.

        Raises:
            RequestError: The plan has another length or names a bank that is not there.
        """
        choice = self._checked(plan)
        banks = self.bank_tensors()
        chosen = {name: banks[0][name] for name in self.partition.shared}
        for layer, bank in zip(self.partition.layers, choice, strict=True):
            chosen.update((name, banks[bank][name]) for name in layer.tensors)
        return chosen

    def forward(self, images: Tensor, plan: Tensor) -> Tensor:
        """Return a sampled model's logits `[B, classes]` with gradients to its weights.

        What the pass changes or replaces of its buffers is so in the chosen banks afterwards.

        Args:
            images: `[B, C, H, W]` in [0, 1].
            plan: Long `[L]`.
        """
        chosen = self.tensors(plan)
        # functional_call would not restore a module that is registered twice and named twice.
        once = {name: chosen[name] for name in self._places}
        self._forget_derived()
        run = partial(functional_call, self.banks[0], once, tie_weights=False)
        with own_code(len(images)):
            logits = self.reading.logits(run, self.normalize(images))
        self._keep_replaced(chosen, once, plan)
        self._forget_derived()
        return logits

    def sampled(self, plan: Tensor) -> Classifier:
        """Return the sampled model as a module of its own that shares the banks' storage."""
        chosen = self.tensors(plan)
        self._forget_derived()
        memo: dict[int, Any] = {}
        for name, tensor in tensor_names(self.banks[0]).items():
            shared = chosen[name].detach()
            if shared.is_inference():  # made under inference_mode: no gradient goes through it
                shared = shared.clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(shared, requires_grad=False) if is_parameter else shared
        network, normalize = duplicate(self.banks[0], memo), duplicate(self.normalize)
        return Classifier(network, cast(Normalize, normalize), self.reading)

    @functools.cached_property
    def lone_twice(self) -> bool:
        """Whether a `squeeze()` of the network drops the batch axis of a lone image with others."""
        if self.card.architecture.source in LIBRARIES:
            return False  # timm and torchvision flatten
        rng = torch.Generator().manual_seed(0)
        images = torch.rand(2, *self.card.pixels.shape, generator=rng).to(self.device)
        network = duplicate(self.banks[0])
        network.eval()
        reading = reading_of(network, self.card.output_key, self.card.outputs)

        def answers(count: int) -> bool:
            try:
                return reading.logits(network, self.normalize(images[:count])).ndim == 2
            except Exception:  # whatever one's own code raises without a batch axis
                return False

        with heard(), torch.no_grad(), kept(sources_of(self.banks[0])):
            return not answers(1) and answers(2)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BankedModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._share(self.partition.shared)  # moving a module gives it buffers of its own
        return self

    def _checked(self, plan: Tensor) -> list[int]:
        given = torch.as_tensor(plan)
        whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
        choice: list[int] = given.tolist()
        if (
            not whole
            or given.shape != (self.num_layers,)
            or not (set(choice) <= set(range(self.num_banks)))
        ):
            raise RequestError(
                f"a plan is {self.num_layers} bank indices below {self.num_banks}, not {choice}"
            )
        return choice

    def _forget_derived(self) -> None:
        """Let bank 0 forget what it computed from its weights and kept.

        LevIT and its kin keep their attention biases from one forward pass in eval mode to the
        next, and drop them when they are told to train: another plan would be answered with them.
        """
        if self._listens and not self.banks[0].training:
            self.banks[0].train()
            self.banks[0].eval()

    def _keep_replaced(
        self, chosen: dict[str, Tensor], now: dict[str, Tensor], plan: Tensor
    ) -> None:
        """Give the chosen banks what a pass put in the place of their tensors, as a network would.

        Running statistics of one's own are written so: `self.mean = 0.9 * self.mean + 0.1 * seen`.
        """
        replaced = [name for name, tensor in now.items() if tensor is not chosen[name]]
        if not replaced:
            return
        layers = zip(self.partition.layers, self._checked(plan), strict=True)
        bank_of = {name: bank for layer, bank in layers for name in layer.tensors}
        for name in replaced:
            path, _, leaf = name.rpartition(".")
            new = now[name]
            new = new if isinstance(new, nn.Parameter) else new.detach()
            setattr(self.banks[bank_of.get(name, 0)].get_submodule(path), leaf, new)
        self._share(self.partition.shared)

    def _check_constants(self) -> None:
        """Require the buffers that no file keeps to be equal: every plan runs on bank 0's."""
        constants = [
            {name: buffer for name, buffer in bank.named_buffers() if name not in self._names[0]}
            for bank in self.banks
        ]
        for bank in constants[1:]:
            for name, buffer in constants[0].items():
                if not (buffer.is_meta or torch.equal(buffer, bank[name])):
                    raise RequestError(
                        f"the buffer {name} is random, but register_buffer was told not to save "
                        "it; make it persistent, so that each bank keeps its own"
                    )

    def _share(self, names: Sequence[str]) -> None:
        """Let all banks hold bank 0's tensors under `names`."""
        for name in names:
            path, _, leaf = name.rpartition(".")
            tensor = getattr(self.banks[0].get_submodule(path), leaf)
            for bank in list(self.banks)[1:]:
                setattr(bank.get_submodule(path), leaf, tensor)  # an LSTM keeps a list of them too


def _listens(module: nn.Module) -> bool:
    """Whether a module does something of its own when it is told to train or not to."""
    kind = type(module)
    own = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return own or not vars(module).keys().isdisjoint(("train", "eval"))


def _check_probabilities(bank_probs: Sequence[float], banks: int) -> None:
    if not bank_probs:
        return
    total = sum(bank_probs)
    if len(bank_probs) != banks or not min(bank_probs) >= 0 or not abs(total - 1) < 1e-6:
        raise RequestError(
            f"`bank_probs` needs {banks} probabilities that add up to 1, not {list(bank_probs)}"
        )
