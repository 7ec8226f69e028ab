"""Evaluations end to end on real digits and tiny networks: every number against one by hand."""

from __future__ import annotations

import copy
import csv
import dataclasses
import functools
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchattacks
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import small_models
from rlskit import attack, attack_all, draws, evaluate, seeds
from rlskit.attacks import ATTACKS, prepare
from rlskit.data.adversarial_file import write_adversarial
from rlskit.errors import RequestError, RunError, UntrustedError
from rlskit.evaluation import EvalOptions, subject_of
from rlskit.evaluation.run import Run
from rlskit.models.banks import BankedModel
from rlskit.pixels import round_to_8bit
from rlskit.results import Journal, Result, digest, read_run
from rlskit.results.result import ImageFacts
from rlskit.seeds import Purpose
from rlskit.threat.adaptive import prepare_adaptive
from rlskit.threat.parts import Part
from rlskit.threat.single import Threat
from rlskit.threat.view import DrawsView, attackers_view

DATA = small_models.digits(50)
IMAGES, LABELS = DATA.images(range(50)), DATA.labels
PGD: dict[str, Any] = {"method": "pgd", "eps": 0.15, "steps": 4, "step_size": 0.05}


@pytest.fixture(scope="module")
def rls() -> BankedModel:
    return small_models.trained("rls", 3)


@pytest.fixture(scope="module")
def undefended() -> BankedModel:
    return small_models.trained("none", 1)


def defenders(model: BankedModel, count: int, repeat: int = 0, seed: int = 0) -> list[nn.Module]:
    return draws(model, count, seed=seed, purpose="defender", repeat=repeat)


def answers(members: list[nn.Module], images: Tensor) -> Tensor:
    """The class of the largest mean probability, in double precision."""
    with torch.no_grad():
        probabilities = torch.stack([member(images).double().softmax(-1) for member in members])
    return probabilities.mean(0).argmax(-1)


def share(right: Tensor) -> float:
    return float(right.double().mean())


def lasting(result: Result | dict[str, Any]) -> dict[str, Any]:
    """A result without what a clock says."""
    found = dict(result.to_json() if isinstance(result, Result) else result)
    timing = found.pop("timing")
    return {**found, "passes": (timing["forwards"], timing["backwards"])}


# clean images ------------------------------------------------------------------------------------


def test_accuracy_and_gibbs_by_hand(rls: BankedModel) -> None:
    (result,) = evaluate(rls, DATA, n_samples=6, batch_size=16)
    members = defenders(rls, 6)
    assert result.accuracy["clean"].mean == share(answers(members, IMAGES) == LABELS)
    single = [share(member(IMAGES).argmax(-1) == LABELS) for member in members]
    assert result.accuracy["clean_gibbs"].mean == pytest.approx(sum(single) / 6, rel=1e-12)
    assert 0.5 < result.accuracy["clean"].mean < 1
    assert len(set(single)) > 1
    assert result.accuracy["clean"].n == 50
    assert (result.command, result.protocol, result.attack) == ("eval", "clean", None)
    assert (result.timing.forwards, result.timing.backwards) == (300, 0)
    assert result.data == ImageFacts(name="digits", split="test", n=50, sha256=DATA.sha256)


def test_each_n_of_several_is_that_n_alone(rls: BankedModel) -> None:
    several = evaluate(rls, DATA, n_samples=(10, 1, 5, 5), batch_size=16)
    assert [result.n_samples for result in several] == [1, 5, 10]
    for result in several:
        (alone,) = evaluate(rls, DATA, n_samples=result.n_samples, batch_size=16)
        assert result.accuracy == alone.accuracy
    one = several[0].accuracy
    assert one["clean"] == one["clean_gibbs"]


def test_the_default_n_is_the_defenses(rls: BankedModel, undefended: BankedModel) -> None:
    assert [evaluate(m, DATA)[0].n_samples for m in (rls, undefended)] == [10, 1]


def test_repeats_are_fresh_draws_and_their_spread_is_reported(rls: BankedModel) -> None:
    (result,) = evaluate(rls, DATA, n_samples=1, repeats=4, batch_size=16)
    shares = [share(answers(defenders(rls, 1, repeat), IMAGES) == LABELS) for repeat in range(4)]
    clean = result.accuracy["clean"]
    mean = sum(shares) / 4
    assert clean.mean == pytest.approx(mean)
    assert clean.std == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in shares) / 3))
    assert clean.std
    assert clean.n == 50


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_block_size_changes_no_answer(rls: BankedModel, batch_size: int) -> None:
    (wanted,) = evaluate(rls, DATA, n_samples=3, batch_size=16)
    (result,) = evaluate(rls, DATA, n_samples=3, batch_size=batch_size)
    assert result.accuracy == wanted.accuracy


def test_the_global_state_neither_matters_nor_changes(rls: BankedModel) -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(lasting(attack(rls, DATA, **PGD, n_samples=3)))
        assert torch.equal(torch.get_rng_state(), state)
        rls.train()
    rls.eval()
    assert found[0] == found[1]


def test_a_callers_autocast_does_not_make_an_attack_rougher(undefended: BankedModel) -> None:
    wanted = lasting(attack(undefended, DATA, method="deepfool"))
    with torch.autocast("cpu", torch.bfloat16):
        assert lasting(attack(undefended, DATA, method="deepfool")) == wanted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_switched_off_are_none_of_the_models(
    rls: BankedModel, mode: type[torch.inference_mode]
) -> None:
    wanted = lasting(attack(rls, DATA, **PGD, n_samples=3))
    module = small_models.network(0)
    module.load_state_dict(rls.banks[0].state_dict())
    of_module = attack(module, (IMAGES, LABELS), **PGD).accuracy["robust"]
    with mode():
        assert lasting(attack(rls, DATA, **PGD, n_samples=3)) == wanted
        made = copy.deepcopy(module)  # of tensors that allow no gradient, as are the images
        found = attack(made, (IMAGES.clone(), LABELS.clone()), **PGD).accuracy["robust"]
    assert found == of_module
    assert of_module.mean < 0.9


