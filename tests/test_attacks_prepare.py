"""Requests for an attack: what is refused, and what the options are in [0, 1]."""

import inspect
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlskit.attacks import ATTACKS, ENGINES, prepare
from rlskit.attacks.ead import ead
from rlskit.attacks.options import OPTIONS
from rlskit.errors import RequestError, UntrustedError
from rlskit.evaluation.subject import library_versions


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as these, a second thread on a busy machine costs a hundredfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", ATTACKS)
def test_a_row_agrees_with_its_function(method: str) -> None:
    attack = ATTACKS[method]
    own = inspect.signature(attack.run).parameters
    assert attack.fixed.keys() <= own.keys()
    assert attack.implied.keys() <= attack.defaults.keys()
    assert not attack.defaults.keys() & attack.fixed.keys()
    assert ("target" in attack.defaults) == ("targeted" in own)
    assert attack.needs in ("gradients", "logits", "nothing")
    assert attack.defaults.get("norm") == (attack.norms[0] if len(attack.norms) > 1 else None)
    if attack.upstream is not None:
        assert attack.upstream.options <= attack.defaults.keys()


def test_defaults_are_those_of_the_function_but_what_the_name_implies() -> None:
    pgd = {
        "eps": 0.01, "steps": 10, "step_size": None, "loss": "ce", "momentum": 0.0,
        "random_start": True, "restarts": 1, "eot_samples": 1, "target": None,
    }  # fmt: skip
    bim = {k: v for k, v in pgd.items() if k not in ("random_start", "restarts", "momentum")}
    assert ATTACKS["pgd"].defaults == pgd
    assert ATTACKS["pgd-l2"].defaults == pgd | {"eps": 0.5}
    assert ATTACKS["eotpgd"].defaults == pgd | {"eot_samples": 2}
    assert ATTACKS["bim"].defaults == bim
    assert ATTACKS["mifgsm"].defaults == bim | {"momentum": 1.0}
    assert "loss" not in ATTACKS["apgd-ce"].defaults
    assert ATTACKS["fab"].defaults == {
        "norm": "linf", "steps": 100, "restarts": 1, "target_classes": 0
    }  # fmt: skip


def test_a_short_run_has_few_steps_and_is_the_same_attack_otherwise() -> None:
    attack = prepare("pgd", eps=0.1, steps=40, restarts=3)
    assert attack.short.params == {**attack.params, "steps": 2, "restarts": 1}
    assert prepare("square", steps=1).short.params["steps"] == 1
    assert prepare("ead", engine="torchattacks").short.params["steps"] == 10  # it takes no fewer


def test_the_table_in_the_docs_is_that_of_the_defaults() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "attacks.md").read_text(encoding="utf-8")
    page = page.split("## The table")[1].split("## ")[0]
    lines = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    shown = {method: cells for cells in lines for method in re.findall("`(.+?)`", cells[0])}
    assert shown.keys() == ATTACKS.keys()
    for method, (_, _, norms, numbers, scaled) in shown.items():
        attack = ATTACKS[method]
        assert norms.strip().removeprefix("least ") == ", ".join(attack.norms)
        for option in (
            "eps",
            "c",
            "beta",
            "kappa",
            "rho",
            "overshoot",
            "theta",
            "gamma",
            "momentum",
        ):
            for number in re.findall(rf"\b{option} ([\d.]+\d|\d+)", numbers):
                assert float(number) == attack.defaults[option]
            for number in re.findall(rf"\b{option} ([\d.]+\d|\d+)", scaled):
                assert float(number) == prepare(method, pixel_range="-1:1").params[option]
        for number in re.findall(r"([\d,]+) (?:steps|queries)", numbers):
            assert int(number.replace(",", "")) == attack.defaults["steps"]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_taken_by_the_methods_that_its_help_names(option: str) -> None:
    takers = {method for method, attack in ATTACKS.items() if option in attack.defaults}
    named = set(re.findall(r"[a-z][a-z0-9-]+", OPTIONS[option].help)) & ATTACKS.keys()
    assert takers
    assert named <= takers


