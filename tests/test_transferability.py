"""Transfer between draws: matrices worked out by hand, and those of a run."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import small_models
from rlskit import seeds
from rlskit.attacks import prepare
from rlskit.cli import run
from rlskit.defenses import DEFENSES, draws
from rlskit.diversity.transfer import Transfer, block_of, measure_transfer, summarise
from rlskit.documents import from_json
from rlskit.errors import RequestError, UntrustedError
from rlskit.models.banks import BankedModel
from rlskit.report import check_plot, plot_transfer
from rlskit.results.result import TransferFacts
from rlskit.seeds import Purpose
from rlskit.training import train

DATA = small_models.digits(60)
PGD = prepare("pgd", eps=0.1, steps=10, step_size=0.02)


class Linear(nn.Module):
    """Two classes and two pixels; class 0 leads by w · (x - 0.5) + b."""

    def __init__(self, w: tuple[float, float], b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = torch.tensor(w, dtype=torch.float32), b

    def forward(self, images: Tensor) -> Tensor:
        lead = (images.flatten(1) - 0.5) @ self.w + self.b
        return torch.stack([lead, torch.zeros_like(lead)], 1)


class Hinged(Linear):
    """The same, but flat where the lead is below 0: no gradient there."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).relu()


def pixels(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows)[:, None, None]


def transfer(members: list[Linear], images: Tensor) -> Transfer:
    labels = torch.zeros(len(images), dtype=torch.long)
    halves = (slice(0, 2), slice(2, None))
    parts = [block_of(members, members, PGD, images[i], labels[i], seed=3) for i in halves]
    return summarise(parts)


IMAGES = pixels((0.5, 0.5), (0.6, 0.6), (0.4, 0.4))
A, B, C = Linear((1, 1), 0.1), Linear((1, -1), 0.1), Linear((3, 1), 0.3)


def test_cosines_by_hand() -> None:
    """The gradient of the cross-entropy is -w times the other class's probability."""
    found = transfer([Linear((3, 4)), Linear((8, 6), 1.0), Linear((-3, -4))], IMAGES)
    wanted = [[1, 0.96, -1], [0.96, 1, -0.96], [-1, -0.96, 1]]
    torch.testing.assert_close(found.cosine, torch.tensor(wanted, dtype=torch.float64))
    assert found.zero_gradients.tolist() == [0, 0, 0]


def test_transferability_by_hand() -> None:
    """PGD on draw i ends at x - eps sign(w_i), and takes eps sign(w_i) · w_j from j's lead.

    Row A takes 0.2, 0 and 0.4, row B 0, 0.2 and 0.2, row C what A does. At (0.5, 0.5) the leads are
    0.1, 0.1 and 0.3, at (0.6, 0.6) they are 0.3, 0.1 and 0.7; at (0.4, 0.4) A is wrong already.
    """
    found = transfer([A, B, C], IMAGES)
    assert found.images == 2
    assert found.transferability.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    assert found.accuracy == pytest.approx((2 + 3 + 2) / 9)  # C leads by 0.3 - 0.4 in the third


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_permuted_draws_permute_the_matrices(order: tuple[int, ...]) -> None:
    ordered = transfer([A, B, C], IMAGES)
    found = transfer([[A, B, C][i] for i in order], IMAGES)
    where = torch.tensor(order)
    assert torch.equal(found.transferability, ordered.transferability[where][:, where])
    torch.testing.assert_close(found.cosine, ordered.cosine[where][:, where])


def test_images_without_a_gradient_are_left_out_and_counted() -> None:
    hinged, flat = Hinged((1, 0), 0.05), Linear((0, 0), 0.1)
    found = transfer([Linear((3, 4), 1.0), hinged, flat], IMAGES)
    assert found.zero_gradients.tolist() == [0, 1, 3]  # the hinge is flat at (0.4, 0.4) only
    assert found.cosine[0, 1] == pytest.approx(0.6)
    assert found.cosine[:, 2].isnan().all()
    assert found.cosine[1, 1] == 1


def test_no_image_is_right_for_all() -> None:
    found = transfer([A, Linear((1, 1), -1.0)], IMAGES)
    assert found.images == 0
    assert found.transferability.isnan().all()
    assert found.cosine.tolist() == [[pytest.approx(1)] * 2] * 2


@pytest.fixture(scope="module")
def model() -> BankedModel:
    found = small_models.model(3)
    train(found, small_models.digits(300, "train"), epochs=8, lr=0.1, batch_size=30)
    return found