# attacks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pgd", "fgsm"])
@pytest.mark.parametrize(("protocol", "n"), [("transfer", 1), ("multi", 3)])
def test_bits_are_those_of_torchattacks_called_directly(
    rls: BankedModel, tmp_path: Path, method: str, protocol: str, n: int
) -> None:
    options = {"eps": 0.15} if method == "fgsm" else {k: v for k, v in PGD.items() if k != "method"}
    result = attack(
        rls, DATA, method=method, **options, n_attacked=n, protocol=protocol, seed=7,
        engine="torchattacks", batch_size=30, n_samples=5, save_adversarial=True, out=tmp_path,
    )  # fmt: skip
    members = draws(rls, n, seed=7, purpose="attacker")
    view = members[0] if n == 1 else DrawsView(members)
    if method == "fgsm":
        direct: Any = torchattacks.FGSM(view, eps=0.15)
    else:
        direct = torchattacks.PGD(view, eps=0.15, alpha=0.05, steps=4)
    wanted = []
    for block in (slice(0, 30), slice(30, 50)):
        torch.manual_seed(seeds.derive(7, Purpose.ATTACK, 0))
        wanted.append(direct(IMAGES[block], LABELS[block]))
    found = load_file(tmp_path / "adversarial.safetensors")
    assert torch.equal(found["images"], torch.cat(wanted))
    assert torch.equal(found["labels"], LABELS)
    right = answers(defenders(rls, 5, seed=7), found["images"]) == LABELS
    assert result.accuracy["robust"].mean == share(right)
    assert (result.protocol, result.n_attacked) == (protocol, n)
    assert result.accuracy["robust"].mean < result.accuracy["clean"].mean


def test_eot_attacks_fresh_draws_at_every_step(rls: BankedModel, tmp_path: Path) -> None:
    result = attack(
        rls, DATA, **PGD, protocol="eot", n_attacked=2, save_adversarial=True, out=tmp_path
    )
    view = attackers_view(rls, "eot", 2, seed=0, repeat=0)
    options = {name: value for name, value in PGD.items() if name != "method"}
    noise = seeds.generator(0, Purpose.ATTACK, 0)
    wanted = prepare("pgd", **options)(view, IMAGES, LABELS, generator=noise)
    assert torch.equal(load_file(tmp_path / "adversarial.safetensors")["images"], wanted)
    assert (result.protocol, result.n_attacked) == ("eot", 2)
    # 4 steps on 2 draws; clean, robust and 8-bit images on 10 draws
    assert result.timing.forwards == 50 * (4 * 2 + 3 * 10)
    assert result.timing.backwards == 50 * 4 * 2


def test_every_accuracy_of_an_attack_by_hand(rls: BankedModel, tmp_path: Path) -> None:
    result = attack(
        rls, DATA, **PGD, n_samples=4, save_adversarial=True, out=tmp_path, batch_size=20
    )
    changed = load_file(tmp_path / "adversarial.safetensors")["images"]
    members = defenders(rls, 4)
    clean, robust = (answers(members, images) == LABELS for images in (IMAGES, changed))
    single = [share(member(changed).argmax(-1) == LABELS) for member in members]
    eight_bit = answers(members, round_to_8bit(changed)) == LABELS
    wanted = {
        "clean": (share(clean), 50),
        "robust": (share(robust), 50),
        "robust_gibbs": (sum(single) / 4, 50),
        "robust_8bit": (share(eight_bit), 50),
        "attack_success": (int((clean & ~robust).sum()) / int(clean.sum()), int(clean.sum())),
    }
    for name, (mean, n) in wanted.items():
        assert result.accuracy[name].mean == pytest.approx(mean, rel=1e-12), name
        assert result.accuracy[name].n == n
    assert result.perturbation is not None
    delta = (changed - IMAGES).flatten(1).double()
    assert result.perturbation["linf"].max == pytest.approx(0.15, rel=1e-6)
    assert result.perturbation["l2"].max == pytest.approx(float(delta.norm(dim=1).max()))
    middle = sorted(delta.norm(dim=1).tolist())[24:26]
    assert result.perturbation["l2"].median == pytest.approx(sum(middle) / 2)
    assert result.attack is not None
    assert result.attack.params["eps"] == 0.15
    assert result.attack.stated["eps"] == 0.15


def test_the_block_size_changes_nothing_but_rounding(rls: BankedModel, tmp_path: Path) -> None:
    for protocol, n in (("transfer", 1), ("eot", 2)):
        whole, split = (
            attack(
                rls, DATA, **PGD, protocol=protocol, n_attacked=n, save_adversarial=True,
                batch_size=size, out=tmp_path / f"{protocol}{size}",
            )
            for size in (50, 17)
        )  # fmt: skip
        first, second = (
            load_file(tmp_path / f"{protocol}{size}" / "adversarial.safetensors")["images"]
            for size in (50, 17)
        )
        same = (first - second).abs().flatten(1).amax(1) < 1e-5
        assert same.float().mean() > 0.9  # the sign of a gradient near 0 may turn by rounding
        assert whole.accuracy["clean"] == split.accuracy["clean"]


def test_repeats_of_an_attack_have_their_own_views(rls: BankedModel, tmp_path: Path) -> None:
    result = attack(
        rls, DATA, **PGD, n_samples=2, repeats=3, save_adversarial=True, out=tmp_path,
        engine="torchattacks",
    )  # fmt: skip
    shares, rounded = [], []
    for repeat in range(3):
        (draw,) = draws(rls, 1, seed=0, purpose="attacker", repeat=repeat)
        torch.manual_seed(seeds.derive(0, Purpose.ATTACK, repeat))
        changed = torchattacks.PGD(draw, eps=0.15, alpha=0.05, steps=4)(IMAGES, LABELS)
        members = defenders(rls, 2, repeat)
        shares.append(share(answers(members, changed) == LABELS))
        rounded.append(share(answers(members, round_to_8bit(changed)) == LABELS))
        if repeat == 0:
            saved = load_file(tmp_path / "adversarial.safetensors")["images"]
            assert torch.equal(saved, changed)
    assert len(set(shares)) > 1
    assert result.accuracy["robust"].mean == pytest.approx(sum(shares) / 3)
    assert result.accuracy["robust_8bit"].mean == pytest.approx(sum(rounded) / 3)
    assert result.repeats == 3


def test_without_a_defense_the_attacker_sees_what_answers(undefended: BankedModel) -> None:
    """Random start off: what PGD fools is fooled, and eps 0 fools nothing."""
    strong = attack(undefended, DATA, **PGD | {"eps": 0.3, "steps": 20}, random_start=False)
    assert strong.accuracy["robust"].mean < 0.1
    none = attack(undefended, DATA, method="fgsm", eps=0)
    assert none.accuracy["robust"] == none.accuracy["clean"]
    assert none.accuracy["attack_success"].mean == 0
    assert none.perturbation is not None
    assert none.perturbation["linf"].max == 0


@pytest.mark.parametrize("method", ["deepfool", "cw", "ead"])
def test_minimum_norm_attacks_run_on_the_mean_of_draws(rls: BankedModel, method: str) -> None:
    options: dict[str, Any] = {} if method == "deepfool" else {"c": 10, "steps": 40, "lr": 0.05}
    result = attack(rls, DATA.subset(range(20)), method=method, **options, n_attacked=3)
    assert result.protocol == "multi"
    assert result.accuracy["robust"].mean < result.accuracy["clean"].mean


