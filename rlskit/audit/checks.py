"""The checks M1 to M13: what each measures, and when that is more than chance.

Thresholds are those of AutoAttack's checks.py (M2, M11) and of Zimmermann et al. 2022 (M12), and
else defaults of ours in the spirit of Athalye et al. 2018 (https://arxiv.org/abs/1802.00420) and of
Carlini et al. 2019 (https://arxiv.org/abs/1902.06705).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.attacks import ATTACKS, PreparedAttack, prepare
from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import gradient, objective, trail, unfollowable
from rlskit.attacks.pgd import pgd
from rlskit.attacks.randomness import image_generators, uniform
from rlskit.audit.binarization import binarize
from rlskit.audit.case import Case
from rlskit.audit.chance import A_FEW, clearly_above, clearly_more_than, points
from rlskit.audit.defended import SHOWN, VARIATION, attacked, influence, randomness, variation
from rlskit.audit.measurement import Measurement
from rlskit.errors import UntrustedError
from rlskit.seeds import Purpose

LARGE = 0.5
"""A budget that can make every image gray."""

GRAY_LEVEL = 1 / 255
"""Smallest change of an 8-bit pixel, in [0, 1]."""

EOT_DRAWS = 20
GRADIENT_SETS = 4
GRADIENT_IMAGES = 32


@dataclass(frozen=True)
class Kind:
    """What is known of one check.

    Attributes:
        title: What should hold.
        threshold: The measurement beyond which it does not, in `unit`.
        unit: See `rlskit.audit.audit_result.Check`.
        measure: case -> measurement.
        passed: What it means that it holds.
        failed: What it means that it does not, and what to do; see `rlskit.audit.advice`.
    """

    title: str
    threshold: float
    unit: str
    measure: Callable[[Case], Measurement]
    passed: str
    failed: str


def one_step(case: Case) -> Measurement:
    """M1: accuracy under the attack minus that under FGSM, in points."""
    fgsm = case.under(prepare("fgsm", eps=case.eps))
    return _difference(case, "FGSM", fgsm, CHECKS["M1"].threshold)


def black_box(case: Case) -> Measurement:
    """M2: accuracy under the attack minus the lower of those under Square and transfer."""
    square = prepare("square", eps=case.eps, steps=case.queries)
    found = [_difference(case, "Square", _right_under(case, square), CHECKS["M2"].threshold)]
    if case.surrogate is not None:
        moved = case.under(case.attack, case.surrogate)
        found.append(_difference(case, "transfer", moved, CHECKS["M2"].threshold))
    worst = max(found, key=lambda one: (one.failed, one.value or 0))
    return Measurement(worst.value, worst.failed, "; ".join(one.detail for one in found))


def large_budget(case: Case) -> Measurement:
    """M3: accuracy at eps 0.5 above that of guessing, in points, the worse of two losses."""
    right = _worst_case(case, LARGE)
    chance, accuracy = 1 / case.classes, float(right.double().mean())
    failed = clearly_more_than(int(right.sum()), len(right), chance + CHECKS["M3"].threshold / 100)
    detail = f"{100 * accuracy:.1f} % at eps {LARGE}, guessing {100 * chance:.1f} %"
    return Measurement(100 * (accuracy - chance), failed, detail)


def falling(case: Case) -> Measurement:
    """M4: largest rise of accuracy from one budget to the next larger one, in points."""
    budgets = [0.0, case.eps / 2, case.eps, min(1.0, 2 * case.eps)]
    middle = case.under(case.attack_with(eps=budgets[1]))
    curve = [case.clean, middle, case.robust, case.under(case.attack_with(eps=budgets[3]))]
    pairs = list(itertools.pairwise(curve))
    rise = max(points(larger, smaller) for smaller, larger in pairs)
    failed = any(clearly_above(b, a, CHECKS["M4"].threshold) for a, b in pairs)
    detail = ", ".join(
        f"{_percent(right)} at {eps:.2g}" for eps, right in zip(budgets, curve, strict=True)
    )
    if case.eps < GRAY_LEVEL and torch.equal(curve[3], case.clean):
        return Measurement(
            rise, True, f"{detail}; eps {case.eps:.2g} is below one gray level: divided by 255 "
            "twice? images are in [0, 1]",
        )  # fmt: skip
    return Measurement(rise, failed, detail)


def more_effort(case: Case) -> Measurement:
    """M5: points lost to ten times the steps, or to five restarts, by the worse of both."""
    efforts = {
        "steps x 10": case.attack_with(steps=10 * case.attack.params["steps"]),
        "restarts x 5": case.attack_with(restarts=5 * case.attack.params.get("restarts", 0)),
    }
    lost = {
        name: int((~case.under(attack, rows=case.survivors)).sum())
        for name, attack in efforts.items()
        if attack != case.attack
    }
    n, most = len(case.images), max(lost.values())
    failed = clearly_more_than(most, n, CHECKS["M5"].threshold / 100)
    detail = ", ".join(f"{name}: {count} more of {n} fooled" for name, count in lost.items())
    return Measurement(100 * most / n, failed, detail)


def random_search(case: Case) -> Measurement:
    """M6: images that the best of many random points fools, and the attack does not."""
    rows, view = case.survivors, case.fixed_view()
    images, labels = case.images[rows], case.labels[rows]
    best, harm = images.clone(), torch.full((len(rows),), -torch.inf, device=images.device)
    generator = seeds.generator(case.seed, Purpose.RANDOM_SEARCH)
    with randomness(case.seed, Purpose.RANDOM_SEARCH, images.device), under_attack(view):
        for point in range(case.points if len(rows) else 0):
            streams = image_generators(images, generator, Purpose.POINT, point)
            direction = uniform(images, streams)
            # the ball's corners are its farthest points; every other point is one
            delta = case.eps * (direction.sign() if point % 2 else direction)
            moved = (images + delta).clamp(0, 1)
            with torch.no_grad():
                loss = trail(view(moved), labels)
            better = loss > harm
            best[better], harm[better] = moved[better], loss[better]
    won = int((~case.right(best, rows)).sum()) if len(rows) else 0
    detail = f"{won} of {len(case.images)} images by {case.points} points each"
    return Measurement(float(won), clearly_more_than(won, len(case.images), A_FEW), detail)


def one_draw(case: Case) -> Measurement:
    """M7: accuracy under the attack minus that under the same one on 20 fresh draws a step."""
    if not case.is_random:
        return Measurement.skip("the model under attack has one draw")
    number = min(EOT_DRAWS, case.defended.draws or EOT_DRAWS)
    parts = [
        case.under(case.attack, case.defended.view("eot", number), rows)
        for rows in torch.split(case.everything, case.batch_size)
    ]
    return _difference(case, f"eot n={number}", torch.cat(parts), CHECKS["M7"].threshold)


def gradient_agreement(case: Case) -> Measurement:
    """M8: mean cosine between the gradients of independent views."""
    if not case.is_random:
        return Measurement.skip("the model under attack has one draw")
    images, labels = case.images[:GRADIENT_IMAGES], case.labels[:GRADIENT_IMAGES]
    with randomness(case.seed, Purpose.COSINE, images.device):
        slopes = [
            slope(case.view(repeat), images, labels, case.attack.loss).flatten(1).double()
            for repeat in range(GRADIENT_SETS)
        ]
    pairs = [torch.cosine_similarity(a, b, dim=1) for a, b in itertools.combinations(slopes, 2)]
    cosines = torch.stack(pairs).mean(0)
    mean = float(cosines.mean())
    error = float(cosines.std() / len(cosines) ** 0.5) if len(cosines) > 1 else 0.0
    detail = f"{mean:.2f} ± {error:.2f} between views of {case.n_attacked} draws"
    # one-sided, at 95 %
    failed = not mean + 1.645 * error >= CHECKS["M8"].threshold  # as NaN does
    return Measurement(mean, failed, detail)


def vanishing(case: Case) -> Measurement:
    """M9: share of the images whose gradient cannot be followed, or is NaN or infinite, in %."""
    loss, kinds = case.attack.loss, []
    with randomness(case.seed, Purpose.VANISHING, case.images.device):
        for rows in torch.split(case.everything, case.batch_size):
            view, images = case.view(), case.images[rows]
            found = slope(view, images, case.labels[rows], loss)
            with torch.no_grad(), under_attack(view):
                logits = view(images)
            zero = ~found.flatten(1).any(1)
            unusable = ~found.flatten(1).isfinite().all(1)
            faint = unfollowable(found, logits, loss)
            if loss != "margin":  # which other losses turn from where it is flat
                margin = slope(view, images, case.labels[rows], "margin")
                faint |= unfollowable(margin, logits, "margin")
            tiny = faint & ~zero & ~unusable
            kinds.append(torch.stack([zero, tiny, unusable]))
    counts = torch.cat(kinds, 1).sum(1).tolist()
    n = len(case.images)
    share = 100 * sum(counts) / n
    detail = "{} zero, {} less than rounding, {} not finite, of {} images".format(*counts, n)
    return Measurement(share, share > CHECKS["M9"].threshold, detail)


def smallest_budget(case: Case) -> Measurement:
    """M10: share of the images that some budget up to 1 fools, in %; each searched by fours."""
    left, eps, needed = case.survivors, case.eps, [case.eps] * int((~case.robust).sum())
    while len(left) and eps < 1:
        eps = min(1.0, 4 * max(eps, GRAY_LEVEL / 4))
        fooled = ~_worst_case(case, eps, left)
        needed += [eps] * int(fooled.sum())
        left = left[~fooled]
    n = len(case.images)
    detail = f"{n - len(left)} of {n} images"
    if needed:
        detail += f", half of them by eps {sorted(needed)[(len(needed) - 1) // 2]:.2g}"
    return Measurement(100 * (1 - len(left) / n), clearly_more_than(len(left), n, A_FEW), detail)


def randomness_seen(case: Case) -> Measurement:
    """M11: change of a logit over some calls, as the model answers and as it is attacked."""
    images, one = case.images[:SHOWN], case.defended.one()
    answering = variation(one, images, case.seed)
    under = variation(attacked(one), images, case.seed)
    detail = f"{answering:.2g} as it answers, {under:.2g} under attack"
    asked = ((one, answering), (attacked(one), under))
    mates = max(influence(f, images, case.seed, random=v > VARIATION) for f, v in asked)
    if mates > VARIATION:
        return Measurement(
            mates, True, f"{detail}; {mates:.2g} with other batch-mates",
            meaning="an image's answer depends on the images beside it, so no number is its own: "
            "was eval() forgotten, or does BatchNorm keep no running statistics?",
        )  # fmt: skip
    if answering > VARIATION >= under:
        return Measurement(
            answering, True, f"{detail}: eval mode, which attacks set, freezes the randomness"
        )
    if answering > VARIATION and case.protocol != "eot":
        return Measurement(answering, True, f"{detail}: protocol {case.protocol} ignores it")
    if answering <= VARIATION and _sleeps(one):
        detail += "; its dropout sleeps in eval mode"
    return Measurement(answering, False, detail)


def other_losses(case: Case) -> Measurement:
    """M13: accuracy under the attack minus the lowest under the same one on another loss or step.

    Signs are led by pixels whose gradients are small, gradients by those whose are great: a model
    can mislead either.
    """
    losses = ("ce", "margin", "dlr") if case.classes >= 3 else ("ce", "margin")
    threshold = CHECKS["M13"].threshold
    attacks = {
        f"on {loss}": case.attack.with_loss(loss) for loss in losses if loss != case.attack.loss
    }
    if case.attack.engine == "rlskit" and ATTACKS[case.attack.method].run is pgd:
        other = "signs" if case.attack.norm == "l2" else "gradients"
        attacks[f"with steps along {other}"] = replace(
            case.attack, params={**case.attack.params, "steepest": False}
        )
    found = [_difference(case, what, case.under(one), threshold) for what, one in attacks.items()]
    worst = max(found, key=lambda one: (one.failed, one.value or 0))
    others = [one.detail.partition(", ")[2] for one in found]
    return Measurement(
        worst.value, worst.failed,
        f"{case.attack.method} on {case.attack.loss} {_percent(case.robust)}, {', '.join(others)}",
    )  # fmt: skip


def slope(view: nn.Module, images: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Return the gradient of a loss at the images, `[B, C, H, W]`, whatever is wrong with it.

    It is zero where the logits do not depend on the images in a way that torch can follow.
    """
    found = torch.zeros_like(images)
    with suppress(UntrustedError), under_attack(view):
        found = gradient(view, images, labels, objective(loss))
    return found


