"""The audit: its verdicts on defenses whose robustness is known, and checks worked out by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import random_networks
import rlskit
import small_models
from known_defenses import (
    EPS,
    Dropped,
    Noise,
    Wrapped,
    distilled,
    quantised,
    saturated,
    trained,
    undefended,
)
from rlskit.attacks import ATTACKS, prepare
from rlskit.audit import CHECKS, AuditResult, audit_model, binarization
from rlskit.audit.advice import advice
from rlskit.audit.auditing import METHODS
from rlskit.audit.case import Case
from rlskit.audit.chance import clearly_above, clearly_more_than
from rlskit.audit.checks import Kind
from rlskit.audit.defended import Own, influence, is_random, randomness
from rlskit.audit.measurement import Measurement
from rlskit.cli import run
from rlskit.data import Data, load
from rlskit.errors import RequestError, RunError, UnmergedError, UntrustedError
from rlskit.seeds import Purpose

SOUND: dict[str, Any] = {
    "eps": EPS, "steps": 10, "step_size": EPS / 3, "queries": 100, "points": 20,
}  # fmt: skip
"""PGD that reaches all of the ball, beside searches that are shorter than by default."""

NAMES = [f"M{number}" for number in range(1, 14)]


@pytest.fixture(autouse=True)
def _less_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half as many problems of M12 leave room for one that is missed, and for none that counts.

    Eight draws of M7 average these models' noise as well as 20.
    """
    monkeypatch.setattr("rlskit.audit.binarization.IMAGES", 12)
    monkeypatch.setattr("rlskit.audit.checks.EOT_DRAWS", 8)


@cache
def digits(limit: int) -> Data:
    return load("digits", "test", limit=limit)


def audit(model: nn.Module, limit: int = 60, **options: Any) -> AuditResult:
    return audit_model(model, digits(limit), **{**SOUND, **options})


FRESH: dict[str, Any] = {"protocol": "eot", "n_attacked": 3, "n_samples": 5}
SHORT: dict[str, Any] = {"steps": 6, "step_size": EPS / 2}