# folders -----------------------------------------------------------------------------------------


class StopError(Exception):
    """An interruption."""


def stop_after(images: int) -> Any:
    def progress(step: str, done: int, total: int, **facts: float) -> None:
        if done >= images:
            raise StopError

    return progress


@pytest.mark.parametrize("images", [10, 30, 60, 90])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    rls: BankedModel, tmp_path: Path, images: int
) -> None:
    request: dict[str, Any] = {
        **PGD, "n_samples": 3, "repeats": 2, "batch_size": 10, "save_adversarial": True
    }  # fmt: skip
    whole = attack(rls, DATA, **request, out=tmp_path / "whole")
    with pytest.raises(StopError):
        attack(rls, DATA, **request, out=tmp_path / "parts", progress=stop_after(images))
    assert len(list((tmp_path / "parts" / "blocks").iterdir())) == images // 10
    assert not (tmp_path / "parts" / "results.json").exists()
    seen: list[int] = []
    parts = attack(
        rls, DATA, **request, out=tmp_path / "parts",
        progress=lambda step, done, total, **facts: seen.append(done),
    )  # fmt: skip
    assert sorted(set(seen)) == list(range(images, 101, 10))
    assert lasting(parts) == lasting(whole)
    for name in ("results.json", "per_image.csv", "adversarial.safetensors"):
        first, second = ((tmp_path / run / name).read_bytes() for run in ("whole", "parts"))
        if name == "results.json":
            assert lasting(json.loads(first)) == lasting(json.loads(second))
        else:
            assert first == second


def test_an_interrupted_eval_goes_on(rls: BankedModel, tmp_path: Path) -> None:
    request: dict[str, Any] = {"n_samples": (1, 4), "batch_size": 10}
    whole = evaluate(rls, DATA, **request)
    with pytest.raises(StopError):
        evaluate(rls, DATA, **request, out=tmp_path, progress=stop_after(20))
    parts = evaluate(rls, DATA, **request, out=tmp_path)
    assert [result.accuracy for result in parts] == [result.accuracy for result in whole]
    written = json.loads((tmp_path / "results.json").read_text())
    assert [lasting(one) for one in written] == [lasting(one) for one in parts]


