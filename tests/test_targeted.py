"""Targeted C&W and EAD: they reach the class they are told, and by the shortest way."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlskit.attacks.cw import cw
from rlskit.attacks.ead import ead
from rlskit.attacks.minimum_norm import shortfall
from rlskit.pixels import perturbation_norms

ATTACKS: dict[str, Any] = {"cw": cw, "ead": ead}
GENERATOR = torch.Generator()


class Affine(nn.Module):
    """Three logits: 0, x0 + x1 - 1 and 10 (x2 - 0.5) - 4.

    At 0.5 class 0 and class 1 tie at 0; the targets are one pixel step away each.
    """

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1)
        one = pixels[:, 0] + pixels[:, 1] - 1
        return torch.stack([torch.zeros_like(one), one, 10 * (pixels[:, 2] - 0.5) - 4], 1)


def start(n: int = 1) -> Tensor:
    return torch.tensor([0.4, 0.4, 0.5, 0.5]).reshape(1, 1, 2, 2).repeat(n, 1, 1, 1)


SEARCH = {"c": 1.0, "search_steps": 9, "steps": 300, "lr": 0.005, "kappa": 0.0}
CASES = [
    # To lead, class 1 needs x0 + x1 > 1 from 0.8: l2 0.2 / sqrt 2, elastic net l2^2 + beta * l1.
    ("cw", {}, "l2", 1, 0.2 / 2**0.5),
    # Class 2 needs 10 (x2 - 0.5) > 4 from 0.5.
    ("cw", {}, "l2", 2, 0.4),
    ("ead", {"beta": 0.05}, "elastic", 1, 0.02 + 0.05 * 0.2),
    ("ead", {"beta": 0.05}, "elastic", 2, 0.16 + 0.05 * 0.4),
    # FISTA's beta is a threshold per step of length lr.
    ("ead", {"beta": 0.0005, "decision_rule": "l1", "optimizer": "fista"}, "l1", 2, 0.4),
]


@pytest.mark.parametrize(("method", "options", "norm", "target", "optimum"), CASES)
def test_the_nearest_image_of_the_target_is_found(
    method: str, options: dict[str, Any], norm: str, target: int, optimum: float
) -> None:
    images, model = start(), Affine()
    labels = torch.tensor([target])
    adversarial = ATTACKS[method](
        model, images, labels, targeted=True, generator=GENERATOR, **(SEARCH | options)
    )
    assert model(adversarial).argmax(1).item() == target
    norms = perturbation_norms(images, adversarial)
    norms["elastic"] = norms["l2"] ** 2 + options.get("beta", 0) * norms["l1"]
    assert 0.999 * optimum <= norms[norm].item() <= 1.05 * optimum


@pytest.mark.parametrize(("method", "optimizer"), [("cw", ""), ("ead", "adam"), ("ead", "fista")])
def test_images_of_the_target_come_back_and_the_others_lead_by_kappa(
    method: str, optimizer: str
) -> None:
    options = {"optimizer": optimizer, "beta": 1e-3} if optimizer else {}
    images, model = start(4), Affine()
    targets = torch.tensor([0, 1, 2, 1])  # the answer is 0
    adversarial = ATTACKS[method](
        model, images, targets, targeted=True, c=30.0, steps=300, kappa=0.05,
        generator=GENERATOR, **options,
    )  # fmt: skip
    assert torch.equal(adversarial[0], images[0])
    logits = model(adversarial)
    best_other = logits.scatter(1, targets[:, None], float("-inf")).amax(1)
    lead = logits.gather(1, targets[:, None]).squeeze(1) - best_other
    assert (lead[1:] >= 0.05 - 1e-6).all()
    assert torch.equal(adversarial[1], adversarial[3])


@pytest.mark.parametrize("method", ATTACKS)
def test_a_target_out_of_reach_leaves_the_clean_image(method: str) -> None:
    images = start(2)
    targets = torch.tensor([1, 2])
    adversarial = ATTACKS[method](
        Affine(), images, targets, targeted=True, c=1e-6, steps=20, generator=GENERATOR
    )
    assert torch.equal(adversarial, images)


def test_shortfall_by_hand() -> None:
    logits = torch.tensor([[-1.0, -3.0, -2.0], [5.0, 1.0, 2.0], [0.0, 0.0, -1.0]])
    labels = torch.tensor([0, 1, 1])
    assert shortfall(logits, labels, targeted=False).tolist() == [1.0, -4.0, 0.0]
    assert shortfall(logits, labels, targeted=True).tolist() == [-1.0, 4.0, 0.0]
