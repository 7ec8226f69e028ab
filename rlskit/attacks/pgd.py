"""PGD and its kin: iterated gradient ascent in a ball. BIM, MI-FGSM, EOT-PGD are settings of it.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlskit.attacks.ball import TINY, direction, inside, noise_inside
from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import Objective, gradient, objective, scaled, trail
from rlskit.attacks.passes import Passes, Setting
from rlskit.models.gradient_precision import precise_at_last


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float = 0.01,
    steps: int = 10,
    step_size: float | None = None,
    loss: str = "ce",
    momentum: float = 0.0,
    random_start: bool = True,
    restarts: int = 1,
    eot_samples: int = 1,
    targeted: bool = False,
    start: Tensor | None = None,
    steepest: bool = True,
    ascended: Objective | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Step along the gradient's direction, project onto the ball and the box; return the last.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks"
    (https://arxiv.org/abs/1706.06083); with `momentum` Dong et al. 2018
    (https://arxiv.org/abs/1710.06081). On `ce-saturating` and from the same start it is bit-equal
    to torchattacks 3.5.1; the start is a function of the image and the seed, where torchattacks' is
    one of the image's place in the batch.

    Args:
        model: Maps images to logits or log-probabilities `[B, classes]`.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`; the classes to reach when `targeted`.
        norm: Of the ball and of a step, `linf` or `l2`.
        eps: Radius of the ball, in [0, 1] units.
        steps: Number of steps.
        step_size: Length of a step; None for `eps / 10` (section 4.2 of the RLS paper).
        loss: A key of `rlskit.attacks.losses.LOSSES`.
        momentum: Decay of the sum of past gradients, each divided by its mean absolute value.
        random_start: Start at a random point of the ball.
        restarts: Runs per image; the one that ends with the least margin is returned.
        eot_samples: Calls of the model whose mean loss a step ascends.
        targeted: Descend towards the labels instead.
        start: Points of the ball to go on from, instead of random ones.
        steepest: Step along what raises the loss most within the norm; else along what does so
            within the other: in linf the gradient itself, in l2 its sign.
        ascended: What to ascend in place of `loss`.
        generator: Its seed is that of the random starts.

    Returns:
        Adversarial images in [0, 1].

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    stride = eps / 10 if step_size is None else step_size
    ascended = ascended or objective(loss, targeted)

    def run(restart: int) -> Tensor:
        x = (images if start is None else start).detach()
        if random_start and start is None:
            x = (x + noise_inside(images, norm, eps, generator, restart)).clamp(0, 1)
        velocity = torch.zeros_like(x)
        for step in range(steps):
            with precise_at_last(step, steps):
                slope = gradient(model, x, labels, ascended, eot_samples)
            if momentum:
                slope = scaled(slope)
                slope = slope / slope.abs().mean((1, 2, 3), keepdim=True).clamp_min(TINY)
                velocity = slope = slope + momentum * velocity
            moved = x + direction(slope, norm, steepest).mul_(stride)
            x = inside(images, moved, norm, eps)
        return x

    with under_attack(model):
        best = run(0)
        for restart in range(1, restarts):
            best = _more_harmful(model, best, run(restart), labels, targeted)
    return best


def pgd_passes(_: Setting, *, steps: int, restarts: int, eot_samples: int, **__: object) -> Passes:
    """Count what `pgd` asks for; every further run is compared with the best."""
    gradients = restarts * steps * eot_samples
    return Passes(gradients + 2 * (restarts - 1), gradients)


@torch.no_grad()
def _more_harmful(
    model: nn.Module, first: Tensor, second: Tensor, labels: Tensor, targeted: bool
) -> Tensor:
    """Return, per image, the one whose margin is worse for the defender."""
    sign = -1 if targeted else 1
    harm = [sign * trail(model(x), labels) for x in (first, second)]
    return torch.where((harm[1] > harm[0])[:, None, None, None], second, first)