def test_memory_is_returned_after_each_block(
    rls: BankedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("rlskit.evaluation.run.return_memory", lambda: calls.append(1))
    evaluate(rls, DATA, n_samples=1, batch_size=20)
    assert len(calls) == 3


def test_a_torn_block_is_done_again(rls: BankedModel, tmp_path: Path) -> None:
    whole = attack(rls, DATA, **PGD, batch_size=10, out=tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    block = tmp_path / "run" / "blocks" / "0-20.safetensors"
    intact = load_file(block)
    block.write_bytes(block.read_bytes()[:-3])
    seen: list[int] = []
    again = attack(
        rls, DATA, **PGD, batch_size=10, out=tmp_path / "run",
        progress=lambda step, done, total, **facts: seen.append(done),
    )  # fmt: skip
    assert seen == [40, 50]
    assert lasting(again) == lasting(whole)
    redone = load_file(block)
    assert all(torch.equal(redone[name], intact[name]) for name in intact if name != "seconds")


def other_pixels(model: BankedModel) -> BankedModel:
    """The same tensors behind another normalisation: other numbers, the same checksum."""
    pixels = dataclasses.replace(model.card.pixels, mean=(0.7,))
    card = dataclasses.replace(model.card, pixels=pixels)
    return BankedModel(list(model.banks), model.partition, card).eval()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"eps": 0.1}, "attack"),
        ({"n_attacked": 2}, "n_attacked, protocol"),
        ({"n_samples": 5}, "n_samples"),
        ({"batch_size": 20}, "batch_size"),
        ({"repeats": 2}, "repeats"),
        ({"data": DATA.subset(range(5, 35))}, "data"),
        ({"view": "mean-logit"}, "view"),
        ({"save_adversarial": True}, "save"),
        ({"model": "other weights"}, "checkpoint_sha256"),
        ({"model": "other pixels"}, "checkpoint_sha256"),
    ],
)
def test_blocks_of_another_request_are_refused(
    rls: BankedModel, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    request = {**PGD, "n_samples": 2, "batch_size": 10, "data": DATA, "model": rls}
    with pytest.raises(StopError):
        attack(**request, out=tmp_path, progress=stop_after(10))
    change = dict(change)
    if "model" in change:
        other = {
            "other weights": small_models.model(3, trained=False),
            "other pixels": other_pixels(rls),
        }
        change["model"] = other[change["model"]]
    with pytest.raises(RequestError, match="holds another run") as caught:
        attack(**request | change, out=tmp_path)
    assert f"{named}" in str(caught.value)
    attack(**request, out=tmp_path)


def test_what_decides_numbers_is_of_the_request(rls: BankedModel) -> None:
    """Every field of the options and of what is done to the images, those to come as well."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MoreOptions(EvalOptions):
        temperature: float = 1.0

    subject = subject_of(rls, DATA)
    one, other = prepare("pgd", eps=0.1), prepare("pgd", eps=0.2)
    threat = Threat(one, "eot", 2, "mean-prob")
    adaptive = prepare_adaptive(rls, eps=0.1)
    changes: tuple[tuple[Any, dict[str, Any]], ...] = (
        (
            MoreOptions(),
            {"n_samples": 3, "repeats": 2, "batch_size": 7, "seed": 5, "per_example": True,
             "temperature": 2.0},
        ),
        (
            threat,
            {"attack": other, "protocol": "multi", "n_attacked": 3, "view": "mean-logit",
             "compiled": True, "save": True, "risk": "gibbs", "precision": "bf16",
             "rest": True},
        ),
        (
            adaptive,
            {"parts": adaptive.parts[1:], "norm": "l2", "eps": 0.2, "n_attacked": 3,
             "stated": {"eps": 0.4, "pixel_range": "-1:1"}, "settings": {}, "answering": 3,
             "save": True, "early_exit": False, "scouts": adaptive.parts[:1]},
        ),
        (
            adaptive.parts[0],
            {"name": "x", "attack": other, "n_attacked": 3, "goes_on": True, "last_resort": True,
             "dear": True},
        ),
    )  # fmt: skip

    def request(options: Any, given: Any) -> str:
        if isinstance(given, EvalOptions):
            options, given = given, threat
        if isinstance(given, Part):
            given = dataclasses.replace(adaptive, parts=(given,))
        return digest(Run(subject, options, given).request())

    for given, values in changes:
        fields = {one.name for one in dataclasses.fields(given) if "aside" not in one.metadata}
        assert values.keys() == fields
        known = request(EvalOptions(), given)
        for name, value in values.items():
            changed = dataclasses.replace(given, **{name: value})
            assert request(EvalOptions(), changed) != known, name
    same = EvalOptions(num_workers=2, expect_clean=0.1, gated=True, n_samples=10)
    assert request(same, threat) == request(EvalOptions(), threat)


def test_a_finished_run_is_replaced_by_force_only(rls: BankedModel, tmp_path: Path) -> None:
    evaluate(rls, DATA, n_samples=1, out=tmp_path)
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(RequestError, match="holds a finished run; name another `out`, or use"):
        evaluate(rls, DATA, n_samples=1, out=tmp_path)
    with pytest.raises(RequestError, match="holds a finished run"):
        attack_all(
            rls, DATA, attacks=[prepare("fgsm"), prepare("pgd")], options=EvalOptions(),
            out=tmp_path,
        )  # fmt: skip
    broken = small_models.model(3)
    small_models.tensor(broken, 0, "6.weight").fill_(math.nan)
    with pytest.raises(UntrustedError):
        evaluate(broken, DATA, out=tmp_path, force=True)
    assert (tmp_path / "results.json").read_text() == before
    evaluate(rls, DATA, n_samples=2, out=tmp_path, force=True)
    assert json.loads((tmp_path / "results.json").read_text())["n_samples"] == 2


@pytest.mark.parametrize("several", [False, True])
def test_force_goes_on_with_what_it_left_and_does_the_finished_again(
    rls: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    attacks = [prepare("fgsm", eps=0.1), prepare("pgd", eps=0.1, steps=2)][: 1 + several]
    blocks = 5 * len(attacks)
    seen: list[int] = []

    put, stop = Journal.put, 0

    def noted(self: Journal, repeat: int, first: int, block: dict[str, Tensor]) -> None:
        put(self, repeat, first, block)
        seen.append(first)
        if len(seen) == stop:
            raise StopError

    monkeypatch.setattr(Journal, "put", noted)

    def call(blocks: int, seed: int = 0) -> None:
        nonlocal stop
        stop = blocks
        seen.clear()
        options = EvalOptions(n_samples=1, batch_size=10, seed=seed)
        attack_all(rls, DATA, attacks=attacks, options=options, out=tmp_path, force=True)

    def interrupted(blocks: int, seed: int = 0) -> None:
        with pytest.raises(StopError):
            call(blocks, seed)

    interrupted(2, seed=1)
    interrupted(blocks - 2)  # another request is replaced
    interrupted(1)
    assert seen == [30]
    call(0)
    assert seen == [40]
    call(0)  # a finished run is done again
    assert seen == [0, 10, 20, 30, 40] * len(attacks)
    interrupted(3)
    call(0)
    assert len(seen) == blocks - 3


def test_whoever_is_killed_while_he_replaces_a_run_leaves_no_blocks_of_it(
    rls: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next one would take them for his own, though the run is to be done again."""
    request: dict[str, Any] = {"n_samples": 1, "batch_size": 10, "out": tmp_path}
    evaluate(rls, DATA, **request)
    removed: list[Path] = []
    unlink = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.suffix == ".safetensors":
            removed.append(self)
            if len(removed) == 3:
                raise StopError
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(StopError):
            evaluate(rls, DATA, **request, force=True)
    seen: list[int] = []
    evaluate(
        rls, DATA, **request, force=True,
        progress=lambda step, done, total, **facts: seen.append(done),
    )  # fmt: skip
    assert seen == [0, 10, 20, 30, 40, 50]


def test_blocks_of_another_run_or_changed_ones_are_done_again(
    rls: BankedModel, tmp_path: Path
) -> None:
    """A run killed in the midst of it, with whatever lies among its blocks, ends as if it ran."""
    request: dict[str, Any] = {**PGD, "batch_size": 10, "n_samples": 2, "save_adversarial": True}
    whole = attack(rls, DATA, **request, out=tmp_path / "run")
    attack(rls, DATA, **request | {"eps": 0.3}, out=tmp_path / "other")
    blocks = tmp_path / "run" / "blocks"
    table = (tmp_path / "run" / "per_image.csv").read_bytes()
    for name in ("results.json", "per_image.csv", "adversarial.safetensors"):
        (tmp_path / "run" / name).unlink()
    shutil.copy(tmp_path / "other" / "blocks" / "0-0.safetensors", blocks)
    shutil.copy(blocks / "0-20.safetensors", blocks / "0-10.safetensors")
    raw = bytearray((blocks / "0-40.safetensors").read_bytes())
    raw[-100] ^= 1
    (blocks / "0-40.safetensors").write_bytes(raw)
    seen: list[int] = []
    again = attack(
        rls, DATA, **request, out=tmp_path / "run",
        progress=lambda step, done, total, **facts: seen.append(done),
    )  # fmt: skip
    assert seen == [20, 30, 40, 50]
    assert lasting(again) == lasting(whole)
    assert (tmp_path / "run" / "per_image.csv").read_bytes() == table


def test_blocks_outlast_images_that_went(rls: BankedModel, tmp_path: Path) -> None:
    """Where image 25 is found bad and removed, the two blocks before it are not lost."""
    request: dict[str, Any] = {**PGD, "batch_size": 10, "n_samples": 2}
    with pytest.raises(StopError):
        attack(rls, DATA, **request, out=tmp_path, progress=stop_after(40))
    fewer = DATA.subset([*range(25), *range(26, 50)])
    with pytest.raises(RequestError, match=r"holds another run \(data, seed differ\)"):
        attack(rls, fewer, **request, seed=1, out=tmp_path)
    with pytest.raises(RequestError, match=r"holds another run \(data differ\)"):
        attack(rls, DATA.subset(range(1, 50)), **request, out=tmp_path)
    labels = fewer.labels.clone()
    labels[::10] = (labels[::10] + 1) % 10  # one of every block
    relabelled = dataclasses.replace(fewer, labels=labels)
    with pytest.raises(RequestError, match=r"holds another run \(data differ\)"):
        attack(rls, relabelled, **request, out=tmp_path)
    seen: list[int] = []
    parts = attack(
        rls, fewer, **request, out=tmp_path,
        progress=lambda step, done, total, **facts: seen.append(done),
    )  # fmt: skip
    assert seen == [20, 30, 40, 49]
    assert lasting(parts) == lasting(attack(rls, fewer, **request, out=tmp_path / "whole"))
    tables = [folder / "per_image.csv" for folder in (tmp_path, tmp_path / "whole")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_a_folder_has_one_run_at_a_time(rls: BankedModel, tmp_path: Path) -> None:
    """The second is refused at once, also with `force`, and the first comes to its end."""
    several = [prepare("fgsm", eps=0.1), prepare("fgsm", eps=0.2)]
    tried: list[Path] = []

    def interfere(step: str, done: int, total: int, **facts: float) -> None:
        for out in (tmp_path / "all", tmp_path / "all" / "fgsm-0.2"):
            with pytest.raises(RunError, match="is being written by process"):
                evaluate(rls, DATA, out=out, force=True)
            tried.append(out)

    options = EvalOptions(n_samples=2, batch_size=25)
    results = attack_all(
        rls, DATA, attacks=several, options=options, out=tmp_path / "all", progress=interfere
    )
    assert len(tried) == 2 * 3 * 2
    assert [one.accuracy for one in results] == [
        one.accuracy for one in attack_all(rls, DATA, attacks=several, options=options)
    ]
    assert not list(tmp_path.rglob(".rlskit*"))


def test_force_replaces_the_run_of_a_folder_and_no_other(rls: BankedModel, tmp_path: Path) -> None:
    several = [prepare("fgsm", eps=0.1), prepare("fgsm", eps=0.2)]
    options = EvalOptions(n_samples=1, batch_size=25)
    for out in (tmp_path / "fgsm-0.3", tmp_path / "mine"):
        evaluate(rls, DATA, n_samples=1, out=out)
    attack_all(rls, DATA, attacks=several, options=options, out=tmp_path)
    with pytest.raises(RequestError, match="holds a finished run"):
        evaluate(rls, DATA, n_samples=1, out=tmp_path)
    evaluate(rls, DATA, n_samples=1, out=tmp_path, force=True)
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["blocks", "fgsm-0.3", "mine"]
    assert read_run(tmp_path / "mine").parts


def test_several_attacks_and_one_are_not_the_same_run(rls: BankedModel, tmp_path: Path) -> None:
    several = [prepare("fgsm", eps=0.1), prepare("fgsm", eps=0.2)]
    options = EvalOptions(n_samples=1, batch_size=25)
    for first, second in ((several, several[:1]), (several[:1], several)):
        with pytest.raises(StopError):
            attack_all(
                rls, DATA, attacks=first, options=options, out=tmp_path, progress=stop_after(25)
            )
        with pytest.raises(RequestError, match=r"holds another run \(.*parts.* differ\)"):
            attack_all(rls, DATA, attacks=second, options=options, out=tmp_path)
        shutil.rmtree(tmp_path)


def test_several_attacks_are_each_as_if_alone(rls: BankedModel, tmp_path: Path) -> None:
    attacks = [
        prepare("fgsm", eps=0.1),
        prepare("fgsm", eps="0.2"),
        prepare("pgd", eps=0.1, steps=3),
        prepare("cw", c=1, steps=5),
        prepare("cw", c=10, steps=5),
    ]
    options = EvalOptions(n_samples=3, batch_size=25)
    *results, worst = attack_all(rls, DATA, attacks=attacks, options=options, out=tmp_path / "all")
    names = ["fgsm-0.1", "fgsm-0.2", "pgd-0.1", "cw", "cw-no2"]
    *written, last = json.loads((tmp_path / "all" / "results.json").read_text())
    for prepared, result, name, one in zip(attacks, results, names, written, strict=True):
        (alone,) = attack_all(rls, DATA, attacks=[prepared], options=options, out=tmp_path / name)
        assert lasting(result) == lasting(alone) == lasting(one)
        own = json.loads((tmp_path / "all" / name / "results.json").read_text())
        assert own == one
    assert len({str(result.accuracy["robust"]) for result in results}) > 2
    # The worst case per image, from the tables that the attacks wrote.
    assert worst.attack is not None
    assert (worst.attack.method, last["attack"]["method"]) == ("worst-case", "worst-case")
    right = torch.ones(len(LABELS), dtype=torch.bool)
    for name in names:
        with (tmp_path / "all" / name / "per_image.csv").open() as file:
            right &= torch.tensor([row["robust"] == row["label"] for row in csv.DictReader(file)])
    assert worst.accuracy["robust"].mean == last["accuracy"]["robust"]["mean"] == share(right)
    assert worst.accuracy["clean"] == results[0].accuracy["clean"]
    assert worst.accuracy["robust"].mean <= min(r.accuracy["robust"].mean for r in results)


def test_several_attacks_go_on_where_they_were_interrupted(
    rls: BankedModel, tmp_path: Path
) -> None:
    """The first is finished, the second half done: neither is lost."""
    request: dict[str, Any] = {
        "attacks": [prepare("fgsm", eps=0.1), prepare("pgd", eps=0.1, steps=3)],
        "options": EvalOptions(n_samples=2, batch_size=10),
    }
    whole = attack_all(rls, DATA, **request)

    def stop(step: str, done: int, total: int, **facts: float) -> None:
        if step == "attacking with pgd 0.1" and done == 20:
            raise StopError

    with pytest.raises(StopError):
        attack_all(rls, DATA, **request, out=tmp_path, progress=stop)
    seen: list[tuple[str, int]] = []
    parts = attack_all(
        rls, DATA, **request, out=tmp_path,
        progress=lambda step, done, total, **facts: seen.append((step, done)),
    )  # fmt: skip
    assert seen == [("attacking with pgd 0.1", done) for done in (20, 30, 40, 50)]
    assert [one.accuracy for one in parts] == [one.accuracy for one in whole]


def test_the_per_image_table_agrees_with_the_accuracies(rls: BankedModel, tmp_path: Path) -> None:
    result = attack(rls, DATA, **PGD, n_samples=3, repeats=2, batch_size=16, out=tmp_path)
    assert result.per_image == "per_image.csv"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "per_image.csv").read_text())))
    assert [int(row["index"]) for row in rows] == DATA.index.tolist() * 2
    assert [int(row["label"]) for row in rows] == LABELS.tolist() * 2
    for kind in ("clean", "robust"):
        right = [row[kind] == row["label"] for row in rows]
        assert sum(right) / 100 == pytest.approx(result.accuracy[kind].mean)
        gibbs = [float(row[f"{kind}_gibbs"]) for row in rows]
        assert sum(gibbs) / 100 == pytest.approx(result.accuracy[f"{kind}_gibbs"].mean)
    assert result.perturbation is not None
    assert max(float(row["linf"]) for row in rows) == result.perturbation["linf"].max


