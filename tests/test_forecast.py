"""What is said before a long command: from its own count of passes, and without moving a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit import recipes
from rlskit.cli.forecast import forecast, forecast_run
from rlskit.models.banks import BankedModel
from rlskit.recipes import cost
from small_recipes import written


class Noise(nn.Module):
    """Draws from torch's own stream, whatever the mode."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 1e-3 * torch.rand_like(images)


def noisy(seed: int) -> nn.Sequential:
    network = small_models.network(seed)
    network[1] = Noise()
    return network


def said(capsys: pytest.CaptureFixture[str], command: str, model: BankedModel, **given: Any) -> str:
    surrogate = given.pop("others", ())
    forecast(command, model, small_models.digits(), given, quiet=False, surrogate=surrogate)
    return capsys.readouterr().err


def slow(monkeypatch: pytest.MonkeyPatch, forward: float, backward: float) -> list[Any]:
    """Let passes take so many seconds; return what was asked of the measurement."""
    asked: list[Any] = []

    def rate(model: BankedModel, count: int | None = None, **more: Any) -> tuple[float, float]:
        asked.append(count)
        return forward, backward

    monkeypatch.setattr(cost, "rate", rate)
    return asked


def test_the_time_is_that_of_the_passes_of_the_very_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow(monkeypatch, 0.1, 0.2)
    model = small_models.model(2)
    # 40 images: 2 x 3 draws score them, and PGD takes 20 steps on 2
    given = {"method": "pgd", "steps": 20, "eps": "0.1", "n_attacked": 2, "n_samples": 3}
    line = said(capsys, "attack", model, **given)
    assert line.startswith("about 8 min: 40 images, 1,840 forward and 1,600 backward passes, at ")
    assert said(capsys, "eval", model, n_samples="1,5", repeats=4).startswith(
        "about 1 min: 40 images, 800 forward and 0 backward passes"
    )
    adaptive = {"protocol": "adaptive", "eps": "0.1"}
    alone = said(capsys, "attack", model, **adaptive)
    more = said(capsys, "attack", model, **adaptive, surrogate=True, others=[model])
    assert alone.startswith("at most ")
    assert passes(more) > passes(alone)


def passes(line: str) -> int:
    return int(line.split("at most ")[2].split(" forward")[0].replace(",", ""))


def test_a_short_command_is_told_by_one_image_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = slow(monkeypatch, 0.1, 0.2)
    assert said(capsys, "eval", small_models.model(2), n_samples="10") == ""
    assert asked == [1]


@pytest.mark.parametrize("command", ["train", "attack"])
def test_it_moves_no_stream_and_leaves_no_gradient(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "SHORTEST", 0.0)
    model = small_models.model(2, build=noisy)
    before = torch.get_rng_state(), {n: t.clone() for n, t in model.state_dict().items()}
    assert " batch, measured just now on cpu" in said(capsys, command, model, eps="0.1")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(t, before[1][n]) for n, t in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_what_is_wrong_with_a_command_it_leaves_to_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said(capsys, "attack", small_models.model(2), method="no-such") == ""


RUN = """
[columns.clean]
eval = { data = "digits", limit = 10 }
[columns.linf]
attack = { data = "digits", method = "pgd", eps = 0.1, limit = 10, n-samples = 3 }
[rows.release]
checkpoint = "model.safetensors"
"""


def test_a_whole_run_says_first_what_its_stages_take_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """10 images: 10 passes score them, and 10 steps on one draw and 2 x 3 draws take 100 + 60."""
    stages = recipes.load(written(tmp_path, RUN, monkeypatch)).stages
    monkeypatch.setattr(cost, "_read", lambda *_: small_models.model(2))

    def line(first: int, done: int) -> str:
        forecast_run(stages[first:], done, tmp_path, execute=lambda _: pytest.fail("no convert"))
        return capsys.readouterr().err

    asked = slow(monkeypatch, 0.5, 0.5)
    assert line(0, 0).startswith("about 3 min: 2 stages to do, 0 up to date, at the speed of one")
    assert asked == [1, None, None]
    assert line(1, 1).startswith("about 2 min: 1 stage to do, 1 up to date, ")
    assert line(2, 2) == ""
    asked = slow(monkeypatch, 0.01, 0.01)
    assert line(0, 0) == ""
    assert asked == [1]
    monkeypatch.setattr(cost, "_read", lambda *_: None)  # without the permission for its code
    assert line(0, 0) == ""
