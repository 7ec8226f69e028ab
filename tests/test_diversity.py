"""The diversity of a run: the measures of the draws' own answers."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import small_models
from made_results import PGD
from rlskit import seeds
from rlskit.data.adversarial_file import write_adversarial
from rlskit.defenses import draws
from rlskit.diversity import measure_diversity
from rlskit.diversity.agreement import agreement, intervals
from rlskit.documents import to_json
from rlskit.errors import RequestError, UntrustedError
from rlskit.models.banks import BankedModel
from rlskit.results.result import Measure
from rlskit.seeds import Purpose
from rlskit.training import train

DATA = small_models.digits(60)


@pytest.fixture(scope="module")
def model() -> BankedModel:
    found = small_models.model(3)
    train(found, small_models.digits(300, "train"), epochs=2, lr=0.1, batch_size=30)
    return found


def correct(model: BankedModel, count: int, repeat: int) -> NDArray[np.bool_]:
    images = DATA.images(range(len(DATA)))
    members = draws(model, count, seed=4, purpose="diversity", repeat=repeat)
    answers = torch.stack([member(images).argmax(-1) for member in members])
    found: NDArray[np.bool_] = (answers == DATA.labels).numpy()
    return found


def test_measures_are_those_of_the_predictions(model: BankedModel) -> None:
    result = measure_diversity(model, DATA, n_samples=6, repeats=3, batch_size=25, seed=4)
    found = [agreement(correct(model, 6, repeat)) for repeat in range(3)]
    assert result.agreement is not None
    for name in ("kappa", "disagreement", "double_fault", "q_statistic"):
        values = [getattr(one, name) for one in found]
        assert result.agreement[name].mean == pytest.approx(statistics.fmean(values), rel=1e-12)
        assert result.agreement[name].std == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert 0 < (result.agreement["kappa"].mean or 0) < 1
    rng = np.random.default_rng(seeds.derive(4, Purpose.BOOTSTRAP))
    spans = intervals([correct(model, 6, repeat) for repeat in range(3)], rng)
    for name in ("kappa", "disagreement", "double_fault"):
        one = result.agreement[name]
        assert one.ci95 == getattr(spans, name)
        assert one.ci95 is not None
        assert one.mean is not None
        assert one.ci95[0] < one.mean < one.ci95[1]
    assert result.agreement["q_statistic"].ci95 is None
    single = [one.mean_accuracy for one in found]
    assert result.accuracy["clean_gibbs"].mean == pytest.approx(statistics.fmean(single))
    assert result.accuracy["clean_gibbs"].n == 60
    assert (result.n_samples, result.repeats, result.protocol) == (6, 3, "clean")
    assert result.timing.forwards == 60 * 6 * 3


def test_kappa_by_hand(model: BankedModel) -> None:
    """From the pairwise disagreement: kappa = 1 - mean disagreement / (2 p (1 - p))."""
    result = measure_diversity(model, DATA, n_samples=2, repeats=1, seed=4)
    first, second = correct(model, 2, 0)
    p = (first.mean() + second.mean()) / 2
    wanted = 1 - (first != second).mean() / (2 * p * (1 - p))
    assert result.agreement is not None
    assert result.agreement["kappa"].mean == pytest.approx(wanted)
    assert result.agreement["kappa"].std is None


def test_one_bank_agrees_with_itself() -> None:
    found = small_models.model(1)
    train(found, small_models.digits(200, "train"), epochs=1, lr=0.1, batch_size=20)
    result = measure_diversity(found, DATA, n_samples=3, repeats=2)
    assert result.agreement is not None
    assert result.agreement["kappa"] == Measure(mean=1.0, std=0.0, ci95=(1.0, 1.0))
    assert result.agreement["disagreement"].mean == 0


def test_members_of_an_ensemble_are_measured_once_each(model: BankedModel) -> None:
    """Ten draws of three members would meet themselves, and agree far too well."""
    ensemble = BankedModel(list(model.banks), model.partition, model.card)
    ensemble.card.defense = "ensemble"
    try:
        ten = measure_diversity(ensemble, DATA, n_samples=10, repeats=2)
        three = measure_diversity(ensemble, DATA, n_samples=3, repeats=2)
    finally:
        model.card.defense = "rls"
    assert ten.n_samples == 3
    assert ten.agreement == three.agreement
    assert ten.agreement is not None
    assert ten.agreement["kappa"].std == pytest.approx(0, abs=1e-12)


def test_undefined_measures_are_none_and_say_why() -> None:
    alone = measure_diversity(small_models.model(1, "none", trained=False), DATA, repeats=2)
    assert alone.agreement is not None
    assert alone.agreement["kappa"] == Measure(mean=None, std=None, ci95=None)
    assert alone.to_json()["agreement"]["kappa"] == {"mean": None, "std": None, "ci95": None}
    assert "Undefined: one draw has no other to agree with: at least two are needed." in (
        alone.warnings
    )
    sevens = DATA.subset((DATA.labels == 7).nonzero().flatten())
    never = small_models.model(2, trained=False)
    for bank in range(2):
        small_models.tensor(never, bank, "6.bias")[7] = -1e3
    wrong = measure_diversity(never, sevens, repeats=2)
    assert wrong.accuracy["clean_gibbs"].mean == 0
    assert any("wrong on every image" in warning for warning in wrong.warnings)


def test_a_file_of_adversarial_images(model: BankedModel, tmp_path: Path) -> None:
    path = tmp_path / "adversarial.safetensors"
    about = {
        "checkpoint_sha256": "another",
        "classes": 10,
        "data": {"name": "digits", "split": "test", "n": 60, "sha256": "s"},
        "attack": to_json(PGD),
        "protocol": "multi",
        "n_attacked": 5,
        "seed": 0,
    }
    write_adversarial(path, DATA.images(range(60)), DATA.labels, torch.arange(60), about)
    model.card.data = "folder:gone"  # which must not be looked for
    try:
        result = measure_diversity(
            model, adversarial=path, n_samples=6, repeats=3, batch_size=25, seed=4
        )
        clean = measure_diversity(model, DATA, n_samples=6, repeats=3, batch_size=25, seed=4)
    finally:
        model.card.data = "digits"
    assert result.agreement == clean.agreement
    assert result.accuracy == {"robust_gibbs": clean.accuracy["clean_gibbs"]}
    assert (result.protocol, result.n_attacked) == ("multi", 5)
    assert result.attack is not None
    assert result.attack.method == "pgd"
    assert any("another checkpoint" in warning for warning in result.warnings)


def test_wrong_requests(model: BankedModel) -> None:
    with pytest.raises(RequestError, match="`n_samples` must be 2 or more, not 1"):
        measure_diversity(model, DATA, n_samples=1)
    with pytest.raises(RequestError, match="`repeats` must be at least 1"):
        measure_diversity(model, DATA, repeats=0)
    broken = small_models.model(2)
    small_models.tensor(broken, 1, "6.weight").fill_(torch.finfo().max)
    with pytest.raises(UntrustedError, match="NaN or infinite logits"):
        measure_diversity(broken, DATA)
