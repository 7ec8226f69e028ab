"""AutoAttack: APGD on two losses, FAB and Square, each on the images that no former one fooled.

Croce & Hein 2020 (https://arxiv.org/abs/2003.01690), at the settings of that paper. (torchattacks
3.5.1's class of that name runs APGD and FAB for 10 steps, not 100: a weaker attack under the same
name.)

Shapes: B images, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rlskit.attacks.apgd import apgd_passes, apgd_t_passes, ascents, targeted_ascents
from rlskit.attacks.attempts import Attempt, Found, best_of
from rlskit.attacks.fab import fab, fab_passes
from rlskit.attacks.passes import Passes, Setting
from rlskit.attacks.square import searches, square_passes
from rlskit.pixels import perturbation_norms

TARGETS = 9
"""Number of target classes of the targeted attacks, at most K - 1."""

RAND_SAMPLES = 20
"""Calls of the model per gradient step of the version `rand`."""


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    version: str = "standard",
    steps: int = 100,
    queries: int = 5000,
    rest: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """Run AutoAttack.

    `standard`: APGD on cross-entropy, targeted APGD, targeted FAB, Square. The targeted DLR loss
    needs four classes; with three, APGD on DLR and FAB against all classes stand in for the
    targeted attacks, with two, FAB alone. `rand`, for a model that answers each call differently:
    APGD on cross-entropy and on DLR (left out with two classes), each step on 20 calls.

    Args:
        model: Maps images to logits or log-probabilities `[B, K]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        norm: Of the ball, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        version: `standard` or `rand`.
        steps: Steps of each run of APGD and FAB; fewer than 100 are not AutoAttack.
        queries: Queries of Square; fewer than 5000 are not AutoAttack.
        rest: As for `rlskit.attacks.apgd.apgd`.
        generator: Its seed is that of all random numbers.

    Returns:
        Where some attack fooled the model, its point; elsewhere the point of highest cross-entropy
        that the first one found; where the model errs on the image itself, that image.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    samples = RAND_SAMPLES if version == "rand" else 1

    def attempts(classes: int) -> list[Attempt]:
        def ascend(loss: str) -> list[Attempt]:
            return ascents(
                model, loss=loss, restarts=1, norm=norm, eps=eps, steps=steps, rho=0.75,
                eot_samples=samples, rest=rest, generator=generator,
            )  # fmt: skip

        second = ascend("dlr") if classes >= 3 else []
        if version == "rand":
            return _first_places_survivors(ascend("ce") + second)
        targets = _targets(classes)
        if targets:
            second = targeted_ascents(
                model, targets=targets, restarts=1, norm=norm, eps=eps, steps=steps, rho=0.75,
                eot_samples=1, rest=rest, generator=generator,
            )  # fmt: skip
        boundary = _boundary(model, norm, eps, steps, targets, generator)
        black_box = searches(
            model, norm=norm, eps=eps, steps=queries, p_init=0.8, loss="margin", restarts=1,
            generator=generator,
        )  # fmt: skip
        return _first_places_survivors([*ascend("ce"), *second, boundary, *black_box])

    return best_of(model, images, labels, attempts, samples)


def _targets(classes: int) -> int:
    """Return the number of target classes; 0 where the targeted loss does not exist."""
    return min(TARGETS, classes - 1) if classes >= 4 else 0


def autoattack_passes(
    setting: Setting, *, version: str, steps: int, queries: int, **_: object
) -> Passes:
    """Count what `autoattack` asks for where it never fools the model, or a little more."""
    losses = 2 if setting.classes >= 3 else 1
    if version == "rand":
        return apgd_passes(setting, steps=steps, restarts=losses, eot_samples=RAND_SAMPLES)
    targets = _targets(setting.classes)
    untargeted = 1 if targets else losses
    run = {"steps": steps, "restarts": 1, "eot_samples": 1, "target_classes": targets}
    return (
        apgd_passes(setting, steps=steps, restarts=untargeted, eot_samples=1)
        .and_then(apgd_t_passes(setting, **run))
        .and_then(fab_passes(setting, **run))
        .and_then(square_passes(setting, steps=queries, restarts=1))
    )


def _boundary(
    model: nn.Module, norm: str, eps: float, steps: int, targets: int, generator: torch.Generator
) -> Attempt:
    """Return FAB as an attempt: it succeeds where its nearest fooling point is inside the ball."""

    def run(images: Tensor, labels: Tensor) -> Found:
        found = fab(
            model, images, labels, norm=norm, steps=steps, target_classes=targets, enough=eps,
            generator=generator,
        )  # fmt: skip
        distance = perturbation_norms(images, found)[norm]
        failed = distance == 0  # FAB gives back the very image
        return Found(found, -distance.to(images), ~failed & (distance <= eps))

    return run


def _first_places_survivors(attempts: list[Attempt]) -> list[Attempt]:
    """Let only the first attempt choose the point of an image that none of them fools."""

    def if_fooled(attempt: Attempt) -> Attempt:
        def run(images: Tensor, labels: Tensor) -> Found:
            found = attempt(images, labels)
            return replace(found, loss=torch.full_like(found.loss, float("-inf")))

        return run

    return [attempts[0], *map(if_fooled, attempts[1:])]
