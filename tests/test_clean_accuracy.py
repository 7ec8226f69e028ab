"""A model that only guesses is not robust: attacks, evaluations and gates refuse it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlskit
import small_models
from rlskit import attack, attack_adaptively, evaluate, measure_diversity, measure_transfer
from rlskit.audit import audit_model
from rlskit.cli import run
from rlskit.data import Data, from_memory
from rlskit.data.adversarial_file import read_adversarial, write_adversarial
from rlskit.documents import to_json
from rlskit.errors import RequestError, UntrustedError
from rlskit.evaluation.clean import knowledge
from rlskit.models.banks import BankedModel, Normalize
from rlskit.stats import guessed_share

DATA = small_models.digits(80)
FGSM: dict[str, Any] = {"method": "fgsm", "eps": 0.01}


@pytest.fixture(scope="module")
def good() -> BankedModel:
    return small_models.trained("none", 1)


def guesser() -> BankedModel:
    """A model that claims to be trained and is not: 13 of the 80 digits, no more than luck."""
    return small_models.model(1, "none")


class Always(nn.Module):
    """Two classes; one is the answer to everything, with gradients that lead nowhere."""

    def __init__(self, answer: int = 0) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.eye(2)[answer] * 9)

    def forward(self, images: Tensor) -> Tensor:
        return self.bias + 1e-3 * images.flatten(1)[:, :2]


def halves(positive: int, n: int) -> Data:
    """Noise of two classes, of which `positive` images are of class 1."""
    images = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return from_memory(images, (torch.arange(n) < positive).long(), 2)


# what guessing gets ------------------------------------------------------------------------------


def test_the_share_of_guessing_by_hand() -> None:
    even = np.arange(100) % 10
    assert guessed_share(even, even, 10) == pytest.approx(0.1)
    constant = np.zeros(100, dtype=np.int64)
    assert guessed_share(even, constant, 10) == pytest.approx(0.1)
    # of 90 to 10, always the first gets 90 %; answers that say so at random 0.9² + 0.1² = 82 %
    skewed = (np.arange(1000) % 10 == 9).astype(np.int64)
    assert guessed_share(skewed, np.zeros(1000, dtype=np.int64), 2) == pytest.approx(0.9)
    apart = guessed_share(skewed, 1 - skewed, 2)  # all wrong: 0.18 by chance, but 90 % are known
    assert 0.87 < apart < 0.9
    # three of eight alike say nothing of ten classes
    few = np.array([0, 0, 0, 1, 2, 3, 4, 5])
    assert guessed_share(few, few, 10) == pytest.approx(14 / 64)


@pytest.mark.parametrize(
    ("right", "n", "classes", "above", "at"),
    [
        (12, 100, 10, False, True),
        (30, 100, 10, True, False),
        (58, 100, 2, False, True),
        (64, 100, 2, True, False),
        (2, 2, 10, False, False),  # nobody could show it
        (4, 4, 2, False, False),
        (2, 3, 10, False, False),  # nearer to perfect than to guessing: more images may show it
        (1, 8, 10, False, False),  # three in ten would do so in every fourth case
        (1, 20, 10, False, True),
        (8, 8, 10, True, False),
    ],
)
def test_verdicts_by_hand(right: int, n: int, classes: int, above: bool, at: bool) -> None:
    labels = torch.arange(n) % classes
    answers = torch.where(torch.arange(n) < right, labels, (labels + 1) % classes)
    found = knowledge(labels, [answers], classes)
    assert (found.above_guessing, found.at_guessing) == (above, at)


# trained models ----------------------------------------------------------------------------------


def test_every_measurement_refuses_a_model_that_guesses(tmp_path: Path) -> None:
    model = guesser()
    measurements: list[Callable[[], object]] = [
        lambda: attack(model, DATA, **FGSM, out=tmp_path / "a"),
        lambda: attack_adaptively(model, DATA, eps=0.01, steps=1, queries=1, out=tmp_path / "b"),
        lambda: evaluate(model, DATA, out=tmp_path / "c"),
        lambda: measure_diversity(model, DATA),
        lambda: measure_transfer(model, DATA),
        lambda: audit_model(model, DATA),
    ]
    for measure in measurements:
        with pytest.raises(UntrustedError, match=r"clean images, which guessing could be, too"):
            measure()
    assert not list(tmp_path.rglob("results.json"))
    assert not list(tmp_path.rglob("per_image.csv"))


def test_it_is_refused_before_the_attack_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlskit.threat.single import Threat

    monkeypatch.setattr(Threat, "craft", lambda *_, **__: pytest.fail("an attack ran"))
    with pytest.raises(UntrustedError, match="of 64 clean images"):
        attack(guesser(), DATA, **FGSM)


def test_the_whole_data_decide_where_a_few_images_did_not(
    good: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The few that are looked at first are told apart, all of them are not."""
    from rlskit.evaluation import run as module

    monkeypatch.setattr(module.Run, "look", lambda _: None)
    with pytest.raises(UntrustedError, match="of 80 clean images, which guessing could be, too"):
        attack(guesser(), DATA, **FGSM, out=tmp_path, save_adversarial=True)
    assert list((tmp_path / "blocks").iterdir())
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "adversarial.safetensors").exists()
    assert attack(good, DATA, **FGSM).warnings == ()