HONEST: dict[str, Callable[[], AuditResult]] = {
    "undefended": lambda: audit(trained()),
    "undefended, as a module": lambda: audit(undefended(), method="apgd-ce", step_size=None),
    "logits times 1000": lambda: audit(distilled()),
    "adversarially trained": lambda: audit(trained(adversarially=True)),
    "ensemble under EOT": lambda: audit(trained("ensemble"), 30, **FRESH, **SHORT),
    "RLS under EOT": lambda: audit(trained("rls"), 30, **FRESH, **SHORT),
    "noise of one's own under EOT": lambda: audit(
        Noise(undefended(), 0.2), 24, n_attacked=5, protocol="eot"
    ),
    "a converted random network under EOT": lambda: audit(  # three draws are too few for its noise
        trained(factory="restless"), 24, **{**FRESH, "n_attacked": 5}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_honest_models_raise_no_alarm(name: str) -> None:
    found = HONEST[name]()
    assert {check.name: check.detail for check in found.checks if check.verdict == "fail"} == {}
    assert found.passed
    clean = found.accuracy["clean"]
    assert clean is not None
    assert clean.mean > 0.9
    skipped = {check.name for check in found.checks if check.verdict == "skipped"}
    # no readout fits a draw that is random in itself
    in_itself = {"M12"} if "own under" in name or "random" in name else set()
    assert skipped == (set() if "EOT" in name else {"M7", "M8"}) | in_itself


DISHONEST: dict[str, tuple[Callable[[], AuditResult], set[str], set[str]]] = {
    "quantised input": (
        lambda: audit(quantised()), {"M2", "M3", "M9", "M10"}, {"M6", "M12"}
    ),
    "saturated logits": (lambda: audit(saturated()), {"M3", "M9", "M10"}, {"M2", "M6"}),
    "a saturated softmax": (
        lambda: audit(distilled(), loss="ce-saturating"), {"M2", "M9", "M13"}, {"M1", "M6"}
    ),
    "eps divided by 255 twice": (
        lambda: audit(trained(), eps=8 / 255 / 255, step_size=2 / 255 / 255), {"M4"}, set()
    ),
    "an attack with step 0": (
        lambda: audit(trained(), step_size=0), {"M1", "M2", "M3", "M10", "M12"}, {"M6"}
    ),
    "the paper's ten steps of eps / 10": (
        lambda: audit(trained(), 100, steps=None, step_size=None, queries=500),
        {"M1", "M2", "M5"}, {"M12"}
    ),
    "noise with EOT off": (lambda: audit(trained("rse"), n_samples=5), {"M7"}, set()),
    "noise of one's own with EOT off": (
        lambda: audit(Noise(undefended(), 0.3)), {"M11"}, {"M5", "M7"}
    ),
    "a converted random network with EOT off": (
        lambda: audit(trained(factory="restless"), n_samples=5), {"M11"}, {"M5", "M6", "M7"}
    ),
    "dropout frozen by eval mode": (
        lambda: audit(Dropped(undefended(), 0.3, frozen=True).train()), {"M11"}, set()
    ),
}  # fmt: skip
"""Name -> the audit, the checks that must fail, and those that may."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DISHONEST)
def test_known_faults_are_found(name: str) -> None:
    run_audit, must, may = DISHONEST[name]
    found = run_audit()
    assert not found.passed
    failed = set(found.failed)
    assert must <= failed, [(check.name, check.detail) for check in found.checks]
    assert failed <= must | may, [(check.name, check.detail) for check in found.checks]


def test_images_in_0_to_255_are_refused() -> None:
    images = 255 * digits(20).images(range(20))
    with pytest.raises(RequestError, match=r"must lie in \[0, 1\]"):
        audit_model(undefended(), (images, digits(20).labels), **SOUND)


def test_images_and_labels_of_every_kind() -> None:
    images, labels = (255 * digits(24).images(range(24))).round().byte(), digits(24).labels
    few: dict[str, Any] = {**SOUND, "queries": 2, "steps": 1}
    wanted = audit_model(undefended(), (images.float() / 255, labels), **few).accuracy
    given: list[tuple[Any, Any]] = [
        (images, labels), (images.numpy() / 255, labels.numpy()),
        ((images / 255).tolist(), labels.tolist()),
    ]  # fmt: skip
    for pair in given:
        assert audit_model(undefended(), pair, **few).accuracy == wanted
    half = (images / 255).half()
    assert audit_model(undefended(), (half, labels), **few).accuracy["clean"] == wanted["clean"]
    with pytest.raises(RequestError, match="24 images need as many labels"):
        audit_model(undefended(), (images, labels.float()), **few)


def test_what_is_no_classifier_is_one_sentence() -> None:
    chosen = Wrapped(undefended(), after=lambda logits: logits.argmax(1))
    with pytest.raises(RequestError, match="Wrapped is no classifier"):
        audit(chosen, 20)
    failing = Wrapped(undefended(), after=lambda logits: logits[:, 99])
    with pytest.raises(RunError, match="own code failed answering 8 images"):
        audit(failing, 20)
    with pytest.raises(RequestError, match=r"torch\.nn\.Module, not a OrderedDict"):
        audit(undefended().state_dict(), 20)  # type: ignore[arg-type]


def test_a_network_that_takes_0_to_255_has_nothing_to_audit() -> None:
    dark = Wrapped(undefended(), before=lambda images: images / 255)
    with pytest.raises(UntrustedError, match=r"guessing could be, too.*images in \[0, 1\]"):
        audit(dark, 40)


# Single checks, on models with a measurement that is known by hand.


class Linear(nn.Module):
    """Two classes and two pixels; class 0 leads by w · (x - 0.5) + b."""

    def __init__(self, w: tuple[float, float], b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w, dtype=torch.float32)), b

    def forward(self, images: Tensor) -> Tensor:
        lead = (images.flatten(1) - 0.5) @ self.w + self.b
        return torch.stack([lead, torch.zeros_like(lead)], 1)


class Drawn:
    """A defense with two given draws; every view is of the one that its repeat names."""

    n_samples, draws = 2, 2

    def __init__(self, *members: nn.Module) -> None:
        self.members = members

    def answer(self) -> nn.Module:
        return self.members[0]

    def one(self) -> nn.Module:
        return self.members[0]

    def view(self, protocol: str, n_attacked: int, repeat: int = 0) -> nn.Module:
        return self.members[repeat % len(self.members)]


def case(module: nn.Module | Drawn, leads: list[float] | None = None, **fields: Any) -> Case:
    """Images on the line x + x' = 1 + lead, all of class 0, and PGD with a budget of 0.1."""
    leads = leads or [0.05, 0.1, 0.3, 0.6]
    images = torch.tensor([[0.5 + lead / 2] * 2 for lead in leads])[:, None, None]
    options = {"eps": 0.1, "steps": 10, "step_size": 0.05, **fields.pop("attack", {})}
    defended = module if isinstance(module, Drawn) else Own(module, 1, 1)
    labels = torch.zeros(len(leads), dtype=torch.long)
    return Case(defended, images, labels, 2, prepare("pgd", **options), **fields)


def test_what_pgd_fools_on_a_plane() -> None:
    """A budget of 0.1 takes 0.2 from the lead: of 0.05, 0.1, 0.3 and 0.6 the first two go."""
    found = case(Linear((1, 1)))
    assert found.clean.all()
    assert found.robust.tolist() == [False, False, True, True]
    assert found.survivors.tolist() == [2, 3]


def test_m1_on_a_plane_is_0_and_with_step_0_all_that_fgsm_gains() -> None:
    assert CHECKS["M1"].measure(case(Linear((1, 1)))).value == 0
    still = case(Linear((1, 1)), [0.19] * 20, attack={"step_size": 0.0, "random_start": False})
    found = CHECKS["M1"].measure(still)
    assert (found.value, found.failed) == (100, True)


class Flat(Linear):
    """The same answers, and a gradient of exactly 0."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach()) + 0 * images.sum()


def test_m2_finds_a_flat_model_that_queries_and_transfer_move() -> None:
    leads, still = [0.15] * 20, {"random_start": False}
    found = CHECKS["M2"].measure(case(Flat((1, 1)), leads, attack=still, surrogate=Linear((1, 1))))
    assert (found.value, found.failed) == (100, True)
    assert found.detail == "pgd 100.0 %, Square 0.0 %; pgd 100.0 %, transfer 0.0 %"
    plane = CHECKS["M2"].measure(case(Linear((1, 1)), leads, attack=still))
    assert (plane.value, plane.failed) == (0, False)


def test_m3_on_a_plane() -> None:
    """A budget of 0.5 takes 1 from the lead: all are fooled, guessing is 50 %."""
    found = CHECKS["M3"].measure(case(Linear((1, 1))))
    assert (found.value, found.failed) == (-50, False)
    firm = CHECKS["M3"].measure(case(Linear((1, 1), 9.0), [0.05] * 20))
    assert (firm.value, firm.failed) == (50, True)


def test_m4_reads_the_curve_of_a_plane() -> None:
    found = CHECKS["M4"].measure(case(Linear((1, 1))))
    # leads under 0.1, 0.2 and 0.4 go
    assert found.detail == "100.0 % at 0, 75.0 % at 0.05, 50.0 % at 0.1, 25.0 % at 0.2"
    assert (found.value, found.failed) == (-25, False)


def test_m4_names_the_wrong_scale() -> None:
    found = CHECKS["M4"].measure(case(Linear((1, 1)), attack={"eps": 8 / 255 / 255}))
    assert (found.value, found.failed) == (0, True)
    assert "divided by 255 twice" in found.detail


def test_m5_counts_what_more_steps_fool() -> None:
    """One step of 0.02 takes 0.04 from a lead, ten take 0.2."""
    slow = {"steps": 1, "step_size": 0.02, "random_start": False}
    found = CHECKS["M5"].measure(case(Linear((1, 1)), [0.1] * 15 + [0.3] * 5, attack=slow))
    assert (found.value, found.failed) == (75, True)
    assert "steps x 10: 15 more of 20 fooled, restarts x 5: 0 more" in found.detail


def test_where_nothing_survives_nothing_is_left_to_try() -> None:
    weak = case(Linear((1, 1)), [0.1] * 12)
    assert not weak.robust.any()
    found = {name: CHECKS[name].measure(weak) for name in ("M5", "M6", "M10")}
    assert {name: one.value for name, one in found.items()} == {"M5": 0, "M6": 0, "M10": 100}
    assert not any(one.failed for one in found.values())


def test_m6_wins_where_the_attack_stands_still() -> None:
    """Every other point is a corner, and a quarter of those takes the whole 0.2."""
    still = {"step_size": 0.0, "random_start": False}
    found = CHECKS["M6"].measure(case(Linear((1, 1)), [0.19] * 10, attack=still, points=60))
    assert (found.value, found.failed) == (10, True)


class Hidden(Drawn):
    """The attacked draw looks the other way; EOT sees the one that answers."""

    def view(self, protocol: str, n_attacked: int, repeat: int = 0) -> nn.Module:
        return self.members[0 if protocol == "eot" else 1]


def test_m7_compares_with_all_draws() -> None:
    """PGD on x - x' leaves the sum as it is; on x + x' it takes 0.2 from it."""
    hidden = Hidden(Linear((1, 1)), Linear((1, -1)))
    still = {"random_start": False}
    found = CHECKS["M7"].measure(case(hidden, [0.1] * 20 + [0.3] * 20, attack=still))
    assert found.detail == "pgd 100.0 %, eot n=2 50.0 %"
    assert (found.value, found.failed) == (50, True)
    assert CHECKS["M7"].measure(case(Linear((1, 1)))).skipped


@pytest.mark.parametrize(
    ("other", "cosine", "failed"),
    # four views: of the six pairs, four are of unlike draws, and two of the same
    [
        ((1.0, -1.0), (4 * 0 + 2) / 6, False),
        ((-1.0, -1.0), (4 * -1 + 2) / 6, True),
        ((1.0, 1.0), 1.0, False),
    ],
)
def test_m8_of_two_linear_draws(other: tuple[float, float], cosine: float, failed: bool) -> None:
    found = CHECKS["M8"].measure(case(Drawn(Linear((1, 1)), Linear(other))))
    assert found.value == pytest.approx(cosine, abs=1e-6)
    assert found.failed == failed


def test_m8_of_orthogonal_draws_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlskit.audit.checks.GRADIENT_SETS", 2)
    found = CHECKS["M8"].measure(case(Drawn(Linear((1, 1)), Linear((1, -1)))))
    assert (found.value, found.failed) == (0, True)


@pytest.mark.parametrize(
    ("before", "share", "detail"),
    [
        (lambda images: (3 * images).round() / 3, 100, "4 zero, 0 less than rounding"),
        (lambda images: images, 0, "0 zero, 0 less than rounding, 0 not finite"),
        (lambda images: 1e-8 * images + 0.9, 100, "0 zero, 4 less than rounding"),
        # the root's slope is infinite at 0, and 0 times that NaN: leads below 0.2
        (lambda images: ((images > 0.6) * images).sqrt(), 50, "2 not finite, of 4"),
    ],
)
def test_m9_counts_gradients_that_lead_nowhere(
    before: Callable[[Tensor], Tensor], share: float, detail: str
) -> None:
    found = CHECKS["M9"].measure(case(Wrapped(Linear((1, 1)), before=before)))
    assert (found.value, found.failed) == (share, share > 0)
    assert detail in found.detail


def test_m10_searches_up_to_the_whole_range() -> None:
    found = CHECKS["M10"].measure(case(Linear((1, 1))))
    assert (found.value, found.failed) == (100, False)
    firm = CHECKS["M10"].measure(case(Linear((1, 1), 9.0), [0.1] * 20))
    assert (firm.value, firm.failed) == (0, True)


def test_m11_tells_frozen_ignored_and_averaged_randomness_apart() -> None:
    plane = Linear((10, 10))
    measure = CHECKS["M11"].measure
    frozen = measure(case(Dropped(plane, 0.5, frozen=True).train()))
    assert frozen.failed
    assert "freezes" in frozen.detail
    awake = Dropped(plane, 0.5, frozen=False)
    assert "protocol transfer ignores it" in measure(case(awake)).detail
    assert measure(case(awake)).failed
    assert not measure(case(awake, protocol="eot", n_attacked=5)).failed
    asleep = measure(case(Dropped(plane, 0.5, frozen=True).eval()))
    assert (asleep.value, asleep.failed) == (0, False)
    ordinary = measure(case(nn.Sequential(nn.Dropout(0.5), plane).eval()))
    assert not ordinary.failed
    assert "its dropout sleeps in eval mode" in ordinary.detail


def test_a_choice_between_two_paths_is_seen_whatever_the_seed() -> None:
    images = digits(2).images(range(2))
    assert all(is_random(random_networks.coin().eval(), images, seed) for seed in range(200))


class Places(nn.Module):
    """Two logits that lead by the image's brightness, up or down by the place in the batch."""

    def forward(self, images: Tensor) -> Tensor:
        lead = images.flatten(1).sum(1) * (-1.0) ** torch.arange(len(images))
        return torch.stack([lead, -lead], 1)


class Mean(nn.Module):
    """Two logits that lead by the image's contrast with all images of its batch."""

    def forward(self, images: Tensor) -> Tensor:
        lead = (images - images.mean(0)).flatten(1).sum(1)
        return torch.stack([lead, -lead], 1)


class First(Mean):
    """The same beside the first image of its batch."""

    def forward(self, images: Tensor) -> Tensor:
        lead = (images - images[:1].mean()).flatten(1).sum(1)
        return torch.stack([lead, -lead], 1)


@pytest.mark.parametrize("batch", [First(), Places()])
def test_m11_sees_that_an_answer_depends_on_the_place_in_the_batch(batch: nn.Module) -> None:
    assert CHECKS["M11"].measure(case(batch, [0.1, 0.2, 0.3, 0.6])).failed


@pytest.mark.parametrize("count", [1, 4])
def test_m11_sees_that_an_answer_depends_on_batch_mates(count: int) -> None:
    found = CHECKS["M11"].measure(case(Mean(), [0.1, 0.2, 0.3, 0.6][:count]))
    assert found.failed
    assert "eval() forgotten" in found.meaning
    assert influence(Noise(Linear((1, 1)), 0.1), digits(4).images(range(4))[:, :, :1, :2], 0) == 0


QUICKEST: dict[str, Any] = {"steps": 1, "step_size": EPS, "queries": 2, "points": 2}


def test_a_module_in_train_mode_with_batch_norm_fails_m11() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), undefended()).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = audit(network, 20, **QUICKEST)
    assert "M11" in found.failed
    assert "batch-mates" in found["M11"].detail
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


