"""Abstention: the disagreement, its threshold, and what is left of it under who knows both."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy, norm
from sklearn.metrics import roc_auc_score
from torch import Tensor

import rlskit
from rlskit.attacks.losses import log_odds
from rlskit.defenses.answers import mutual_information
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.results import Journal, Result
from rlskit.results.abstained import abstention
from rlskit.results.result import AbstentionFacts
from rlskit.stats import auroc, auroc_interval, conformal_threshold
from rlskit.threat.evading import evading
from small_models import digits, model, trained


def test_mutual_information_is_what_the_draws_do_not_share() -> None:
    logits = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0)) * 3
    probabilities = logits.double().softmax(-1).numpy()
    wanted = entropy(probabilities.mean(0), axis=-1) - entropy(probabilities, axis=-1).mean(0)
    np.testing.assert_allclose(mutual_information(logits), wanted, atol=1e-12)
    agreed = logits[:1].expand(3, -1, -1)
    np.testing.assert_allclose(mutual_information(agreed), 0, atol=1e-12)
    sure = torch.eye(4)[:2, None] * 1000  # two draws, each sure of another class
    assert mutual_information(sure).item() == pytest.approx(math.log(2))


def test_auroc_is_that_of_scikit_learn() -> None:
    numbers = np.random.default_rng(0)
    high, low = numbers.normal(1, 1, 30).round(1), numbers.normal(0, 1, 50).round(1)  # with ties
    wanted = roc_auc_score([1] * 30 + [0] * 50, [*high, *low])
    assert auroc(high.tolist(), low.tolist()) == pytest.approx(wanted, rel=1e-12)
    assert math.isnan(auroc([], [1.0]))
    assert math.isnan(auroc([1.0], []))


@pytest.mark.parametrize(("value", "m", "n"), [(0.8, 30, 50), (0.5, 4, 90), (1.0, 7, 7)])
def test_ends_of_the_interval_are_z_standard_errors_away(value: float, m: int, n: int) -> None:
    for end in auroc_interval(value, m, n):
        # Hanley & McNeil 1982, with (m + n) / 2 - 1 for both m - 1 and n - 1
        half = (m + n) / 2 - 1
        first, second = end / (2 - end), 2 * end**2 / (1 + end)
        variance = end * (1 - end) + half * (first - end**2) + half * (second - end**2)
        assert abs(value - end) == pytest.approx(
            norm.ppf(0.975) * math.sqrt(max(0, variance) / (m * n)), abs=1e-6
        )
    low, high = auroc_interval(value, m, n)
    assert low < value <= high
    assert auroc_interval(0.0, m, n) == pytest.approx((0, 1 - auroc_interval(1.0, m, n)[0]))


def test_a_new_image_is_above_the_threshold_as_rarely_as_was_asked() -> None:
    scores = [float(score) for score in range(200)]
    above = sum(
        score > conformal_threshold(scores[:place] + scores[place + 1 :], 0.05)
        for place, score in enumerate(scores)
    )
    assert above == 10  # 5 % of 200 that are exchangeable
    assert conformal_threshold(scores[:19], 0.05) == 18
    with pytest.raises(RequestError, match="needs 19 images or more, and there are 18"):
        conformal_threshold(scores[:18], 0.05)


def test_the_evader_ascends_the_loss_less_the_disagreement() -> None:
    answers = list(torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)))
    labels = torch.tensor([0, 1, 2, 4])
    loss = torch.stack([log_odds(one, labels).exp().log1p() for one in answers]).mean(0).log()
    doubt = mutual_information(torch.stack(answers))
    torch.testing.assert_close(evading(0.0)(answers, labels), loss, check_dtype=False)
    torch.testing.assert_close(evading(2.0)(answers, labels), loss - 2 * doubt, check_dtype=False)


def journal() -> Journal:
    """Four images of class 0 in two repeats, between which the threshold differs."""
    found = Journal(None, {})
    for repeat in (0, 1):
        found.put(repeat, 0, {
            "index": torch.arange(4), "label": torch.zeros(4, dtype=torch.long),
            "clean": _column(0, 0, 0, 1), "clean_disagreement": _doubt(0.1, 0.2, 0.6, 0.7),
            "transfer": _column(0, 1, 1, 1), "transfer_disagreement": _doubt(0.1, 0.9, 0.1, 0.8),
            "robust": _column(1, 1, 1, 1), "robust_disagreement": _doubt(0.1, 0.1, 0.1, 0.15),
        })  # fmt: skip
    return found


def _column(*answers: int) -> Tensor:
    return torch.tensor(answers)[:, None]


def _doubt(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_number_by_hand() -> None:
    facts = abstention(journal(), false_alarms=0.1, held_out=9, thresholds=[0.5, 0.05])
    clean, transfer, evader = (facts.images[name] for name in ("clean", "transfer", "evading"))
    # The first repeat answers 2 clean images; the second none, so a share of them means nothing.
    assert clean.answered is None
    assert [one.without.mean for one in facts.images.values()] == [0.75, 0.25, 0]
    assert [one.abstained.mean for one in facts.images.values()] == [0.75, 0.75, 0.5]
    assert [one.useful.mean for one in facts.images.values()] == [0.25, 0.25, 0]
    assert clean.auroc.mean == 1
    assert transfer.auroc.mean == pytest.approx((3 + 3 + 0.5) / 9)  # of 0.9, 0.8, 0.1
    assert evader.auroc.mean == pytest.approx((3 * 0.5 + 1) / 12)  # 0.1 ties with 0.1
    (alone,) = _answered_with(0.5)
    assert alone == (1.0, 2)


def _answered_with(threshold: float) -> list[tuple[float, float]]:
    facts = abstention(journal(), false_alarms=0.1, held_out=9, thresholds=[threshold])
    found = facts.images["clean"].answered
    assert found is not None
    return [(found.mean, found.n)]


@pytest.fixture(scope="module")
def rls() -> BankedModel:
    return trained("rls", 2)


def measured(rls: BankedModel, **changed: Any) -> Result:
    options = {"n_samples": 5, "steps": 4, "n_attacked": 3, "eps": 0.2, "abstain": 0.1}
    result: Result = rlskit.measure_abstention(rls, digits(120), **{**options, **changed})
    return result


@pytest.fixture(scope="module")
def found(rls: BankedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return measured(rls, out=folder), folder


def facts_of(result: Result) -> AbstentionFacts:
    assert result.abstention is not None
    return result.abstention


def test_who_knows_of_it_leaves_less(found: tuple[Result, Path]) -> None:
    images = facts_of(found[0]).images
    areas = [one.auroc.mean for one in images.values()]
    assert None not in areas
    assert areas[2] < areas[1]  # type: ignore[operator]
    useful = [one.useful.mean for one in images.values()]
    assert useful[2] < useful[1] < useful[0]
    assert found[0].accuracy["robust"] == images["evading"].without
    assert found[0].accuracy["clean"] == images["clean"].without


def test_images_of_the_threshold_are_in_no_other_number(found: tuple[Result, Path]) -> None:
    result, folder = found
    assert (result.data.n, facts_of(result).held_out) == (60, 60)
    with (folder / "per_image.csv").open() as file:
        scored = {int(row["index"]) for row in csv.DictReader(file)}
    assert len(scored & set(digits(120).index.tolist())) == 60
    assert json.loads((folder / "results.json").read_text()) == result.to_json()
    assert (result.command, result.protocol, result.n_attacked) == ("eval", "eot", 3)


def test_the_same_numbers_in_other_blocks(found: tuple[Result, Path], rls: BankedModel) -> None:
    again = facts_of(measured(rls, batch_size=40))
    first = facts_of(found[0])
    assert again.thresholds == pytest.approx(first.thresholds, rel=1e-5)
    for name, one in first.images.items():
        assert again.images[name].abstained.mean == pytest.approx(one.abstained.mean, abs=0.034)
        assert again.images[name].auroc.mean == pytest.approx(one.auroc.mean, abs=0.02)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"n_samples": 1}, "this rls answers with one"),
        ({"n_samples": (5, 10)}, "takes one `n_samples`, not several"),
        ({"abstain": 1.5}, "`abstain` is the share of clean images"),
        ({"norm": "l1"}, "`norm` 'l1' is unknown to `abstain`; it is linf or l2"),
        ({"abstain": 0.01}, "a threshold that 1 % exceed needs 99 images or more"),
    ],
)
def test_refused(rls: BankedModel, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        measured(rls, **given)


@pytest.mark.parametrize("defense", ["none", "crossmax"])
def test_one_draw_cannot_disagree(defense: str) -> None:
    one = model(1 if defense == "none" else 2, defense)
    with pytest.raises(RequestError, match=f"this {defense} answers with one"):
        measured(one, n_samples=5)
