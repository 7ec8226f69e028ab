"""A few images through everything before an attack: would the result mean what it says?

Design, section 4. Always on and a matter of seconds. A failure is exit 4, because the numbers that
would follow could not be trusted: NaN logits count neither as fooled nor as robust.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlskit.attacks import ATTACKS, PreparedAttack
from rlskit.attacks.guard import require_path, slope_of
from rlskit.attacks.losses import GRAY_LEVEL, LOSSES, trail, unfollowable
from rlskit.errors import UntrustedError
from rlskit.models.banks import BankedModel
from rlskit.models.outputs import in_unit_range
from rlskit.models.streams import varies
from rlskit.pixels import check_images

IMAGES = 4
"""Images that the preflight looks at."""

LOOKED_AT = 64
"""At most so many images are looked at for masked gradients."""

_AGAIN = 8
"""So often a lone image is answered alike, where no random number is seen to be drawn."""

_ABOVE = 16
"""So many times what rounding may do, a change of logits must be to be compared with another."""

_TF32 = 2**-10
"""What a GPU may round the numbers to that a convolution multiplies."""

_TO_TELL = 16
"""Of fewer images no correlation is told."""

ASTRAY = 0.6
"""Up to this correlation, a gradient tells too little; networks without tricks are near 0.9."""

BATCH_MATES = 1e-3
"""Change of a logit among other images, as a share of the largest, that is still rounding; more in
half precision."""


@torch.no_grad()
def check_weights(model: BankedModel) -> None:
    """Require finite weights.

    Raises:
        UntrustedError: A tensor holds NaN or infinity; it is named.
    """
    for bank, tensors in enumerate(model.bank_tensors()):
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise UntrustedError(
                    f"the weights are not finite: {name} of bank {bank} holds NaN or infinity; "
                    "the result would mean nothing"
                )


def check_answers(draw: nn.Module, images: Tensor, classes: int, outputs: str = "") -> None:
    """Require finite logits `[B, classes]` that a draw repeats exactly, and gives a lone image too.

    Of two classes at least: who has one cannot be wrong.

    Args:
        draw: One of the defender's.
        images: `[B, C, H, W]` in [0, 1].
        classes: Number of classes.
        outputs: What the answers are known to be, one of `OUTPUTS`; "" where nobody said.

    Raises:
        UntrustedError: They are something else.
    """
    check_images(images)
    with torch.no_grad():
        first = draw(images)
    if first.shape != (len(images), classes):
        raise UntrustedError(
            f"the model answers with shape {list(first.shape)}, not [{len(images)}, {classes}]"
        )
    if classes < 2:
        raise UntrustedError(
            "the model has one class, which no image can be turned from, so no number of it means "
            "anything; let it answer with two, also where one output was meant for both"
        )
    if not first.isfinite().all():
        raise UntrustedError("the model answers with NaN or infinite logits")
    if not outputs and in_unit_range(first):
        raise UntrustedError(
            "every answer of the model lies in [0, 1], as a sigmoid's or a softmax's would, and "
            "attacks need logits; say what they are: convert it with `outputs` 'sigmoid', "
            "'probabilities' or 'logits'"
        )
    with torch.no_grad():
        random = varies(draw, lambda: draw(images)) or _wavers(draw, images[:1])
    if random:
        raise UntrustedError(
            "the model claims no randomness but answers the same images differently each time; "
            "convert it with `defense='stochastic'`, or switch its noise off in eval mode"
        )
    with torch.no_grad():  # each: what looks at the batch, or draws noise for it, may spare some
        alone = torch.cat([draw(image) for image in torch.split(images, 1)])
    changed = (alone - first).abs().amax(1) > rounding(draw) * first.abs().max()
    if 2 * changed.sum() >= len(images):  # of a network with steps, rounding moves one now and then
        raise UntrustedError(
            "the model answers an image differently among others than alone, so no number of it "
            "is its own; does BatchNorm keep no running statistics, or is noise drawn by the place "
            "in the batch?"
        )


def _wavers(draw: nn.Module, image: Tensor) -> bool:
    """Say whether a draw answers an image otherwise once in a while.

    Its random numbers may come from where nobody sees it, as from the system or a new generator.
    """
    first = draw(image)
    return any(not torch.equal(draw(image), first) for _ in range(_AGAIN))


def rounding(draw: nn.Module) -> float:
    """Return the change of a logit that is still rounding, as a share of the largest logit."""
    floating = (p.dtype for p in draw.parameters() if p.is_floating_point())
    return max(BATCH_MATES, 8 * torch.finfo(next(floating, torch.float32)).eps)


def check_gradients(view: nn.Module, images: Tensor, labels: Tensor, loss: str) -> None:
    """Require gradients of the loss at the images that are finite and can be followed somewhere.

    Raises:
        UntrustedError: They are not: an attack would fail silently.
    """
    logits, gradient = _first_gradients(view, images, labels, loss)
    if not gradient.isfinite().all():
        raise UntrustedError("the gradients at the images are NaN or infinite; no attack can work")
    if unfollowable(gradient, logits, loss).all():
        raise UntrustedError(
            "the gradients at the images are all zero, or less than rounding leaves, so gradient "
            "attacks cannot work; the model masks them: does it end in a softmax or sigmoid?"
        )


def masked_gradients(
    view: nn.Module, images: Tensor, labels: Tensor, loss: str, *, targeted: bool = False
) -> Tensor:
    """Say at which images the attack has still to work, without a gradient to follow, bool `[B]`.

    As where a softmax saturates: an attack on that loss cannot leave them, or wanders, and they
    would count as robust.

    Args:
        view: What the attacker sees.
        images: `[B, C, H, W]` in [0, 1].
        labels: `[B]`; the classes to reach when `targeted`.
        loss: A key of `LOSSES`.
        targeted: Whether the view is to be moved to the labels, not away from them.
    """
    logits, gradient = _first_gradients(view, images, labels, loss)
    return unfollowable(gradient, logits, loss) & ((logits.argmax(1) == labels) != targeted)


def truth_of_gradients(
    seen: Callable[[], nn.Module], images: Tensor, labels: Tensor, dtype: torch.dtype
) -> float | None:
    """Say how the margin changes beside what its gradient tells, as a correlation over images.

    It is near 1 where the gradient is that of what is computed. Of a custom backward, of a part
    under `no_grad`, or where answers jump, it is not, and an attack that follows it goes astray.

    Args:
        seen: Gives what the attacker sees, the same at each call.
        images: `[B, C, H, W]` in [0, 1].
        labels: `[B]`.
        dtype: Of what the network computes.

    Returns:
        None where a random gray level in each pixel changes too few images by more than rounding.
    """
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(0))
    step = GRAY_LEVEL * (2 * signs - 1).to(images)
    points = images.clamp(GRAY_LEVEL, 1 - GRAY_LEVEL)
    logits, gradient = _first_gradients(seen(), points, labels, "margin")
    with torch.no_grad():
        up, down = (trail(seen()(points + side * step), labels) for side in (1, -1))
    told = (gradient * step).flatten(1).double().sum(1)
    precision = max(torch.finfo(dtype).eps, _TF32 if images.is_cuda else 0)
    size = GRAY_LEVEL * gradient.flatten(1).double().norm(dim=1)
    some = size > _ABOVE * precision * logits.detach().abs().amax(1)
    if some.sum() < _TO_TELL:
        return None
    told, found = (one[some] / size[some] for one in (told, (up - down).double() / 2))
    return float(told @ found / (told.norm() * found.norm()).clamp_min(GRAY_LEVEL**9))


def check_confidence(attack: PreparedAttack, view: nn.Module, images: Tensor) -> None:
    """Require logits that can differ by as much as the attack wants them to.

    Raises:
        UntrustedError: They do not, so that it would fail whatever it found.
    """
    kappa = attack.params.get("kappa", 0)
    with torch.no_grad():
        logits = view(images)
    widest = float((logits.amax(1) - logits.amin(1)).max())
    if kappa > widest:
        raise UntrustedError(
            f"{attack.method} wants another class to lead by `kappa={kappa:.3g}`, and the logits "
            f"at the first images differ by {widest:.2g} at most, so nothing it finds would count; "
            "give a smaller `kappa`, and `search_steps=9` for a `c` in the scale of these logits"
        )


def _first_gradients(
    view: nn.Module, images: Tensor, labels: Tensor, loss: str
) -> tuple[Tensor, Tensor]:
    points = images.detach().clone().requires_grad_()
    logits = view(points)
    require_path(logits)
    return logits, slope_of(LOSSES[loss](logits, labels).sum(), points)


def check_attack(attack: PreparedAttack, view: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Require that a short run of the attack keeps its budget, and that eps 0 changes nothing.

    Raises:
        UntrustedError: The attack breaks its budget, or moves pixels without one.
    """
    short = attack.short
    short(view, images, labels, generator=torch.Generator().manual_seed(0))
    if attack.eps is None:
        return
    without_budget = dataclasses.replace(short, params={**short.params, "eps": 0.0})
    still = without_budget(view, images, labels, generator=torch.Generator().manual_seed(0))
    if not torch.equal(still, images):
        raise UntrustedError(f"{attack.method} changes images although its budget is 0")


def preflight(
    model: BankedModel,
    draw: nn.Module,
    view: nn.Module,
    attack: PreparedAttack,
    images: Tensor,
    labels: Tensor,
) -> None:
    """Run every check on the first images of a data set.

    Args:
        model: The defended model.
        draw: One of the defender's draws.
        view: What the attacker sees.
        attack: The attack that is to run.
        images: `[B, C, H, W]` in [0, 1]; the first `IMAGES` are used.
        labels: `[B]`.

    Raises:
        UntrustedError: A check failed; the sentence says which.
    """
    images, labels = images[:IMAGES], labels[:IMAGES]
    check_weights(model)
    check_answers(draw, images, model.card.classes, model.card.outputs)
    if ATTACKS[attack.method].needs == "gradients":
        check_gradients(view, images, labels, attack.loss)
        check_confidence(attack, view, images)
    check_attack(attack, view, images, labels)