class Careless(nn.Module):
    """Normalises in place, and answers with an object that holds the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> SimpleNamespace:
        logits = self.network(images.sub_(0.25).mul_(2).div_(2).add_(0.25).clamp(0, 1))
        return SimpleNamespace(logits=logits.to(torch.bfloat16))


def test_a_module_may_write_into_its_images_and_answer_with_an_object() -> None:
    images, labels = digits(12).images(range(12)), digits(12).labels
    before, other = images.clone(), Careless(undefended()).eval()
    found = audit_model(
        Careless(undefended()).eval(), (images, labels), eps=EPS, surrogate=other, **QUICKEST
    )
    assert torch.equal(images, before)
    assert found.model.architecture == "Careless"
    assert found.accuracy["robust"] is not None


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Softmax(1)])
def test_a_last_step_that_makes_probabilities_is_undone(last: nn.Module) -> None:
    quick: dict[str, Any] = {**QUICKEST, "steps": 4, "step_size": EPS / 2}
    plain = audit(undefended(), 30, **quick)
    squeezed = audit(nn.Sequential(undefended(), last), 30, **quick)
    assert squeezed.accuracy == plain.accuracy
    assert squeezed["M9"].verdict == "pass"


def test_answers_that_may_be_probabilities_are_refused() -> None:
    squeezed = Wrapped(undefended(), after=lambda logits: 0.5 + logits / 1000)
    with pytest.raises(UntrustedError, match=r"every answer of the module lies in \[0, 1\]"):
        audit(squeezed, 30)


class Saturating(Linear):
    """Three classes whose logits lead by 40 times as much as the images."""

    def forward(self, images: Tensor) -> Tensor:
        return 40 * torch.cat([super().forward(images), images.new_full((len(images), 1), -9.0)], 1)


@pytest.mark.parametrize("method", METHODS)
def test_m13_tries_the_other_losses(method: str) -> None:
    options: dict[str, Any] = {"eps": 0.25, "steps": 10}
    if not method.startswith("apgd"):
        options["step_size"] = 0.05
    attack = prepare(method, **options)
    ours = dataclasses.replace(case(Saturating((3, 3)), [0.4] * 12), classes=3, attack=attack)
    found = CHECKS["M13"].measure(ours)
    assert (found.value, found.failed) == (0, False)
    assert all(f"on {loss} " in found.detail for loss in ("ce", "margin", "dlr"))
    if method in ("eotpgd", "apgd-ce", "apgd-dlr"):
        return  # at random starts, a saturated gradient leads somewhere at times
    blind = dataclasses.replace(ours, attack=attack.with_loss("ce-saturating"))
    found = CHECKS["M13"].measure(blind)
    assert (found.value, found.failed) == (100, True)
    assert "on ce-saturating 100.0 %, on ce 0.0 %, on margin 0.0 %" in found.detail


class Distracting(nn.Module):
    """The first pixel decides by its whole way, 63 others by how far they are from gray."""

    def forward(self, images: Tensor) -> Tensor:
        first, others = torch.split(images.flatten(1), [1, 63], 1)
        lead = first - 0.5 + 0.1 * (others - 0.5).abs().sum(1, keepdim=True)
        return torch.cat([lead, -lead], 1)


def test_m13_tries_the_other_kind_of_steps() -> None:
    """Signs of length 0.05 throw the others from 0.525 to 0.475 and back; gradients let them rest.

    The lead of 0.1 * 63 * 0.025 less the budget of 0.1 stays above 0, and that of less than
    0.1 * 63 * 0.005 does not.
    """
    images = torch.full((12, 1, 1, 64), 0.525)
    images[..., 0] = 0.5
    ours = case(Distracting(), [0.0] * 12, attack={"random_start": False})
    found = CHECKS["M13"].measure(dataclasses.replace(ours, images=images))
    assert (found.value, found.failed) == (100, True)
    assert "on margin 100.0 %, with steps along gradients 0.0 %" in found.detail


@pytest.mark.parametrize("protocol", ["transfer", "eot"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_advice_names_only_what_is_there_and_not_given(
    method: str, loss: str, protocol: str
) -> None:
    attack = prepare(method, eps=0.1).with_loss(loss)
    ours = dataclasses.replace(case(Linear((1, 1))), attack=attack, protocol=protocol)
    said = " ".join(kind.failed.format(**advice(ours)) for kind in CHECKS.values())
    takes = ATTACKS[method].defaults
    for option in ("step_size", "restarts"):
        assert (f"`{option}`" in said) == (option in takes)
    assert ("`loss='margin'`" in said) == ("loss" in takes and loss == "ce")
    assert ("`protocol='eot'`" in said) == (protocol != "eot")


def test_m12_on_a_plane() -> None:
    """Of a square's corners two stand out along the lead, and PGD walks into either."""
    leads = [0.3] * 12
    found = CHECKS["M12"].measure(case(Linear((1, 1)), leads))
    assert (found.value, found.failed) == (100, False)
    assert "problems on logits" in found.detail  # a plane has no linear layer
    still = {"step_size": 0.0, "random_start": False}
    weak = CHECKS["M12"].measure(case(Linear((1, 1)), leads, attack=still))
    assert (weak.value, weak.failed) == (0, True)


