"""M12, the binarization test: does the attack solve a problem that is known to have a solution?

Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations"
(https://arxiv.org/abs/2206.13991). Around an image, many points well inside the ball are labelled 0
and one of its corners 1; a linear readout of the network's features is fitted that tells them
apart. The same attack then has to move the image to class 1, which the corner shows is possible.

Differences to the paper: 200 inner points, not 999; each problem has one corner. The features are
what the last linear layer reads; a network that has none gives its logits.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlskit import seeds
from rlskit.attacks import PreparedAttack
from rlskit.attacks.guard import under_attack
from rlskit.audit.case import Case
from rlskit.audit.chance import clearly_more_than
from rlskit.audit.defended import attacked, is_random, randomness
from rlskit.audit.measurement import Measurement
from rlskit.seeds import Purpose

IMAGES = 24
INNER = 200
LEAST_PROBLEMS = 8

INNER_RADIUS = 0.95
"""Of the inner points, in eps."""

MISSED = 0.05
"""Share of the problems that an attack may miss; the paper's threshold."""

TOO_EASY = 0.5
"""Share of the problems that noise solves beyond which solving them shows nothing."""


class Features(nn.Module):
    """A network's features: what its last linear layer reads, else its logits."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network = network
        self._seen: list[Tensor] = []
        self._last = self._last_linear(images)

    @property
    def are_logits(self) -> bool:
        """Whether no linear layer was found."""
        return self._last is None

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to features `[B, F]`."""
        if self._last is None:
            logits: Tensor = self.network(images)
            return logits
        self._seen.clear()
        hook = self._last.register_forward_pre_hook(self._note)
        try:
            self.network(images)
        finally:
            hook.remove()
        seen = torch.cat([seen.flatten(1) for seen in self._seen])  # a piece each
        # A lone last image may have been shown twice; some networks compute in other precisions.
        return seen[: len(images)].float()

    def _note(self, module: nn.Module, inputs: tuple[Tensor]) -> None:  # noqa: ARG002
        self._seen.append(inputs[0])

    @torch.no_grad()
    def _last_linear(self, images: Tensor) -> nn.Module | None:
        if not all(getattr(part, "is_observable", True) for part in self.network.modules()):
            return None
        called: list[nn.Module] = []
        hooks = [
            part.register_forward_pre_hook(lambda part, _: called.append(part))
            for part in self.network.modules()
            if isinstance(part, nn.Linear)
        ]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return called[-1] if called else None


class Readout(nn.Module):
    """A binary classifier: a linear readout of features, as two logits."""

    def __init__(self, features: Features, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.features = features
        self.weight = weight
        self.bias = bias

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]` to `[B, 2]`."""
        score = self.features(images) @ self.weight + self.bias
        return torch.stack([-score, score], 1) / 2


def binarize(case: Case) -> Measurement:
    """M12: share of the solvable problems that the attack solves, in %."""
    network = attacked(case.defended.one())
    if is_random(network, case.images[:1], case.seed):
        return Measurement.skip("one draw of the model is random, so that no readout fits it")
    attack, features = _for_two_classes(case), Features(network, case.images[:1])
    count = min(IMAGES, len(case.images))
    with randomness(case.seed, Purpose.BINARIZATION, case.images.device):
        found = [_solved(case, features, attack, index) for index in range(count)]
    tried = [one for one in found if one is not None]
    if len(tried) < LEAST_PROBLEMS:
        return Measurement.skip(
            f"only {len(tried)} of {count} problems could be built: the readout does not tell a "
            "corner from inner points"
        )
    solved, by_noise = (sum(one[i] for one in tried) for i in range(2))
    what = "logits" if features.are_logits else "features"
    detail = f"{solved} of {len(tried)} problems on {what}; noise solves {by_noise}"
    if by_noise > TOO_EASY * len(tried):
        return Measurement.skip(f"{detail}: too easy to show anything")
    failed = clearly_more_than(len(tried) - solved, len(tried), MISSED)
    return Measurement(100 * solved / len(tried), failed, detail)


def _for_two_classes(case: Case) -> PreparedAttack:
    """Return the attack under audit, with a loss that two classes have."""
    return case.attack.with_loss("margin") if case.attack.loss == "dlr" else case.attack


def _solved(
    case: Case, features: Features, attack: PreparedAttack, index: int
) -> tuple[bool, bool] | None:
    """Return whether the attack and noise solve one image's problem; None if it is none."""
    image = case.images[index : index + 1]
    generator = seeds.generator(case.seed, Purpose.BINARIZATION, index)
    inner = image + INNER_RADIUS * case.eps * _uniform((INNER, *image.shape[1:]), generator, image)
    corner = image + case.eps * _uniform(image.shape, generator, image).sign()
    tries = image + case.eps * _uniform((INNER // 10, *image.shape[1:]), generator, image)
    known = torch.cat([image, inner, corner]).clamp(0, 1)
    with torch.no_grad(), under_attack(features):
        seen = torch.cat([features(some) for some in torch.split(known, case.batch_size)]).double()
    fitted = _fit(seen.detach().cpu().numpy())
    if fitted is None:
        return None
    weight, bias = (torch.as_tensor(part).to(image) for part in fitted)
    readout = Readout(features, weight, bias)
    zero = torch.zeros(1, dtype=torch.long, device=image.device)
    moved = attack(readout, image, zero, generator=seeds.generator(case.seed, Purpose.ATTACK))
    with torch.no_grad(), under_attack(readout):
        answers = readout(torch.cat([image, moved, tries.clamp(0, 1)])).argmax(1).bool()
    if answers[0]:
        return None  # rounding: the image itself must be of class 0
    return bool(answers[1]), bool(answers[2:].any())


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float32) - 1).to(like)


def _fit(seen: NDArray[np.float64]) -> tuple[NDArray[np.float64], np.float64] | None:
    """Return weight `[F]` and bias of a readout that only the last row is above 0 for, or None.

    Its boundary lies midway between that row and the highest other one. It is as smooth as the
    default regularisation makes it: a readout that singles the corner out at any price makes
    problems that no attack solves (15 of 24 on an honest network, where this one has 24).
    """
    from sklearn.linear_model import LogisticRegression

    centre, spread = seen.mean(0), seen.std(0) + 1e-12
    labels = np.zeros(len(seen), dtype=np.int64)
    labels[-1] = 1
    model = LogisticRegression(class_weight="balanced", max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether it converged, its answers say
        model.fit((seen - centre) / spread, labels)
    weight = model.coef_[0] / spread
    scores = seen @ weight
    highest, lead = scores[:-1].max(), scores[-1] - scores[:-1].max()
    if not lead > 1e-4 * (np.abs(scores).max() + 1):
        return None
    return weight / lead, -(highest + lead / 2) / lead