@pytest.mark.parametrize(
    ("method", "options", "params", "stated"),
    [
        ("fgsm", {"eps": "8/255"}, {"eps": 8 / 255}, {"eps": 8 / 255}),
        ("fgsm", {"eps": "8/255", "pixel_range": "-1:1"}, {"eps": 4 / 255}, {"eps": 8 / 255}),
        (
            "pgd",
            {"eps": 0.02, "pixel_range": "-1:1"},
            {"eps": 0.01, "step_size": 0.001, "steps": 10, "random_start": True},
            {"eps": 0.02, "step_size": 0.002, "steps": 10, "random_start": True},
        ),
        (
            "pgd",
            {"eps": 0.5, "step_size": "2.55/255", "steps": "40", "random_start": False},
            {"eps": 0.5, "step_size": 0.01, "steps": 40, "random_start": False},
            {"eps": 0.5, "step_size": 0.01, "steps": 40, "random_start": False},
        ),
        (
            "cw",
            {"c": "0.1", "pixel_range": "-1:1", "kappa": None},
            {"c": 0.025, "kappa": 0.1, "steps": 1000, "lr": 0.01, "search_steps": 1},
            {"c": 0.1, "kappa": 0.1, "steps": 1000, "lr": 0.01, "search_steps": 1},
        ),
        (
            "ead",  # Adam steps are lengths in pixels, so its learning rate is one too
            {"pixel_range": "-1:1", "c": 1},
            {"c": 0.25, "beta": 0.005, "lr": 0.005, "kappa": 0.1, "steps": 1000,
             "search_steps": 1, "decision_rule": "en", "optimizer": "adam"},
            {"c": 1.0, "beta": 0.01, "lr": 0.01, "kappa": 0.1, "steps": 1000,
             "search_steps": 1, "decision_rule": "en", "optimizer": "adam"},
        ),
        (
            "ead",
            {"pixel_range": "-1:1", "optimizer": "fista", "decision_rule": "l1"},
            {"c": 0.0025, "beta": 0.005, "lr": 0.01, "kappa": 0.1, "steps": 1000,
             "search_steps": 1, "decision_rule": "l1", "optimizer": "fista"},
            {"c": 0.01, "beta": 0.01, "lr": 0.01, "kappa": 0.1, "steps": 1000,
             "search_steps": 1, "decision_rule": "l1", "optimizer": "fista"},
        ),
        (
            "deepfool",
            {"pixel_range": "-1:1", "norm": "linf"},
            {"norm": "linf", "steps": 50, "overshoot": 0.02, "top_classes": 10},
            {"norm": "linf", "steps": 50, "overshoot": 0.02, "top_classes": 10},
        ),
        (
            "deepfool",
            {"engine": "torchattacks"},
            {"steps": 50, "overshoot": 0.02},
            {"steps": 50, "overshoot": 0.02},
        ),
    ],
)  # fmt: skip
def test_params_and_stated(method: str, options: Any, params: Any, stated: Any) -> None:
    attack = prepare(method, **options)
    pixel_range = options.get("pixel_range", "0:1")
    unsaid = {k: v for k, v in ATTACKS[method].defaults.items() if k in UNCHANGED}
    if options.get("engine") != "torchattacks":
        params, stated = unsaid | params, unsaid | stated
    for actual, expected in ((attack.params, params), (attack.stated, stated)):
        numbers = {k: v for k, v in expected.items() if isinstance(v, int | float)}
        assert {k: actual[k] for k in numbers} == pytest.approx(numbers, rel=1e-12)
        assert actual.items() - {("pixel_range", pixel_range)} >= (
            expected.items() - numbers.items()
        )
    assert attack.params.keys() == params.keys()
    assert attack.stated.keys() == stated.keys() | {"pixel_range"}
    assert attack.stated["pixel_range"] == pixel_range
    assert (attack.method, attack.engine) == (method, options.get("engine", "rlskit"))
    assert attack.eps == attack.params.get("eps")
    assert attack.norm == ("linf" if "eps" in params else None)
    assert pickle.loads(pickle.dumps(attack)) == attack


UNCHANGED = ("loss", "momentum", "restarts", "eot_samples", "target")
"""Options that no scale of pixels changes."""


class Affine(nn.Module):
    """Two logits, linear in `scale * images + shift`."""

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, images: Tensor) -> Tensor:
        values = (self.scale * images + self.shift).flatten(1)
        score = values @ torch.linspace(-1, 1, 12, dtype=images.dtype)
        return torch.stack([score, torch.full_like(score, 0.3)], 1)