# saved adversarial images ------------------------------------------------------------------------


def saved(model: BankedModel, folder: Path, **options: Any) -> tuple[Result, Path]:
    result = attack(model, DATA, **PGD, **options, out=folder, save_adversarial=True)
    return result, folder / "adversarial.safetensors"


def test_saved_images_score_as_the_attack_said(rls: BankedModel, tmp_path: Path) -> None:
    attacked, path = saved(rls, tmp_path / "a", n_samples=5, batch_size=16)
    (again,) = evaluate(rls, adversarial=path, n_samples=5, batch_size=16, out=tmp_path / "b")
    assert again.accuracy == {n: attacked.accuracy[n] for n in ("robust", "robust_gibbs")}
    assert again.headline == attacked.headline
    assert (again.protocol, again.n_attacked) == ("transfer", 1)
    assert again.attack == attacked.attack
    assert len(again.data.adversarial_sha256 or "") == 64
    assert dataclasses.replace(again.data, adversarial_sha256=None) == attacked.data
    assert again.warnings == ()
    header = (tmp_path / "b" / "per_image.csv").read_text().splitlines()[0]
    assert header == "repeat,index,label,robust,robust_gibbs"  # none of them is clean


def test_images_made_against_another_checkpoint_say_so(rls: BankedModel, tmp_path: Path) -> None:
    _, path = saved(rls, tmp_path)
    (result,) = evaluate(small_models.trained("none", 1), adversarial=path)
    assert result.warnings == (
        "These images were made against another checkpoint: a transfer test.",
    )