def test_m12_needs_a_readout() -> None:
    constant = Wrapped(Linear((1, 1)), before=lambda images: 0 * images)
    found = CHECKS["M12"].measure(case(constant, [0.3] * 12))
    assert found.skipped
    assert "only 0 of 12 problems could be built" in found.detail


# What the verdicts rest on.


def right(first: int, both: int, second: int, neither: int = 0) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([first, both, second, neither])
    return (
        torch.tensor([True, True, False, False]).repeat_interleave(counts),
        torch.tensor([False, True, True, False]).repeat_interleave(counts),
    )


@pytest.mark.parametrize(
    ("first", "second", "found"),
    # the one-sided sign test: 2^-4 > 0.05 > 2^-5; with one loss 7/64 > 0.05, 8/128 > 0.05, 9/256
    [(4, 0, False), (5, 0, True), (5, 1, False), (6, 1, False), (7, 1, True), (0, 9, False)],
)
def test_clearly_above_by_hand(first: int, second: int, found: bool) -> None:
    assert clearly_above(*right(first, 50, second), 1.0) is found


def test_clearly_above_needs_its_threshold_too() -> None:
    assert not clearly_above(*right(9, 1000, 0), 1.0)  # 0.9 points


@pytest.mark.parametrize(("count", "found"), [(0, False), (2, False), (3, False), (4, True)])
def test_clearly_more_than_by_hand(count: int, found: bool) -> None:
    """Clopper-Pearson: 3 of 100 leave 0.82 %, 4 leave 1.38 %."""
    assert clearly_more_than(count, 100, 0.01) is found