def test_a_constant_answer_to_unbalanced_data_is_guessing() -> None:
    model = rlskit.wrap(Always(), (1, 4, 4))
    for positive in (10, 30, 50):  # 90, 70 and 50 % are right
        with pytest.raises(UntrustedError, match=r"guessing could be, too"):
            evaluate(model, halves(positive, 100))
    (one,) = evaluate(model, halves(0, 100))  # one class only
    assert one.accuracy["clean"].mean == 1
    assert any(warning.startswith("TOO FEW IMAGES") for warning in one.warnings)


@pytest.mark.parametrize("limit", [1, 2])
def test_few_images_are_said_and_decide_no_gate(good: BankedModel, limit: int) -> None:
    data = small_models.digits(limit)
    result = attack(good, data, **FGSM)
    assert result.warnings[-1].startswith("TOO FEW IMAGES: the model is right on")
    with pytest.raises(UntrustedError, match=r"too few to tell it from guessing.*take more images"):
        attack(good, data, **FGSM, gated=True)


# untrained models --------------------------------------------------------------------------------


def test_an_untrained_model_is_warned_of_and_passes_no_gate() -> None:
    model = small_models.model(1, "none", trained=False)
    untrained, guesses = attack(model, DATA, **FGSM).warnings
    assert untrained.startswith("UNTRAINED MODEL")
    assert guesses.startswith("NO BETTER THAN GUESSING: right on")
    with pytest.raises(UntrustedError, match="guessing could be, too"):
        attack(model, DATA, **FGSM, gated=True)
    with pytest.raises(UntrustedError, match="guessing could be, too"):
        evaluate(model, DATA, expect_clean=0)


# --expect-clean ----------------------------------------------------------------------------------


def test_expected_accuracy(good: BankedModel, tmp_path: Path) -> None:
    share = evaluate(good, DATA)[0].accuracy["clean"].mean
    assert 0.75 < share < 0.99
    assert attack(good, DATA, **FGSM, expect_clean=share).accuracy["clean"].mean == share
    with pytest.raises(UntrustedError, match=rf"is {100 * share:.1f} % \(\d+ of 80 clean images\)"):
        attack(good, DATA, **FGSM, expect_clean=share + 0.01, out=tmp_path)
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(UntrustedError, match="below the 99 % of `expect_clean`"):
        audit_model(good, DATA, expect_clean=0.99)
    with pytest.raises(RequestError, match=r"`expect_clean` is a share in \[0, 1\], .* not 90"):
        evaluate(good, DATA, expect_clean=90)