def test_other_adversarial_images_are_another_request(rls: BankedModel, tmp_path: Path) -> None:
    """Same attack on the same data, another seed: nothing but the images tells them apart."""
    _, first = saved(rls, tmp_path / "a", seed=0)
    _, second = saved(rls, tmp_path / "b", seed=1)
    with pytest.raises(StopError):
        evaluate(rls, adversarial=first, batch_size=10, out=tmp_path / "c", progress=stop_after(10))
    with pytest.raises(RequestError, match=r"holds another run \(data differ\)"):
        evaluate(rls, adversarial=second, batch_size=10, out=tmp_path / "c")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:50], "is not a readable safetensors file"),
        (lambda raw: raw.replace(b"adversarial/2", b"adversarial/1"), "is not of the format"),
        (lambda raw: raw.replace(b'\\"eps\\": 0.1', b'\\"eps\\": 0.3'), "damaged, or was changed"),
        (lambda raw: raw.replace(b'\\"n_attacked\\": 1', b'\\"n_attacked\\": 8'), "was changed"),
        (lambda raw: raw.replace(b'\\"n_attacked\\": 1', b'\\"n_attacked\\": {'), "is not a read"),
        (lambda raw: raw.replace(b'"seal":"', b'"seel":"'), "damaged, or was changed"),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "damaged, or was changed"),
    ],
)
def test_damaged_adversarial_files(
    rls: BankedModel, tmp_path: Path, damage: Any, message: str
) -> None:
    _, path = saved(rls, tmp_path)
    raw = path.read_bytes()
    assert damage(raw) != raw
    path.write_bytes(damage(raw))
    with pytest.raises(RequestError, match=message):
        evaluate(rls, adversarial=path)
    with pytest.raises(RequestError, match="there is no file"):
        evaluate(rls, adversarial=tmp_path / "missing")


def test_an_adversarial_file_is_refused_where_anything_in_it_was_exchanged(
    rls: BankedModel, tmp_path: Path
) -> None:
    """Clean images in the place of an attack's would be robust, and so would other labels."""
    _, path = saved(rls, tmp_path)
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    others = {
        "images": DATA.images(range(50)),
        "labels": tensors["labels"].roll(1),
        "indices": tensors["indices"].flip(0),
    }
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # not of the file's bytes
    for name, other in others.items():
        save_file(tensors | {name: other}, path, metadata)
        with pytest.raises(RequestError, match=r"damaged, or was changed.*make it again"):
            evaluate(rls, adversarial=path)
    save_file(tensors, path, metadata)
    evaluate(rls, adversarial=path)
    write_adversarial(path, tensors["images"], tensors["labels"], tensors["indices"], {})
    with pytest.raises(RequestError, match="its metadata is unreadable"):
        evaluate(rls, adversarial=path)


def test_adversarial_images_of_other_classes_or_shape(rls: BankedModel, tmp_path: Path) -> None:
    _, path = saved(rls, tmp_path)
    networks = [small_models.network(0), small_models.network(1)]
    pixels = dataclasses.replace(rls.card.pixels, height=16)
    for fields in ({"classes": 100}, {"pixels": pixels}):
        card = dataclasses.replace(rls.card, **fields)
        with pytest.raises(RequestError, match=r"holds images of 10 classes and shape \[1, 8, 8\]"):
            evaluate(BankedModel(networks, rls.partition, card), adversarial=path)


# what is refused, and what is said ---------------------------------------------------------------


def test_an_attack_that_changes_nothing_is_said(undefended: BankedModel) -> None:
    (said,) = attack(undefended, DATA, method="jsma", theta=1e-9).warnings
    assert said.startswith("STOOD STILL: jsma changed no image")
    assert attack(undefended, DATA, method="jsma").warnings == ()
    assert attack(undefended, DATA, method="fgsm", eps=0).warnings == ()  # the control


def test_warnings(rls: BankedModel) -> None:
    (fresh,) = evaluate(small_models.model(2, trained=False), DATA)
    assert fresh.warnings == (
        "UNTRAINED MODEL: its weights are random and these numbers mean nothing.",
        "NO BETTER THAN GUESSING: right on 6 of 50 clean images (guessing gets 11.4 %).",
    )
    assert not fresh.model.trained
    (other,) = evaluate(rls, dataclasses.replace(DATA, name="npz:other.npz"))
    assert other.warnings == ("The model was made for digits, but this is npz:other.npz.",)
    (own,) = evaluate(rls, small_models.digits(400, "train"))
    assert own.warnings == (
        "TRAINING IMAGES: the model was trained on the images it is scored on.",
    )
    (some,) = evaluate(rls, small_models.digits(50, "train"))
    assert some.warnings == own.warnings  # also where only some of them are scored
    (honest,) = evaluate(rls, DATA)
    assert honest.warnings == ()


