"""Each classic goes through everything: convert, attacks, adaptive, training, audit, save, load."""

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rlskit
from classics import CLASSICS
from rlskit.attacks import ATTACKS
from rlskit.data import Data
from rlskit.defenses import draws
from rlskit.defenses.answers import mean_log_probabilities
from rlskit.models.banks import BankedModel
from rlskit.models.layout import layout_of

FILE = Path(__file__).with_name("classics.py")
LIBRARIES = ("timm:test_resnet", "torchvision:squeezenet1_1")
FEW: dict[str, Any] = {
    "steps": 1, "queries": 2, "search_steps": 1, "restarts": 1, "target_classes": 1,
    "population": 4, "kappa": 0, "gamma": 0.01, "top_classes": 2,
}  # fmt: skip
"""The least that an attack does, as far as it takes such an option."""

LONG = {"apgd-ce": 2, "apgd-dlr": 2, "apgd-t": 2, "autoattack": 2, "square": 3}
MAIN = ("pgd", "cw", "deepfool")
WHOLE = ("LeNet", "old_weight_norm", "DenseNetBC")
"""What all methods are tried on; the others go through `MAIN`."""

ORDINARY = {"LeNet", "SmallCNN", "Volume"}
"""Networks for the ordinary layout. A `.view` that keeps a 1x1 image needs none of it."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Let the old functions of `torch.nn.utils` warn that there are new ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def answers(model: BankedModel, data: Data) -> Tensor:
    images = data.adapted(model.card.pixels, 10).images(range(len(data)))
    with torch.no_grad():
        members = draws(model, model.num_banks, seed=0, purpose="defender")
        return torch.stack([member(images) for member in members])


@torch.no_grad()
def known(model: BankedModel, count: int) -> Data:
    """Digits with the model's own answers as labels, of as many classes as it ever answers with."""
    data = rlskit.load_data("digits", limit=30)
    images = data.adapted(model.card.pixels, 10).images(range(len(data)))
    for bank in model.banks:
        bias = [p for p in bank.parameters() if p.shape == (10,)][-1]
        bias.sub_(bank(model.normalize(images)).mean(0))
    labels = mean_log_probabilities(answers(model, data)).argmax(-1)
    rank = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]
    chosen = torch.tensor(sorted(range(len(data)), key=rank.__getitem__)[:count])
    return dataclasses.replace(data, labels=labels).subset(chosen)


def options(method: str) -> dict[str, Any]:
    takes = ATTACKS[method].defaults
    few = {name: value for name, value in FEW.items() if name in takes}
    if "steps" in takes:
        few["steps"] = LONG.get(method, 1)
    return few


@pytest.mark.parametrize("name", [*CLASSICS, *LIBRARIES])
def test_a_classic_goes_through_everything(name: str, tmp_path: Path) -> None:
    spec = name if ":" in name else f"{FILE}:{name}"
    model = rlskit.convert(spec, banks=2, data="digits", image_size=32, outputs="logits")
    few = known(model, 3)
    short: dict[str, Any] = {"n_samples": 2, "batch_size": 2}  # a lone image comes last
    for method in ATTACKS if name in WHOLE else MAIN:
        result = rlskit.attack(model, few, method=method, **options(method), **short)
        assert result.accuracy["robust"].n == 3
    before = answers(model, few)
    rlskit.train(
        model, data=rlskit.load_data("digits", "train", limit=8), epochs=1, batch_size=4, lr=0.1,
        adversarial="pgd" if name in WHOLE else "none", adversarial_steps=1,
    )  # fmt: skip
    assert not torch.equal(answers(model, few), before)
    rlskit.save(model, tmp_path / "model.safetensors")
    loaded = rlskit.load(tmp_path / "model.safetensors")
    assert torch.equal(answers(loaded, few), answers(model, few))
    assert (layout_of(model) == torch.contiguous_format) == (name in ORDINARY)


@pytest.mark.parametrize("name", CLASSICS)
def test_a_classic_is_attacked_adaptively_and_audited(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlskit.audit.binarization.IMAGES", 2)
    model = rlskit.convert(
        f"{FILE}:{name}", defense="none", data="digits", image_size=32, outputs="logits"
    )
    data = known(model, 6)
    result = rlskit.attack_adaptively(model, data.limited(2), eps="128/255", steps=2, queries=1)
    assert result.accuracy["clean"].mean == 1
    assert result.accuracy["robust"].mean < 1
    audit = rlskit.audit_model(model, data, steps=2, queries=1, points=1, batch_size=5)
    assert len(audit.checks) > 10