def test_it_is_refused_early_where_a_few_images_show_it(
    good: BankedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlskit.threat.single import Threat

    dark = dataclasses.replace(good.card.pixels, mean=(1.0,), std=(1.0,))
    model = BankedModel(
        list(good.banks), good.partition, dataclasses.replace(good.card, pixels=dark)
    )
    share = evaluate(model, DATA)[0].accuracy["clean"].mean
    assert 0.2 < share < 0.7  # it still knows something, so that only the user can tell
    monkeypatch.setattr(Threat, "craft", lambda *_, **__: pytest.fail("an attack ran"))
    with pytest.raises(UntrustedError, match=r"of 64 clean images\), below the 90 %.*`mean`"):
        attack(model, DATA, **FGSM, expect_clean=0.9)


# saved adversarial images ------------------------------------------------------------------------


def test_saved_images_tell_a_fooled_model_from_one_that_guesses(
    good: BankedModel, tmp_path: Path
) -> None:
    attack(good, DATA, method="pgd", eps=0.4, out=tmp_path, save_adversarial=True)
    path = tmp_path / "adversarial.safetensors"
    (fooled,) = evaluate(good, adversarial=path)
    assert fooled.accuracy["robust"].mean < 0.1
    assert fooled.warnings == ()
    with pytest.raises(UntrustedError, match="of 64 clean images, which guessing could be"):
        evaluate(guesser(), adversarial=path)  # the clean ones are found by their name
    with pytest.raises(UntrustedError, match=r"of 80 clean images\), below the 99 %"):
        evaluate(good, adversarial=path, expect_clean=0.99)


def test_saved_images_of_unknown_data(good: BankedModel, tmp_path: Path) -> None:
    attack(good, DATA, method="pgd", eps=0.4, out=tmp_path, save_adversarial=True)
    path = tmp_path / "adversarial.safetensors"
    saved = read_adversarial(path, good.card.pixels.shape, good.card.classes)
    images, labels = saved.data.images(range(80)), saved.data.labels
    nowhere = dataclasses.replace(saved.about.data, name="folder:/nowhere")
    about = to_json(dataclasses.replace(saved.about, data=nowhere))
    write_adversarial(path, images, labels, torch.arange(80), about)
    (own,) = evaluate(good, adversarial=path)  # its attack looked
    assert not any("CLEAN ACCURACY" in warning for warning in own.warnings)
    (result,) = evaluate(guesser(), adversarial=path)
    assert result.warnings[-1].startswith("CLEAN ACCURACY UNKNOWN: the model is right on")
    with pytest.raises(UntrustedError, match="its clean accuracy is not known here"):
        evaluate(guesser(), adversarial=path, gated=True)
    with pytest.raises(RequestError, match="`expect_clean` needs the clean images"):
        evaluate(good, adversarial=path, expect_clean=0.5)
    with pytest.raises(UntrustedError, match=r"below the 99 %"):
        evaluate(good, DATA, adversarial=path, expect_clean=0.99)


# the command line --------------------------------------------------------------------------------


def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes=10, in_chans=1):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))\n"
    )
    assert run(["convert", "net.py:net", "--image-size", "8", "--banks", "1", "-q"]) == 0
    fgsm = ["attack", "--method", "fgsm", "--eps", "0.01", "-q"]
    assert run(fgsm) == 0
    assert "UNTRAINED" in capsys.readouterr().err
    assert run([*fgsm, "--fail-under", "0", "-o", "gated"]) == 4
    assert not Path("gated/results.json").exists()
    assert run([*fgsm, "--expect-clean", "0.9"]) == 4
    assert "--expect-clean" in capsys.readouterr().err
    assert run(["train", "--epochs", "5", "--lr", "0.1", "-q"]) == 0
    assert run([*fgsm, "--expect-clean", "0.5", "--fail-under", "0.1"]) == 0
    shifted = rlskit.load("rls.safetensors")
    shifted.card.pixels = dataclasses.replace(shifted.card.pixels, mean=(60.0,))
    shifted.normalize = Normalize(shifted.card.pixels)
    rlskit.save(shifted, "shifted.safetensors")
    capsys.readouterr()
    for command in ("attack", "eval", "audit", "diversity"):
        assert run([command, "shifted.safetensors", "-q"]) == 4
        assert "guessing could be, too" in capsys.readouterr().err
    assert run(["eval", "--expect-clean", "90", "-q"]) == 2
    data = json.loads(Path("runs/attack-001/results.json").read_text())
    assert math.isclose(data["accuracy"]["clean"]["n"], 360)