def test_another_scale_is_the_same_attack() -> None:
    # EAD on images in [-1, 1] is EAD with the converted options on the same images in [0, 1].
    images = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    wide, unit, rng = Affine(1, 0), Affine(2, -1), torch.Generator()
    labels = unit(images).argmax(1)
    for optimizer in ("adam", "fista"):
        options: dict[str, Any] = {
            "c": 5.0, "beta": 0.02, "steps": 60, "lr": 0.05, "optimizer": optimizer
        }  # fmt: skip
        there = ead(wide, 2 * images - 1, labels, bounds=(-1, 1), generator=rng, **options)
        here = prepare("ead", pixel_range="-1:1", **options)(unit, images, labels, generator=rng)
        assert (wide(there).argmax(1) != labels).all()
        torch.testing.assert_close(2 * here - 1, there, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("pdg", {}, "'pdg' is unknown; did you mean pgd?"),
        ("zzz", {}, "'zzz' is unknown; `rlskit attacks` lists them"),
        ("pgd", {"engine": "foolbox"}, "`engine` 'foolbox' is unknown; it is rlskit or"),
        ("pgd", {"pixel_range": "0:255"}, "`pixel_range` '0:255' is unknown"),
        ("deepfool", {"eps": 0.1}, "`eps` is no option of deepfool .* takes `norm`, `steps`, "),
        ("fgsm", {"step_size": 0.1}, "`step_size` is no option of fgsm .* it takes `eps`, "),
        ("deepfool", {"engine": "torchattacks", "norm": "l2"}, "`norm` is no option of deepfool"),
        ("ead", {"engine": "torchattacks", "optimizer": "adam"}, "`optimizer` is no option of ead"),
        ("pgd", {"eps": 8}, "`eps` 8 is more than the whole pixel range 0:1; did you mean 8/255"),
        ("pgd", {"eps": -0.1}, "`eps` -0.1 must be a finite number of at least 0"),
        ("pgd", {"eps": "lots"}, "`eps` 'lots' is not a number"),
        ("pgd", {"eps": float("nan")}, "`eps` nan must be a finite number"),
        ("pgd", {"step_size": 3}, "`step_size` 3 is more than the whole pixel range"),
        ("pgd", {"steps": 0}, "`steps` must be at least 1, not 0"),
        ("pgd", {"steps": 2.5}, "`steps` 2.5 is not a whole number"),
        ("pgd", {"random_start": "perhaps"}, "`random_start` 'perhaps' is unknown"),
        ("deepfool", {"norm": "l1"}, "`norm` 'l1' is unknown to deepfool; it is l2 or linf"),
        ("apgd-ce", {"norm": "l2"}, "`norm='l2'` needs `eps`, as 0.5: the default"),
        ("deepfool", {"overshoot": -1}, "`overshoot` -1 must be a finite number of at least 0"),
        ("deepfool", {"top_classes": 1}, "`top_classes` must be at least 2, not 1"),
        ("cw", {"c": 0}, "`c` must be above 0"),
        ("cw", {"lr": "0"}, "`lr` must be above 0"),
        ("cw", {"kappa": "x"}, "`kappa` 'x' is not a number"),
        ("cw", {"search_steps": 0}, "`search_steps` must be at least 1, not 0"),
        ("ead", {"beta": -1}, "`beta` -1 must be a finite number"),
        ("ead", {"decision_rule": "l2"}, "`decision_rule` 'l2' is unknown; it is en or l1"),
        ("pgd", {"target": "nearest"}, "`target` 'nearest' is no class, random or least-likely"),
        ("pgd", {"loss": "mse"}, "`loss` 'mse' is unknown; it is ce or margin or dlr"),
        ("pgd", {"restarts": 0}, "`restarts` must be at least 1, not 0"),
        ("bim", {"restarts": 2}, "`restarts` is no option of bim"),
        ("cw", {"engine": "torchattacks", "target": 1}, "`target` is no option of cw"),
        ("ddn", {"norm": "linf"}, "`norm` is no option of ddn"),
        ("fmn", {"norm": "l3"}, "`norm` 'l3' is unknown to fmn; it is l2 or linf or l1 or l0"),
        ("apgd-l1", {"eps": -1}, "`eps` -1 must be a finite number of at least 0"),
        ("ead", {"optimizer": "sgd"}, "`optimizer` 'sgd' is unknown; it is adam or fista"),
    ],
)  # fmt: skip
def test_what_is_refused(method: str, options: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        prepare(method, **options)


def test_engines_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ENGINES == ("rlskit", "torchattacks", "adv-lib")
    assert ATTACKS["pgd"].of("rlskit") is None
    monkeypatch.setattr("rlskit.attacks.prepared.require", lambda *_: None)  # what is installed
    for method, attack in ATTACKS.items():
        for engine in ENGINES[1:]:
            if attack.of(engine) is not None:
                assert prepare(method, engine=engine).engine == engine
            else:
                with pytest.raises(RequestError, match=f"{engine} has no {method}"):
                    prepare(method, engine=engine)


def test_what_needs_an_extra_says_so_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.setitem(sys.modules, "adv_lib", None)
    absent = "needs adv-lib, which is not installed: pip install 'rlskit\\[adv-lib\\]' brings it"
    with pytest.raises(RequestError, match=f"`engine='adv-lib'` {absent}"):
        prepare("ddn", engine="adv-lib")
    absent = "needs torchattacks, which is not installed: pip install 'rlskit\\[torchattacks\\]'"
    with pytest.raises(RequestError, match=f"`engine='torchattacks'` {absent}"):
        prepare("pgd", engine="torchattacks")
    for method, attack in ATTACKS.items():
        assert attack.borrowed == hasattr(sys.modules[attack.run.__module__], "attack_one_by_one")
        if attack.borrowed:
            with pytest.raises(RequestError, match=f"`method={method!r}` {absent}"):
                prepare(method)
        else:
            assert prepare(method).engine == "rlskit"
    assert library_versions().keys() == {"rlskit", "torch", "torchvision", "timm"}


def test_a_broken_budget_is_the_attacks_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def overstep(
        model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, **_: Any
    ) -> Tensor:
        return (images + 2 * eps).clamp(0, 1)

    known = ATTACKS["fgsm"]
    monkeypatch.setitem(ATTACKS, "fgsm", replace(known, run=wraps(known.run)(overstep)))
    images = torch.full((1, 3, 2, 2), 0.5)
    with pytest.raises(UntrustedError, match="broke its budget: linf"):
        prepare("fgsm")(Affine(1, 0), images, torch.tensor([0]), generator=torch.Generator())