def _sleeps(module: nn.Module) -> bool:
    return any("Dropout" in type(part).__name__ for part in module.modules())


def _worst_case(case: Case, eps: float, rows: Tensor | None = None) -> Tensor:
    """Return which images are right under the attack at a budget, on either loss."""
    found = [case.under(one, rows=rows) for one in case.attacks_with_losses(eps=eps)]
    return torch.stack(found).all(0)


def _right_under(case: Case, search: PreparedAttack) -> Tensor:
    return case.under(search, case.fixed_view())


def _difference(case: Case, name: str, other: Tensor, threshold: float) -> Measurement:
    """Return how much more accurate the model is under the attack under audit, in points."""
    detail = f"{case.attack.method} {_percent(case.robust)}, {name} {_percent(other)}"
    failed = clearly_above(case.robust, other, threshold)
    return Measurement(points(case.robust, other), failed, detail)


def _percent(right: Tensor) -> str:
    return f"{100 * float(right.double().mean()):.1f} %"


CHECKS: dict[str, Kind] = {
    "M1": Kind(
        "the attack is not weaker than one step", 1.0, "points", one_step,
        "iterating helps, as it must",
        "one step of FGSM does better: the step size, the number of steps or the gradients are "
        "wrong; give more `steps`{step_size}",
    ),
    "M2": Kind(
        "white-box is not weaker than black-box", 0.2, "points", black_box,
        "gradients find what queries find",
        "an attack without gradients does better: the model masks its gradients; report the "
        "worst case, and attack a differentiable copy of the model (BPDA)",
    ),
    "M3": Kind(
        "a large budget reaches chance", 2.0, "points", large_budget,
        "where every image can be made gray, accuracy is that of guessing",
        "with half the pixel range nobody can be right, so the attack is broken; no number from "
        "it means anything",
    ),
    "M4": Kind(
        "accuracy falls with eps", 1.0, "points", falling,
        "more budget, fewer right",
        "more budget may not help the defender: the attack has not converged, or eps is in the "
        "wrong scale",
    ),
    "M5": Kind(
        "more steps and restarts do not help", 2.0, "points", more_effort,
        "the attack has converged",
        "the attack stops early; give more {effort} until accuracy no longer falls",
    ),
    "M6": Kind(
        "random search does not win", 0.0, "images", random_search,
        "the attack finds what chance finds",
        "random points fool images that the attack does not: it searches badly; look at its "
        "gradients (M9) and its steps (M5)",
    ),
    "M7": Kind(
        "as many draws as it takes are attacked", 3.0, "points", one_draw,
        "attacking 20 fresh draws at every step does no better",
        "the randomness hides the model from this view: use {draws}, and report that number",
    ),
    "M8": Kind(
        "gradients of the view agree", 0.2, "cosine", gradient_agreement,
        "a step on one view is a step on another",
        "gradients of the attacker's views have little in common: EOT needs more draws: {draws}",
    ),
    "M9": Kind(
        "every gradient can be followed", 0.0, "%", vanishing,
        "every image has a gradient to follow",
        "gradient attacks stand still or wander on these images, and count them as robust: "
        "{loss}attack the logits, and replace what is flat by a smooth stand-in (BPDA)",
    ),
    "M10": Kind(
        "some budget fools every image", 100.0, "%", smallest_budget,
        "the smallest budget that fools was found for all images",
        "an attack that may change everything must fool every image: it is broken, or the model "
        "masks its gradients",
    ),
    "M11": Kind(
        "no randomness goes unnoticed", VARIATION, "logits", randomness_seen,
        "what is attacked is what answers",
        "what is attacked is not what answers: {eot}randomness that eval mode switches off must "
        "not ask self.training (F.dropout(x, p, training=True))",
    ),
    "M12": Kind(
        "the attack solves problems that have a solution", 95.0, "%", binarize,
        "the attack finds points that are known to exist",
        "inside the ball there is a point that fools the binarized model, and the attack does not "
        "find it: it is too weak to show robustness; give more {effort}, or another method",
    ),
    "M13": Kind(
        "no other loss or step breaks more", 2.0, "points", other_losses,
        "the same attack on other losses, or with other steps, does no better",
        "the same attack does better on another loss: attack that one, too ({other_loss}), and "
        "report the worst case; or with other steps: its own are misled, so use "
        "`rlskit.attack_adaptively`",
    ),
}  # fmt: skip
"""Name of a check -> what is known of it."""