def by_hand(model: BankedModel, repeat: int = 0) -> tuple[Tensor, Tensor, int]:
    """Cosines and transferability of three draws, image by image, none of them folded."""
    images, labels = DATA.images(range(60)), DATA.labels
    members = draws(model, 3, seed=4, purpose="diversity", repeat=repeat)
    slopes = []
    for member in members:
        points = images.clone().requires_grad_()
        nn.functional.cross_entropy(member(points), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert points.grad is not None
        slopes.append(points.grad.flatten(1))
    right = torch.stack([member(images).argmax(1) == labels for member in members]).all(0)
    cosine, share = torch.zeros(2, 3, 3, dtype=torch.float64)
    attack = prepare("pgd", eps=0.1, steps=10, step_size=0.02)
    for i, attacked in enumerate(members):
        generator = seeds.generator(4, Purpose.DRAW_TO_DRAW, repeat)
        changed = attack(attacked, images, labels, generator=generator)
        for j, scored in enumerate(members):
            cosine[i, j] = nn.functional.cosine_similarity(slopes[i], slopes[j]).mean()
            share[i, j] = (scored(changed).argmax(1) != labels)[right].double().mean()
    return cosine, share, int(right.sum())


def test_a_run_is_that_of_its_draws(model: BankedModel) -> None:
    result = measure_transfer(model, DATA, n_samples=3, repeats=2, eps="0.1", batch_size=25, seed=4)
    found = result.transfer
    assert found is not None
    cosine, share, images = by_hand(model)
    torch.testing.assert_close(
        torch.tensor(found.cosine, dtype=torch.float64), cosine, atol=1e-5, rtol=0
    )
    assert found.images == images
    one_image = 1.01 / images  # that rounding in the folded draw may turn
    torch.testing.assert_close(
        torch.tensor(found.transferability, dtype=torch.float64), share, atol=one_image, rtol=0
    )
    assert 0 < share[0, 1] < 1
    off = ~torch.eye(3, dtype=torch.bool)
    means = [float(by_hand(model, repeat)[0][off].mean()) for repeat in range(2)]
    spread = found.off_diagonal["cosine"]
    assert spread.mean == pytest.approx(statistics.fmean(means), abs=1e-5)
    assert spread.std == pytest.approx(statistics.stdev(means), abs=1e-5)
    assert (result.protocol, result.n_attacked, result.n_samples) == ("draw-to-draw", 1, 3)
    assert found.attack.params["step_size"] == pytest.approx(0.02)
    assert result.timing.backwards >= 2 * 3 * 60


def test_the_json_is_the_result(model: BankedModel) -> None:
    result = measure_transfer(model, DATA, n_samples=2, steps=2)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert from_json(found["transfer"], TransferFacts) == result.transfer
    assert found["transfer"]["off_diagonal"]["cosine"]["std"] is None
    assert found["agreement"] is None
    assert found["transfer"]["attack"] == found["attack"]


def test_draws_that_are_the_same_agree_fully() -> None:
    alone = small_models.model(1)
    train(alone, small_models.digits(200, "train"), epochs=1, lr=0.1, batch_size=20)
    found = measure_transfer(alone, DATA, n_samples=3, eps=0.05).transfer
    assert found is not None
    assert np.array(found.cosine) == pytest.approx(np.ones((3, 3)), abs=1e-12)
    assert found.transferability == ((found.transferability[0][0],) * 3,) * 3
    assert 0 < (found.transferability[0][0] or 0) < 1


def test_an_undefended_network_has_one_draw(model: BankedModel) -> None:
    result = measure_transfer(small_models.model(1, "none", trained=False), DATA, n_samples=3)
    assert result.transfer is not None
    assert np.array(result.transfer.cosine) == pytest.approx(np.ones((1, 1)))
    assert result.transfer.off_diagonal["cosine"].mean is None
    assert any("one draw has no other" in warning for warning in result.warnings)


def test_draws_with_noise_in_them() -> None:
    noisy = small_models.model(1, "rse", trained=False)
    noisy.card.settings = dict(DEFENSES["rse"].settings)
    found = measure_transfer(noisy, DATA, n_samples=2, steps=2).transfer
    assert found is not None
    assert found.cosine[0][0] == pytest.approx(1)
    assert -1 < (found.cosine[0][1] or 1) < 0.999


def test_wrong_requests(model: BankedModel) -> None:
    with pytest.raises(RequestError, match="`n_samples` must be 2 or more, not 1"):
        measure_transfer(model, DATA, n_samples=1)
    with pytest.raises(RequestError, match="8/255"):
        measure_transfer(model, DATA, eps=8)
    broken = small_models.model(2)
    small_models.tensor(broken, 1, "6.weight").fill_(torch.finfo().max)
    with pytest.raises(UntrustedError, match="NaN or infinite"):
        measure_transfer(broken, DATA)


TINY = """
from torch import nn

def tiny(num_classes=10, in_chans=1):
    return nn.Sequential(nn.Conv2d(in_chans, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))
"""


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    Path("tiny.py").write_text(TINY)
    assert run(["convert", "tiny.py:tiny", "--image-size", "8", "-q"]) == 0
    command = ["diversity", "--transfer", "--n-samples", "3", "--limit", "40", "--steps", "2", "-q"]
    assert run([*command, "--plot", "t.png", "--json", "t.json"]) == 0
    table = capsys.readouterr().out
    result = json.loads(Path("t.json").read_text())
    assert f"{result['transfer']['cosine'][0][1]:.3f}" in table
    assert "draw-to-draw" in table
    with Image.open("t.png") as image:
        assert (image.format, image.size) == ("PNG", (1260, 645))  # 8.4 x 4.3 inches

    before = Path("t.png").read_bytes()
    for arguments, words in (
        ([*command, "--plot", "t.jpg"], ["t.jpg", ".png, .svg, .pdf"]),
        ([*command, "--plot", "t.png"], ["t.png", "--force"]),
        ([*command, "--plot", "gone/t.png"], ["no folder gone"]),
        ([*command, "--adversarial", "x.safetensors"], ["--adversarial"]),
        (["diversity", "--plot", "new.png"], ["--plot", "--transfer"]),
        (["diversity", "--step-size", "0.1"], ["--step-size", "--transfer"]),
    ):
        assert run(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert all(word in captured.err for word in words), captured.err
    assert Path("t.png").read_bytes() == before
    assert not Path("new.png").exists()


@pytest.mark.parametrize("ending", ["png", "svg", "PDF"])
def test_a_plot_of_the_same_result_has_the_same_bytes(
    model: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    result = measure_transfer(model, DATA, n_samples=2, steps=1)
    first, second = tmp_path / f"1.{ending}", tmp_path / f"2.{ending}"
    plot_transfer(result, first)
    plot_transfer(result, second)
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(RequestError, match="exists already"):
        check_plot(first, force=False)
    check_plot(first, force=True)
    assert {path.name for path in tmp_path.iterdir()} >= {first.name, second.name}
    assert not list(tmp_path.glob(".rlskit-*"))
