"""`audit = true` in a recipe: the audit of a column's own attack is part of its verdict."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import made_results
from rlskit import audit_model, recipes
from rlskit.attacks.passes import Setting
from rlskit.audit import CHECKS, AuditResult, Check, audit_passes, audited_attack
from rlskit.audit.audit_result import AuditedAttack
from rlskit.cli.app import alone
from rlskit.cli.recipe import check
from rlskit.errors import RequestError
from rlskit.recipes import checking, running
from rlskit.recipes.audited import OWN, TAKEN
from rlskit.recipes.cost import cost
from small_models import model as small_model
from small_recipes import written
from test_comparison import write

RECIPE = """
title = "the release"
[columns.linf]
attack = { method = "pgd", eps = 0.02, steps = 20, view = "mean-prob", limit = 400, repeats = 2 }
audit = true
[rows.release]
checkpoint = "model.safetensors"
[gates]
linf = { at-least = 0.3 }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return written(tmp_path, RECIPE, monkeypatch)


@pytest.fixture
def unreported(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, without the reports, which take most of the time."""
    monkeypatch.setattr(running, "write_reports", lambda *_: None)
    return recipe


def audit(*failed: str) -> AuditResult:
    """An audit of the model that `test_comparison.write` writes of, with some checks failed."""
    checks = [
        Check(name, kind.title, 1.0, kind.unit, kind.threshold, verdict, "so much", "it means")
        for name, kind in CHECKS.items()
        for verdict in ["fail" if name in failed else "skipped" if name == "M7" else "pass"]
    ]
    found = made_results.result()
    facts = {name: getattr(found, name) for name in ("checkpoint", "model", "defense", "data")}
    return AuditResult(
        **facts, attack=AuditedAttack("pgd", {"eps": 0.02, "steps": 20}), protocol="transfer",
        n_attacked=1, n_samples=1, seed=0, device="cpu", versions={}, accuracy={},
        checks=tuple(checks),
    )  # fmt: skip


class Commands:
    """Stands for the commands, of which the audit fails some checks or ends with a code."""

    def __init__(self, *failed: str, code: int | None = None) -> None:
        self.failed, self.code, self.ran = failed, code, list[str]()

    def __call__(self, arguments: list[str]) -> int:
        self.ran.append(arguments[0])
        if arguments[0] == "attack":
            write(Path(arguments[arguments.index("--out") + 1]), [[1] * 30])
            return 0
        if self.code is None:
            file = Path(arguments[arguments.index("--json") + 1])
            file.write_text(json.dumps(audit(*self.failed).to_json()))
        return self.code or (4 if self.failed else 0)


def test_the_audit_is_of_the_very_attack_on_the_images_that_it_takes(recipe: Path) -> None:
    attack, audited = recipes.load(recipe).stages
    assert audited.arguments(Path("out")) == [
        "audit", "model.safetensors", "--method", "pgd", "--eps", "0.02", "--steps", "20",
        "--limit", "100", "--json", "out/release/linf/audit.json",
    ]  # fmt: skip
    check(audited.arguments(Path("out")))
    recipes.check_stages(recipes.load(recipe), Path("out"), check)
    fewer = recipes.load(recipe, ["columns.linf.attack.limit=20"]).stages[1]
    assert fewer.options["limit"] == "20"
    told = recipes.load(recipe, ["columns.linf.audit={ limit = 50, points = 7, queries = 9 }"])
    recipes.check_stages(told, Path("out"), check)
    assert [told.stages[1].options[name] for name in OWN[:3]] == ["50", "7", "9"]
    assert [one.name for one in recipes.select(recipes.load(recipe), "release/linf")] == [
        attack.name, audited.name,
    ]  # fmt: skip


def test_false_is_what_it_says_of_an_option_that_is_on_by_itself(recipe: Path) -> None:
    sets = ["columns.linf.attack.random-start=false", "columns.linf.audit=false"]
    (attack,) = recipes.load(recipe, sets).stages
    assert "--no-random-start" in attack.arguments(Path("out"))
    (prepared,) = checking.prepared(attack)  # what a baseline is held against
    assert prepared.params["random_start"] is False


def test_an_audit_has_a_cost_and_of_a_random_model_a_larger_one(recipe: Path) -> None:
    stage = recipes.load(recipe, ["columns.linf.attack.data=digits"]).stages[1]
    plain, random = (cost(stage, small_model(2, defense)) for defense in ("none", "rls"))
    assert plain is not None
    assert random is not None
    assert plain.at_most
    assert plain.images == random.images == 100
    assert random.backwards - plain.backwards == 20 * 20 * 100  # M7: 20 steps on 20 draws each


def test_what_is_taken_are_options_of_both_commands() -> None:
    takes = {
        name: {flag.removeprefix("--") for one in alone(name).params for flag in one.opts}
        for name in ("attack", "audit")
    }
    assert set(TAKEN) <= takes["attack"] & takes["audit"]
    assert set(OWN) <= takes["audit"]


def test_a_failed_audit_makes_the_verdict_untrusted_everywhere(recipe: Path) -> None:
    commands = Commands("M5", "M9")
    done = recipes.run(recipe, execute=commands)
    assert done.code == 4
    (verdict,) = done.verdicts
    assert verdict.sentence == (
        "release/linf at-least 30.0 %: untrusted: audit failed: not so: M5 (more steps and "
        "restarts do not help), M9 (every gradient can be followed)"
    )
    assert done.not_met == (f"release/linf: {verdict.reason}",)
    document = json.loads((done.folder / "results.json").read_text())
    assert document["gates"][0]["reason"] == verdict.reason
    assert "untrusted: audit failed" in (done.folder / "summary.md").read_text()
    page = (done.folder / "report.html").read_text()
    assert 'id="audit"' in page
    cases = ElementTree.parse(done.folder / "junit.xml").iter("testcase")
    errors = {case.get("name") for case in cases if case.find("error") is not None}
    assert "linf at-least" in errors
    assert {name for name in errors if name and name[0] == "M"} == {
        f"{name} {CHECKS[name].title}" for name in ("M5", "M9")
    }
    again = recipes.run(recipe, execute=lambda _: pytest.fail("up to date"))
    assert (again.code, again.verdicts) == (4, done.verdicts)


def test_an_audit_that_passes_lets_the_bound_decide(unreported: Path) -> None:
    done = recipes.run(unreported, execute=Commands())
    assert (done.code, [one.verdict for one in done.verdicts]) == (0, ["pass"])
    assert done.met == ("release/linf: audit passed: 12 checks hold, 1 skipped",)


def test_another_attack_is_measured_and_audited_again_and_other_sights_only_audited(
    unreported: Path,
) -> None:
    recipes.run(unreported, execute=Commands())
    for change, ran in (
        ("columns.linf.audit={ points = 7 }", ["audit"]),
        ("columns.linf.attack.steps=40", ["attack", "audit"]),
    ):
        commands = Commands()
        assert recipes.run(unreported, execute=commands, sets=[change]).code == 0
        assert commands.ran == ran


def test_an_audit_that_ends_before_its_checks_is_untrusted_too(unreported: Path) -> None:
    done = recipes.run(unreported, execute=Commands(code=4))
    assert (done.code, done.verdicts[0].verdict) == (4, "untrusted")
    assert "its audit ended with exit code 4" in done.verdicts[0].sentence
    commands = Commands()
    assert recipes.run(unreported, execute=commands).code == 0
    assert commands.ran == ["audit"]
    with pytest.raises(recipes.StageError, match="release/linf/audit failed with exit code 3"):
        recipes.run(unreported, execute=Commands(code=3), out="other")


def test_what_is_not_audited_yet_is_undecided_and_no_old_audit_stays(unreported: Path) -> None:
    off = ["columns.linf.audit=false"]
    folder = recipes.run(unreported, execute=Commands("M1")).folder
    assert recipes.run(unreported, execute=Commands(), sets=off).code == 0
    assert not (folder / "release/linf/audit.json").exists()
    other = ["columns.clean.eval.limit=4"]

    def evaluate(arguments: list[str]) -> int:
        write(Path(arguments[arguments.index("--out") + 1]), [[1] * 4])
        return 0

    part = recipes.run(unreported, execute=evaluate, sets=other, only="release/clean")
    assert (part.code, part.verdicts[0].verdict) == (0, "undecided")
    assert part.verdicts[0].reason == "its attack is not audited yet"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("columns.clean={ eval = {}, audit = true }", "and this column is eval"),
        ("columns.linf.attack.protocol=adaptive", "the protocol adaptive is many"),
        ("columns.linf.attack.view=mean-logit", "an audit knows no view"),
        ("columns.linf.attack.random-start=true", "an audit knows no random-start"),
        ("columns.linf.attack.random-start=false", "an audit knows no random-start"),
        ("columns.linf.audit=yes", "audit is true, or a table of limit, points"),
        ("columns.linf.audit={ steps = 3 }", "not steps: the attack is the column's"),
        ("columns.linf.attack.method=square", "steps along gradients"),
        ("columns.linf.attack.norm=l2", "an audit knows no norm"),
        ('columns.linf.attack.eps="0.1,0.2"', "an audit is of one attack, and this column has 2"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_runs(
    recipe: Path, change: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        recipes.run(recipe, execute=lambda _: pytest.fail("ran"), sets=[change])


class Counted(nn.Module):
    """Counts the images that go forward, and those that a gradient comes back to, in all copies."""

    counts: ClassVar = Counter[str]()

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.body = nn.Flatten(), nn.Linear(16, 3)
        nn.init.normal_(self.body.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.body.bias)

    def forward(self, images: Tensor) -> Tensor:
        self.counts["forwards"] += len(images)
        if images.requires_grad:
            images.register_hook(  # type: ignore[no-untyped-call]
                lambda slope: self.counts.update(backwards=len(slope))
            )
        logits: Tensor = self.body(self.flat(images - 0.5))
        return logits


def test_an_audit_costs_no_more_than_is_said_and_that_is_not_far_more() -> None:
    options: dict[str, Any] = {"steps": 4, "eps": 0.02, "restarts": 2}
    effort: dict[str, Any] = {"queries": 11, "points": 5, "batch_size": 8}
    network = Counted()
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    labels = network(images).argmax(1)
    network.counts.clear()
    audit_model(network, (images, labels), **options, **effort)
    said = audit_passes(
        audited_attack("pgd", "0:1", options), Setting((1, 4, 4), 3), images=20, n_samples=1,
        draws=1, **effort,
    )  # fmt: skip
    assert said.forwards / 2 < network.counts["forwards"] <= said.forwards
    assert said.backwards / 3 < network.counts["backwards"] <= said.backwards