def test_global_randomness_and_the_module_are_left_alone() -> None:
    module = Dropped(undefended(), 0.3, frozen=True).train()
    modes = [part.training for part in module.modules()]
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    first = audit(module, 20, queries=20, points=4, steps=2)
    assert torch.equal(torch.rand(4), wanted)
    assert [part.training for part in module.modules()] == modes
    assert audit(module, 20, queries=20, points=4, steps=2).to_json() == first.to_json()


def test_randomness_is_seeded_by_its_purpose() -> None:
    def drawn(seed: int, purpose: Purpose) -> float:
        with randomness(seed, purpose, torch.device("cpu")):
            return float(torch.rand(()))

    one, other = Purpose.ATTACK, Purpose.ANSWER
    assert drawn(0, one) == drawn(0, one)
    assert len({drawn(0, one), drawn(0, other), drawn(1, one)}) == 3


class Broken(nn.Module):
    """Logits are finite, gradients are NaN."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images) + 0 * (images - images).sqrt().sum()
        return logits


def test_nan_gradients_fail_and_do_not_end_the_audit() -> None:
    found = audit(Broken(undefended()), 20, queries=20, points=4)
    assert found["M9"].measured == 100
    assert {"M1", "M3", "M9"} <= set(found.failed)
    assert "NaN or infinite gradients" in found["M1"].detail
    assert found["M1"].measured is None
    assert found.accuracy["robust"] is None
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "pgd-l2"}, ["along gradients", "pgd-l2"]),
        ({"method": "apgd-ce", "step_size": None, "norm": "l2"}, ["linf, not in l2"]),
        ({"method": "square", "step_size": None}, ["steps along gradients", "square"]),
        ({"method": "fgsm", "steps": None, "step_size": None}, ["steps along gradients", "fgsm"]),
        ({"eps": 0}, ["budget above 0"]),
        ({"eps": 8}, ["8/255"]),
        ({"target": 3}, ["untargeted"]),
        ({"protocol": "multi", "n_attacked": 3}, ["protocol='eot'"]),
        ({"points": 0}, ["`points`"]),
    ],
)
def test_wrong_requests_are_named(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        audit(undefended(), 20, **options)
    assert all(word in str(caught.value) for word in words)


def test_a_module_needs_data() -> None:
    with pytest.raises(RequestError, match="give data"):
        audit_model(undefended(), **SOUND)


# The command line.

QUICK = ["--data", "digits", "--limit", "40", "--eps", "0.1", "--queries", "100", "-q"]
STEPS = ["--steps", "10", "--step-size", "0.03"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "model.safetensors"
    rlskit.save(trained(), path)
    return str(path)


def test_cli_passes_with_0_and_prints_every_check(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", checkpoint, *QUICK, *STEPS]) == 0
    shown = capsys.readouterr()
    assert all(f"{name} " in shown.out for name in NAMES)
    assert "eps=0.1 steps=10 · white-box n=1" in shown.out
    assert shown.err == ""


def test_cli_fails_with_4_and_writes_json(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "audit.json"
    still = ["--steps", "5", "--step-size", "0"]
    assert run(["audit", checkpoint, *QUICK, *still, "--json", str(target)]) == 4
    assert "audit failed: M1, M2, M3" in capsys.readouterr().err
    found = json.loads(target.read_text())
    assert found["schema"] == "rlskit.audit/1"
    assert found["passed"] is False
    assert [check["name"] for check in found["checks"]] == NAMES
    (first,) = (check for check in found["checks"] if check["name"] == "M1")
    assert first.keys() == {
        "name", "title", "measured", "unit", "threshold", "verdict", "detail", "meaning",
    }  # fmt: skip
    assert (first["verdict"], first["threshold"], first["unit"]) == ("fail", 1.0, "points")
    assert first["measured"] > 20
    assert found["attack"]["params"]["step_size"] == 0
    assert (found["protocol"], found["n_attacked"], found["data"]["n"]) == ("transfer", 1, 40)
    assert found["checkpoint"]["path"] == checkpoint


def test_cli_json_on_stdout_is_all_of_it(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["audit", checkpoint, *QUICK, *STEPS, "--surrogate", checkpoint, "--json", "-"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert "transfer" in next(c["detail"] for c in found["checks"] if c["name"] == "M2")


def test_cli_names_what_is_wrong(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", checkpoint, *QUICK, "--method", "square"]) == 2
    assert "steps along gradients" in capsys.readouterr().err


def test_an_interrupted_audit_goes_on_at_its_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Finished checks count, of the same audit only, and as long as nobody changed them."""
    model = small_models.trained("rls", 2)
    file, stop = tmp_path / "audit.json.unfinished", 6

    def call(**options: Any) -> AuditResult:
        def progress(step: str, done: int, total: int, **facts: float) -> None:
            if done == stop:
                raise KeyboardInterrupt

        few = {"steps": 1, "queries": 3, "points": 2, "n_samples": 2, "batch_size": 16}
        return audit_model(model, digits(30), eps=0.1, progress=progress, **few | options)

    def measured(**options: Any) -> tuple[list[str], AuditResult | None]:
        seen: list[str] = []
        with pytest.MonkeyPatch.context() as patched:
            for name, kind in CHECKS.items():

                def noted(case: Case, name: str = name, kind: Kind = kind) -> Measurement:
                    seen.append(name)
                    return kind.measure(case)

                patched.setitem(CHECKS, name, dataclasses.replace(kind, measure=noted))
            try:
                return seen, call(**options)
            except (KeyboardInterrupt, UnmergedError):
                return seen, None

    assert measured(keep=file) == (NAMES[:6], None)
    stop = -1
    seen, found = measured(keep=file)
    assert seen == NAMES[6:]
    assert found == call()
    assert not caplog.records
    file.rename(file.with_name(f"{file.name}.0-of-12"))  # as if that shard had done the most
    assert measured(keep=file, shard="0/12") == ([], None)
    assert measured(keep=file, shard="10/12") == (NAMES[10:11], None)
    assert not file.exists()
    assert measured(keep=file) == ([], found)
    assert not caplog.records
    assert measured(keep=file, seed=1)[0] == NAMES
    text = file.read_text()
    assert text.count('"fail"') + text.count('"pass"') > 5
    file.write_text(text.replace('"fail"', '"pass"').replace('"pass"', '"fail"', 1))
    assert measured(keep=file, seed=1)[0] == NAMES
    assert "is damaged, or of another audit" in caplog.text
    with pytest.raises(RequestError, match="`keep` needs a model of rlskit"):
        audit(rlskit.draws(model, 1, seed=0, purpose="defender")[0], 30, keep=file)


class HalfInside(nn.Module):
    """Float32 without, bfloat16 within, as under an autocast of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10, dtype=torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1).bfloat16()).float()
        return logits


def test_features_of_a_network_that_computes_in_another_precision_are_read_out() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    features = binarization.Features(HalfInside(), images[:1])
    score = binarization.Readout(features, torch.ones(64), torch.zeros(()))(images)[:, 1]
    assert torch.allclose(2 * score, images.bfloat16().float().sum((1, 2, 3)))
