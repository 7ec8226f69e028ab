"""`rlskit doctor`: what it says is so, and it ends as the attack would."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import pytest
import torch
from torch import Tensor, nn

import small_models
from rlskit import attack
from rlskit.cli import run as command
from rlskit.errors import UntrustedError
from rlskit.evaluation import diagnose, diagnosis, machine
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel

DATA = small_models.digits(40)


class Noisy(nn.Module):
    """Another answer at every call."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = small_models.network(seed)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images)
        return answer + torch.rand_like(answer)


def squashed(seed: int) -> nn.Module:
    return nn.Sequential(*small_models.network(seed), nn.Sigmoid())


def found(model: BankedModel) -> dict[str, str]:
    """What is said of a model; the last of several warnings."""
    return {one.about: "TROUBLE " * one.trouble + one.text for one in diagnose(model, DATA)}


@pytest.fixture(scope="module")
def trained() -> BankedModel:
    return small_models.trained("none", 1)


def test_a_sound_model(trained: BankedModel) -> None:
    said = found(trained)
    assert "TROUBLE" not in " ".join(said.values())
    images = DATA.adapted(trained.card.pixels, 10).images(range(40))
    right = int(
        (small_models.answers(trained.banks[0], trained.normalize(images)) == DATA.labels).sum()
    )
    assert right > 20
    assert said["clean"].startswith(f"{right} of 40 images are right")
    assert said["gradients"] == "can be followed at 40 of 40 images looked at"
    assert said["constants"] == "mean 0.3; std 0.4: stated, or of what it was made for"
    assert said["defense"] == "none, M = 1, L = 2, N = 1"
    assert said["size"].endswith(", 1,042 parameters, images of 1x8x8")  # 60 + 12 + 970
    assert said["eval takes"] == "the mean of N = 1 draw on 40 images, in blocks of 128, on cpu"
    assert said["attack takes"].startswith("pgd in linf on one draw (transfer): eps 0.01, steps 10")


@pytest.mark.parametrize(
    ("build", "about", "text"),
    [
        (Noisy, "answers", "claims no randomness"),
        (squashed, "answers", "lies in [0, 1]"),
    ],
)
def test_what_would_make_numbers_mean_nothing_is_trouble_and_ends_an_attack(
    build: Callable[[int], nn.Module], about: str, text: str
) -> None:
    model = small_models.model(1, "none", layers=1, build=build)
    said = found(model)
    assert said[about].startswith("TROUBLE")
    assert text in said[about]
    with pytest.raises(UntrustedError):
        attack(model, DATA, method="pgd", eps=0.1)


def test_gradients_that_are_masked_at_some_images_only_are_trouble(trained: BankedModel) -> None:
    """A network whose answers are flat where the image's mean is above that of most."""
    bright = DATA.adapted(trained.card.pixels, 10).images(range(40)).mean((1, 2, 3)).median()

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained.banks[0]

        def forward(self, images: Tensor) -> Tensor:
            pixels = images * 0.4 + 0.3  # before the constants
            flat = pixels.mean((1, 2, 3), keepdim=True)[..., 0, 0] > bright
            answer: Tensor = self.network(images)
            return torch.where(flat, answer.detach(), answer)

    said = found(small_models.model(1, "none", layers=1, build=lambda _: Flat()))
    assert said["gradients"].startswith("TROUBLE at ")
    assert "TROUBLE" not in said["clean"]


def test_weights_that_are_not_finite_are_all_that_is_said(trained: BankedModel) -> None:
    model = small_models.model(1, "none")
    small_models.tensor(model, 0, "0.weight")[0] = torch.nan
    said = found(model)
    assert said["weights"].startswith("TROUBLE the weights are not finite")
    assert not {"answers", "clean"} & said.keys()


def test_a_constant_model_has_no_gradient_and_knows_nothing() -> None:
    model = small_models.model(1, "none")
    small_models.tensor(model, 0, "6.weight").zero_()
    said = found(model)
    assert said["gradients"].startswith("TROUBLE")
    assert said["clean"].startswith("TROUBLE the model is right on")


def test_an_untrained_model_is_only_warned_of_and_a_weak_protocol_said() -> None:
    said = [(one.about, one.text) for one in diagnose(small_models.model(2, trained=False), DATA)]
    warnings = [text.partition(":")[0] for about, text in said if about == "warning"]
    assert warnings == ["UNTRAINED MODEL", "OPTIMISTIC"]


def test_the_command(
    trained: BankedModel, tmp_path: object, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: trained)
    assert command(["doctor", "any.safetensors", "--limit", "40"]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["versions", "device", "threads"]
    assert lines[lines.index("size") :][:3] == ["size", "defense", "constants"]
    monkeypatch.setattr(diagnosis, "check_gradients", refuse)
    assert command(["doctor", "any.safetensors", "--limit", "40"]) == 4
    assert "gradients     TROUBLE: none --steps\n" in capsys.readouterr().out


def refuse(*_: object) -> None:
    raise UntrustedError("none `steps`")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2", "no-such-package>1; extra == 'other'", "ruff; extra == 'dev'",
              "numpy<9; extra == 'one-more'", "torch; extra == 'one-more'"]  # fmt: skip
    monkeypatch.setattr(diagnosis, "requires", lambda _: wanted)
    said = {one.about: one.text for one in machine()}
    assert said["other"] == "not installed: pip install 'rlskit[other]'"
    assert said["one-more"] == f"numpy {version('numpy')}"
    assert said["threads"].startswith(f"{torch.get_num_threads()}, on ")
    assert not {"dev", "torch", "one"} & said.keys()
