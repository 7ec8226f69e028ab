"""What the attacks' rows say that they cost, against what a meter counts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlskit.attacks import ATTACKS, prepare
from rlskit.attacks.passes import Passes, Setting
from rlskit.threat.meter import Meter
from rlskit.threat.view import DrawsView

SHAPE, CLASSES, IMAGES = (1, 4, 4), 5, 6

SHORT: dict[str, Any] = {"steps": 3, "queries": 7, "restarts": 2, "eot_samples": 3, "gamma": 0.5}
"""More than one of everything that multiplies, where a method takes it."""

LOOSE = {"autoattack": 1.05, "deepfool": 1.5, "inward": 2.8, "jsma": 1.1}
"""How far above the count a bound may be where nothing fools the model; elsewhere it is the count.

AutoAttack's parts each ask once more; few images of DeepFool measure on without the others; none is
in doubt for `inward`; JSMA's values are spent."""


class Steady(nn.Module):
    """Slopes everywhere, and answers 0 whatever is done to the image; or like any network."""

    def __init__(self, lead: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(CLASSES, 16, generator=generator)
        self.lead = lead * torch.eye(CLASSES)[0]

    def forward(self, images: Tensor) -> Tensor:
        return self.lead + torch.tanh((images.flatten(1) - 0.5) @ self.weight.T)


def counted(
    method: str, lead: float, draws: int, wrong: int = 0, **options: Any
) -> tuple[Passes, Passes]:
    """Return what an attack asked for per image and draw, and what its row says.

    The model is wrong about the first `wrong` images.
    """
    takes = ATTACKS[method].defaults
    attack = prepare(method, **{k: v for k, v in SHORT.items() if k in takes}, **options)
    models = [Steady(lead) for _ in range(draws)]
    meter = Meter(models[0] if draws == 1 else DrawsView(models), draws)
    images = torch.rand(IMAGES, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = models[0](images).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    attack(meter, images, labels, generator=torch.Generator().manual_seed(2))
    per = IMAGES * draws
    return (
        Passes(meter.forwards / per, meter.backwards / per),  # type: ignore[arg-type]
        attack.passes(Setting(SHAPE, CLASSES, draws)),
    )


CASES: list[tuple[str, int, dict[str, Any]]] = [
    *((method, 1, {}) for method in ATTACKS),
    ("arc", 3, {}),
    ("mora", 3, {}),
    ("apgd-t", 1, {"target_classes": 2}),
    ("autoattack", 1, {"version": "rand"}),
    ("cw", 1, {"search_steps": 2, "target": 3}),
    ("ead", 1, {"search_steps": 2}),
    ("ead", 1, {"optimizer": "fista"}),
    ("fab", 1, {"target_classes": 2}),
    ("onepixel", 1, {"pixels": 2, "population": 17}),
    ("pgd", 1, {"target": "random"}),
]


@pytest.mark.parametrize(("method", "draws", "options"), CASES)
def test_the_cost_on_a_model_that_nothing_fools_is_the_one_that_the_row_says(
    method: str, draws: int, options: dict[str, Any]
) -> None:
    found, said = counted(method, 20.0, draws, **options)
    for count, bound in zip(found, said, strict=True):
        assert count <= bound <= count * LOOSE.get(method, 1)


@pytest.mark.parametrize("method", ATTACKS)
def test_images_that_are_fooled_or_wrong_anyway_cost_less_where_the_row_says_at_most(
    method: str,
) -> None:
    found, said = counted(method, 0.0, 1, wrong=2)
    if ATTACKS[method].at_most:
        assert found.forwards < said.forwards
        assert found.backwards <= said.backwards
    else:
        assert found == said