def test_an_optimistic_protocol_is_called_that(rls: BankedModel, undefended: BankedModel) -> None:
    few = {**PGD, "options": EvalOptions(n_samples=2)}
    data = small_models.digits(20)
    protocols: tuple[dict[str, Any], ...] = ({}, {"n_attacked": 3}, {"pixel_range": "-1:1"})
    for protocol in protocols:
        (warning,) = attack(rls, data, **few, **protocol).warnings
        count = protocol.get("n_attacked", 1)
        assert warning.startswith(f"OPTIMISTIC: the attacker of this rls saw {count} of its draws")
        assert "`rlskit.attack_adaptively(model, eps=0.15" in warning
        assert ("pixel_range='-1:1')`" in warning) == ("pixel_range" in protocol)
    short, in_l2 = attack(rls, data, method="pgd-l2", eps=0.5, steps=9, n_samples=2).warnings
    assert short.startswith("SHORT WAY: 9 x 0.05 (`steps` and `step_size`) is less than the budget")
    assert "(model, eps=0.5, norm='l2')`" in in_l2
    *_, least = attack(rls, data, method="deepfool", steps=1, n_samples=2).warnings
    assert "(model, eps=EPS)`" in least
    assert attack(rls, data, **few, protocol="eot", n_attacked=2).warnings == ()
    assert attack(undefended, data, **few).warnings == ()
    ensemble = small_models.trained("ensemble", 2)
    assert "saw 1 of its draws" in attack(ensemble, data, **few).warnings[0]
    assert attack(ensemble, data, **few, n_attacked=2).warnings == ()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n_samples": 0}, "`n_samples` must be at least 1, not 0"),
        ({"n_samples": (5, 0)}, "`n_samples` must be at least 1"),
        ({"n_samples": ()}, "`n_samples` must be at least 1"),
        ({"repeats": 0}, "`repeats` must be at least 1, not 0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, not 0"),
        ({"n_samples": (1, 5)}, "an attack is scored with one `n_samples`"),
        ({"n_attacked": 0}, "`n_attacked` must be at least 1"),
        ({"protocol": "adaptive"}, "'adaptive' is unknown"),
        ({"view": "max"}, "`view` 'max' is unknown"),
        ({"risk": "worst"}, "`risk` 'worst' is unknown; it is one of mean, gibbs"),
        ({"risk": "gibbs"}, "`risk='gibbs'` is for `protocol='eot'`"),
        (
            {"risk": "gibbs", "protocol": "eot", "method": "square"},
            "`risk='gibbs'` averages the gradients of `n_attacked` draws, which square cannot",
        ),
        ({"method": "deepfool", "compiled": True}, "`compiled` cannot serve deepfool"),
        (
            {"method": "cw", "protocol": "eot"},
            "`protocol='eot'` needs a.* budget, not cw",
        ),
        # which of its starts share a call of fresh draws would depend on batch-mates
        ({"method": "inward", "protocol": "eot"}, "inward needs fixed ones"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"step_size": "1e-400"}, "`step_size` 0 leaves every image where it starts"),
        ({"epz": 0.1}, "`epz` is no option; did you mean `eps`?"),
        ({"kappa": 0.1}, "`kappa` is no option of pgd"),
        ({"save_adversarial": True}, "need a folder"),
    ],
)
def test_wrong_requests(rls: BankedModel, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        attack(rls, DATA, **request_)


def test_a_wrong_request_leaves_no_folder_behind(rls: BankedModel, tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        attack(rls, DATA, view="max", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_and_fields_go_together(rls: BankedModel) -> None:
    options = EvalOptions(repeats=2)
    (result,) = evaluate(rls, DATA, options=options, seed=5, n_samples=2)
    assert (result.repeats, result.seed, result.n_samples) == (2, 5, 2)
    attacked = attack(rls, DATA, method="fgsm", options=options, n_samples=3)
    assert (attacked.repeats, attacked.n_samples) == (2, 3)
    assert dataclasses.replace(EvalOptions(), seed=1) == EvalOptions(seed=1)


def test_nan_weights_stop_before_any_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_models.model(2)
    small_models.tensor(model, 1, "6.bias")[0] = math.nan

    def never(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("an attack ran")

    for name, known in ATTACKS.items():
        guarded = dataclasses.replace(known, run=functools.wraps(known.run)(never))
        monkeypatch.setitem(ATTACKS, name, guarded)
    with pytest.raises(UntrustedError, match=r"6\.bias of bank 1"):
        attack(model, DATA)


def test_one_draw_with_infinite_logits_stops_the_run() -> None:
    """Finite weights, a fine first draw: the preflight passes, and argmax would say class 0."""
    model = small_models.model(2)
    plans = [small_models.plan_of(draw, model) for draw in defenders(model, 10)]
    good = plans[0]
    assert any(plan != good for plan in plans)
    bad = 1 - good[1]
    small_models.tensor(model, bad, "6.weight")[0] = torch.finfo().max
    assert defenders(model, 1)[0](IMAGES).isfinite().all()
    with pytest.raises(UntrustedError, match="NaN or infinite logits") as caught:
        evaluate(model, DATA)
    assert caught.value.exit_code == 4


def test_an_attack_that_breaks_its_budget_on_one_block_stops_the_run(
    rls: BankedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, **_: Any) -> Tensor:
        far = eps if len(images) == 10 else min(eps, 0.05)  # the preflight's images keep it
        return (images + 2 * far).clamp(0, 1)

    known = ATTACKS["fgsm"]
    broken = dataclasses.replace(known, run=functools.wraps(known.run)(act))
    monkeypatch.setitem(ATTACKS, "fgsm", broken)
    prepared = dataclasses.replace(prepare("pgd", eps=0.1), method="fgsm", params={"eps": 0.1})
    with pytest.raises(UntrustedError, match="broke its budget"):
        attack_all(rls, DATA, attacks=[prepared], options=EvalOptions(batch_size=10))


def test_a_class_must_have_the_number_it_had_in_training() -> None:
    model = small_models.trained("none", 1)
    renamed = dataclasses.replace(DATA, class_names=tuple("abcdefghij"))
    assert evaluate(model, renamed)[0].accuracy == evaluate(model, DATA)[0].accuracy
    moved = dataclasses.replace(DATA, class_names=("z", *"012345678"))
    with pytest.raises(
        RequestError, match=r"other classes than the model: 'z' is none of its 10 \(0, 1"
    ):
        evaluate(model, moved)


def confident(scale: float) -> BankedModel:
    """A trained network whose logits are multiplied, so that its answers stay the same."""
    model = small_models.trained("none", 1)
    for name in ("6.weight", "6.bias"):
        small_models.tensor(model, 0, name).mul_(scale)
    return model


@pytest.mark.parametrize(("method", "eps"), [("fgsm", 0.05), ("pgd-l2", 0.5)])
def test_confidence_does_not_look_robust(method: str, eps: float) -> None:
    """The textbook's cross-entropy saturates from twice the logits on; ours does not."""
    plain = attack(confident(1), DATA, method=method, eps=eps).accuracy
    assert plain["robust"].mean < plain["clean"].mean - 0.1
    for scale in (15, 1000):
        scaled = attack(confident(scale), DATA, method=method, eps=eps)
        assert not scaled.warnings
        assert scaled.accuracy["clean"] == plain["clean"]
        assert scaled.accuracy["robust"].mean < plain["robust"].mean + 0.05


def test_a_targeted_attack_is_of_the_images_it_can_move(tmp_path: Path) -> None:
    free = int((LABELS != 3).sum())
    options: dict[str, Any] = {"method": "pgd", "eps": 0.2, "target": 3}
    result = attack(
        small_models.trained("none", 1), DATA, **options, out=tmp_path / "a", save_adversarial=True
    )
    assert 0 < free < 50
    assert result.accuracy["target_reached"].n == result.accuracy["withstood"].n == free
    assert result.accuracy["attack_success"].n <= free
    assert result.headline == result.accuracy["withstood"]
    assert result.accuracy["robust"].n == 50
    (said,) = result.warnings
    assert said.startswith(f"TARGETED: {50 - free} of 50 images are of the target class")
    (again,) = evaluate(
        small_models.trained("none", 1), adversarial=tmp_path / "a" / "adversarial.safetensors"
    )
    assert again.headline == result.headline


def test_a_loss_that_saturates_is_said() -> None:
    changes: list[dict[str, Any]] = [{}, {"loss": "ce-saturating"}, {"engine": "torchattacks"}]
    default, saturating, theirs = (
        attack(confident(15), DATA, method="pgd", eps=0.2, **change) for change in changes
    )
    assert not default.warnings
    for result, instead in ((saturating, "`loss='margin'`"), (theirs, "`engine='rlskit'`")):
        (said,) = result.warnings
        assert re.match(r"MASKED GRADIENTS: at 4\d of 50 images looked at, the gradient of ", said)
        assert f"try {instead} or `rlskit.attack_adaptively()` or `method='square'`" in said
        assert result.accuracy["robust"].mean > default.accuracy["robust"].mean + 0.1


class Backwards(torch.autograd.Function):
    """Passes numbers on, and the wrong gradient back: of four pixels, or the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return slopes[0] * ctx.saved_tensors[0], None


@pytest.mark.parametrize("options", [{}, {"method": "pgd-l2", "eps": 1.0}, {"method": "apgd-ce"}])
def test_gradients_that_are_not_the_models_are_said(options: dict[str, Any]) -> None:
    class Misled(nn.Module):
        def __init__(self, factor: Tensor) -> None:
            super().__init__()
            (self.draw,), self.factor = defenders(small_models.trained("none", 1), 1), factor

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.draw(Backwards.apply(x, self.factor))  # type: ignore[no-untyped-call]
            return logits

    options = {"method": "pgd", "eps": 0.2, "steps": 10, **options}
    truly = attack(Misled(torch.ones(8, 8)), (IMAGES, LABELS), **options)
    assert truly.warnings == ()
    few = torch.zeros(8, 8)
    few[3:5, 3:5] = 1
    for factor in (-torch.ones(8, 8), few):
        result = attack(Misled(factor), (IMAGES, LABELS), **options)
        (said,) = result.warnings
        assert said.startswith("MISLEADING GRADIENTS: how small changes of the images change")
        more = ", norm='l2'" if options["method"] == "pgd-l2" else ""
        assert f"or `method='square'{more}`, which needs none" in said
        assert result.accuracy["robust"].mean > truly.accuracy["robust"].mean + 0.1


@pytest.mark.parametrize(
    ("method", "options"), [("pgd", {"loss": "margin"}), ("apgd-dlr", {"steps": 2})]
)
def test_a_model_that_masks_its_gradients_has_no_result(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers squeezed into [0, 1] round to 1 and 0 where they are confident."""
    model = small_models.trained("none", 1)
    head = type(defenders(model, 1)[0])
    inner = head.forward
    squeezed = lambda self, x: (3 * inner(self, x)).softmax(1) - 1  # noqa: E731
    monkeypatch.setattr(head, "forward", squeezed)
    with pytest.raises(UntrustedError, match=r"gradients at the images are|MASKED") as caught:
        attack(model, DATA, method=method, eps=0.05, **options)
    assert "`loss=" not in str(caught.value)


def test_per_example_gives_each_image_draws_of_its_own(rls: BankedModel) -> None:
    """Every image is attacked and scored as if it were alone, on draws keyed by its index."""
    data = DATA.subset(range(20))
    (result,) = evaluate(rls, data, n_samples=3, batch_size=16, per_example=True)
    right = []
    for i in range(20):
        members = draws(rls, 3, seed=0, purpose="defender", image=i)
        right.append(bool(answers(members, IMAGES[i : i + 1]) == LABELS[i]))
    assert result.accuracy["clean"].mean == pytest.approx(sum(right) / 20)
    assert result.per_example

    params = {**PGD, "n_samples": 3, "per_example": True}
    several = [attack(rls, data, **params, batch_size=size) for size in (7, 20)]
    assert several[0].accuracy == several[1].accuracy
    robust = []
    for i in range(20):
        image, label = IMAGES[i : i + 1], LABELS[i : i + 1]
        view = attackers_view(rls, "transfer", 1, seed=0, repeat=0, image=i)
        found = prepare(**PGD)(view, image, label, generator=seeds.generator(0, Purpose.ATTACK, 0))
        members = draws(rls, 3, seed=0, purpose="defender", image=i)
        robust.append(bool(answers(members, found) == label))
    assert several[0].accuracy["robust"].mean == pytest.approx(sum(robust) / 20)
    assert several[0].timing.forwards == 20 * (3 + 3 + 4)
    assert several[0].timing.backwards == 20 * 4


def test_gibbs_risk_ascends_the_mean_of_the_single_losses(rls: BankedModel) -> None:
    """One step of PGD on three fresh draws, by hand: the signs of two different gradients."""
    params: dict[str, Any] = {
        "method": "pgd", "eps": 0.2, "steps": 1, "step_size": 0.2, "random_start": False,
        "protocol": "eot", "n_attacked": 3, "n_samples": 2,
    }  # fmt: skip
    members = draws(rls, 3, seed=0, purpose="eot")
    images = IMAGES.clone().requires_grad_()
    logits = torch.stack([member(images) for member in members])
    picked = logits.log_softmax(-1)[:, range(50), LABELS]
    for risk, loss in (("gibbs", -picked.mean(0)), ("mean", -picked.logsumexp(0))):
        (gradient,) = torch.autograd.grad(loss.sum(), images, retain_graph=True)
        wanted = (IMAGES + 0.2 * gradient.sign()).clamp(0, 1)
        result = attack(rls, DATA, **params, risk=risk)
        right = [
            float((member(wanted).argmax(-1) == LABELS).double().mean())
            for member in defenders(rls, 2)
        ]
        assert result.accuracy["robust_gibbs"].mean == pytest.approx(sum(right) / 2, abs=0.011)
        assert result.attack is not None
        assert result.attack.risk == risk
        assert result.timing.backwards == 50 * 3
