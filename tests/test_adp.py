"""ADP's loss by hand (Pang et al. 2019, equations 3, 5 and 6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlskit.conversion import convert
from rlskit.defenses import DEFENSES, defense_of
from rlskit.defenses.adp import SETTINGS, entropy, log_determinant, loss
from rlskit.errors import RequestError
from rlskit.training import TrainOptions
from rlskit.training.epochs import objective

# K = 2 members, B = 2 images, 4 classes.
PROBABILITIES = np.array(
    [[[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1]], [[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]]
)
LABELS = [0, 1]


def logits() -> torch.Tensor:
    shift = torch.tensor([[[3.0], [-50.0]], [[0.0], [700.0]]], dtype=torch.float64)
    return torch.tensor(PROBABILITIES).log() + shift  # which a softmax must not see


def determinant_by_hand(image: int) -> float:
    columns = []
    for member in PROBABILITIES:
        wrong = np.delete(member[image], LABELS[image])
        columns.append(wrong / math.sqrt((wrong**2).sum()))
    cosine = float(columns[0] @ columns[1])
    return math.log((1 + 1e-6) ** 2 - cosine**2)


def test_log_determinant_by_hand() -> None:
    found = log_determinant(logits().log_softmax(-1), torch.tensor(LABELS))
    assert found.tolist() == pytest.approx([determinant_by_hand(i) for i in (0, 1)], rel=1e-9)


def test_determinant_of_equal_and_of_orthogonal_members() -> None:
    tiny = 1e-12
    one, other = [0.5, 0.5, tiny, tiny], [0.5, tiny, 0.5, tiny]
    for members, wanted in (([one, one], math.log(2e-6 + 1e-12)), ([one, other], 2e-6)):
        stacked = torch.tensor(members, dtype=torch.float64)[:, None].log()
        found = log_determinant(stacked, torch.tensor([0]))
        assert found.item() == pytest.approx(wanted, rel=1e-3, abs=1e-7)


def test_entropy_by_hand() -> None:
    mean = PROBABILITIES.mean(0)
    wanted = -(mean * np.log(mean)).sum(-1)
    assert entropy(logits().log_softmax(-1)).tolist() == pytest.approx(wanted.tolist(), rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (0.0, 0.0), (1.0, 3.0)])
def test_loss_by_hand(alpha: float, beta: float) -> None:
    cross = -np.log(PROBABILITIES[:, [0, 1], LABELS]).sum(0)
    mean = PROBABILITIES.mean(0)
    spread = -(mean * np.log(mean)).sum(-1)
    volume = np.array([determinant_by_hand(i) for i in (0, 1)])
    wanted = float((cross - alpha * spread - beta * volume).mean())
    found = loss(logits(), torch.tensor(LABELS), {"alpha": alpha, "beta": beta})
    assert found.item() == pytest.approx(wanted, rel=1e-9)


def test_gradients_of_sure_and_equal_members_are_finite() -> None:
    sure = torch.tensor([[[200.0, 0, 0]], [[200.0, 0, 0]]], requires_grad=True)
    value = loss(sure, torch.tensor([0]), SETTINGS)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_training_minimises_it_with_the_settings_of_the_model() -> None:
    model = convert(
        "test_resnet", defense="adp", banks=2, image_size=16, num_classes=4, settings={"alpha": 1.5}
    )
    assert model.card.settings == {"alpha": 1.5, "beta": 0.5}
    found = objective(model, TrainOptions())(logits(), torch.tensor(LABELS))
    assert found == loss(logits(), torch.tensor(LABELS), {"alpha": 1.5, "beta": 0.5})
    with pytest.raises(RequestError, match="adp has a loss of its own"):
        objective(model, TrainOptions(loss="mse"))


def test_wrong_requests() -> None:
    convert("test_resnet", defense="adp", banks=3, image_size=16, num_classes=4)
    with pytest.raises(RequestError, match="4 classes takes at most 3 banks, not 4"):
        convert("test_resnet", defense="adp", banks=4, image_size=16, num_classes=4)
    with pytest.raises(RequestError, match="settings of the defense adp are alpha, beta, not"):
        convert("test_resnet", defense="adp", image_size=16, settings={"gamma": 1.0})
    assert defense_of(convert("test_resnet", defense="adp", image_size=16)) is DEFENSES["adp"]
