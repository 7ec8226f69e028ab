"""Budgets of time: bounds that hold at every look, images in random order, and when looks end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made_results
import rlskit
from rlskit import recipes
from rlskit.cli.recipe import check
from rlskit.data import Data, load
from rlskit.errors import RequestError
from rlskit.recipes import looks, running
from rlskit.recipes.cost import Cost, cost
from rlskit.recipes.stages import Stage
from rlskit.recipes.time_budget import Budget
from rlskit.results import compare, read_results
from rlskit.results.verdict import drops
from rlskit.stats import accuracy, anytime, anytime_bound, lower_bound
from small_models import model as small_model
from small_recipes import written
from test_comparison import write


def test_the_bound_by_hand() -> None:
    """M is (1 + p) / 2p for one right of one, and (1 + p + p^2) / 3p^2 for two: 20 at the bound."""
    assert anytime_bound(1, 1) == pytest.approx(1 / 39)
    assert anytime_bound(2, 2) == pytest.approx((1 + math.sqrt(237)) / 118)
    assert anytime_bound(0, 10) == 0.0
    found = anytime(accuracy([0.43], 1000))
    assert (found.mean, found.n) == (0.43, 1000)
    assert found.ci95[0] < found.lower_bound < lower_bound([0.43], 1000)
    assert found.upper_bound == pytest.approx(1 - anytime_bound(570, 1000))


SIZES = [50 * 2**look for look in range(7)]


def runs(share: float, count: int) -> list[list[int]]:
    """How many are right among the first 50, 100, ... 3,200 images, in so many runs."""
    generator = np.random.default_rng(0)
    right = generator.binomial(np.diff([0, *SIZES]), share, (count, len(SIZES)))
    found: list[list[int]] = right.cumsum(1).tolist()
    return found


def test_over_many_looks_it_errs_once_in_twenty_at_most_and_the_other_bound_more() -> None:
    """A run errs if at any look the bound is above the share."""

    def errs(bound: Callable[[int, int], float], share: float, count: int) -> float:
        wrong = [
            any(bound(right, n) > share for right, n in zip(run, SIZES, strict=True))
            for run in runs(share, count)
        ]
        return sum(wrong) / count

    for share in (0.1, 0.5, 0.95):
        assert errs(anytime_bound, share, 300) <= 0.05
    assert errs(lambda right, n: lower_bound([right / n], n), 0.5, 150) > 0.08


def test_it_decides() -> None:
    """Five points from the threshold, nearly all of 200 runs are decided by 3,200 images."""
    decided = [anytime_bound(run[-1], SIZES[-1]) > 0.45 for run in runs(0.5, 200)]
    assert sum(decided) > 190


def test_images_in_random_order_are_the_first_of_more() -> None:
    few, more = (load("digits", limit=limit, order=3) for limit in (20, 45))
    assert few.index.tolist() == more.index.tolist()[:20]
    assert torch.equal(few.images(range(20)), more.images(range(20)))
    assert few.index.tolist() != load("digits", limit=20, order=4).index.tolist()
    whole = load("digits", order=3)
    assert sorted(whole.index.tolist()) == list(range(360))
    assert torch.equal(whole.labels, load("digits").labels[whole.index])


def test_more_images_keep_the_blocks_that_are_done(tmp_path: Path) -> None:
    model = small_model(1, "none", trained=False)

    def look(data: Data, out: Path) -> Any:
        (found,) = rlskit.evaluate(model, data, batch_size=10, out=out)
        return found

    first = look(load("digits", limit=20, order=0), tmp_path / "grown")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "grown/blocks").iterdir()}
    (tmp_path / "grown/results.json").unlink()
    grown = look(load("digits", limit=35, order=0), tmp_path / "grown")
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert len(list((tmp_path / "grown/blocks").iterdir())) == 4
    fresh = look(load("digits", limit=35, order=0), tmp_path / "fresh")
    assert grown.accuracy == fresh.accuracy
    assert (grown.data.order, grown.data.n, first.data.n) == (0, 35, 20)
    clean = grown.accuracy["clean"]
    assert clean.lower_bound == pytest.approx(anytime_bound(clean.mean * 35, 35))
    with pytest.raises(RequestError, match="`repeats` or `shuffle`"):
        rlskit.evaluate(model, load("digits", limit=20, order=0), repeats=2)


RECIPE = """
title = "the release"
[columns.linf]
attack = { method = "pgd", eps = 0.02, seed = 5 }
budget = "20 min"
[rows.release]
checkpoint = "model.safetensors"
[gates]
linf = { at-least = 0.3 }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(running, "write_reports", lambda *_: None)  # which takes most of the time
    return written(tmp_path, RECIPE, monkeypatch)


class Attack:
    """Stands for the attack: what share is right, how long an image takes, how many there are."""

    def __init__(
        self, clock: Clock, share: float, seconds: float = 1.0, images: int = 100_000
    ) -> None:
        self.clock, self.share, self.seconds, self.images = clock, share, seconds, images
        self.looks: list[int] = []
        self.done = 0
        self.interrupted_at = 0

    def __call__(self, arguments: list[str]) -> int:
        asked, out = (arguments[arguments.index(name) + 1] for name in ("--limit", "--out"))
        assert "--shuffle" in arguments
        n = min(int(asked), self.images)
        self.looks.append(int(asked))
        if n == self.interrupted_at:
            self.interrupted_at = 0
            self.clock.now += self.seconds * (n - self.done) / 2
            self.done += (n - self.done) // 2
            return 130
        self.clock.now += self.seconds * (n - self.done)
        self.done = max(n, self.done)
        right = round(self.share * n)
        share = anytime(accuracy([right / n], n))
        answers = [[1] * right + [0] * (n - right)]
        write(
            Path(out), answers, answers, data=replace(made_results.images(n), order=0),
            accuracy={"clean": share, "robust": share},
        )  # fmt: skip
        return 0


class Clock:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(looks, "time", found)
    return found


def test_it_ends_when_the_gate_is_decided(recipe: Path, clock: Clock) -> None:
    """Of 100 half are right: the bound is 35 %; of 50 it is 29 %."""
    attack = Attack(clock, 0.5)
    done = recipes.run(recipe, execute=attack)
    assert attack.looks == [50, 100]
    (verdict,) = done.verdicts
    assert (done.code, verdict.verdict, verdict.images) == (0, "pass", 100)
    assert verdict.bounds is not None
    assert verdict.bounds[0] == pytest.approx(anytime_bound(50, 100))
    document = json.loads((done.folder / "results.json").read_text())
    assert document["commands"] == [
        "rlskit attack model.safetensors --batch-size 50 --method pgd --eps 0.02 --seed 5 "
        "--shuffle --limit 100 --out runs/"
        + f"{recipe.resolve().parent.name}-rlskit/release/linf"
    ]  # fmt: skip
    again = recipes.run(recipe, execute=lambda _: pytest.fail("up to date"))
    assert again.verdicts == done.verdicts


def test_it_ends_when_the_time_is_up_and_says_how_much_is_missing(
    recipe: Path, clock: Clock
) -> None:
    """At 0.7 s an image, 20 minutes are 1,714 images: 1,700 in blocks of 50, after 1,600."""
    attack = Attack(clock, 0.31, seconds=0.7)
    done = recipes.run(recipe, execute=attack)
    assert attack.looks == [50, 100, 200, 400, 800, 1600, 1700]
    assert clock.now <= 20 * 60
    (verdict,) = done.verdicts
    assert (done.code, verdict.verdict, verdict.images) == (1, "undecided", 1700)
    assert "undecided (its budget of 20 min is used up), it takes about " in verdict.sentence
    assert verdict.more_images is not None
    assert verdict.more_images > 1700


def test_it_ends_with_the_images_or_with_the_limit(recipe: Path, clock: Clock) -> None:
    attack = Attack(clock, 0.3, images=130)
    done = recipes.run(recipe, execute=attack)
    assert attack.looks == [50, 100, 200]
    assert done.verdicts[0].sentence.endswith("130 images: undecided, it takes more images to tell")
    other = Attack(clock, 0.3)
    done = recipes.run(recipe, execute=other, sets=["columns.linf.attack.limit=120"], out="other")
    assert other.looks == [50, 100, 120]
    assert done.verdicts[0].images == 120


def test_an_interrupted_budget_goes_on_where_it_was_with_the_time_that_is_left(
    recipe: Path, clock: Clock
) -> None:
    attack = Attack(clock, 0.3, seconds=1.0)
    attack.interrupted_at = 800
    with pytest.raises(recipes.StageError, match="was interrupted"):
        recipes.run(recipe, execute=attack)
    assert clock.now == 600
    done = recipes.run(recipe, execute=attack)
    assert attack.looks == [50, 100, 200, 400, 800, 800, 1200]
    assert (clock.now, done.verdicts[0].images) == (1200, 1200)


def test_an_interrupted_budget_goes_on_as_another(recipe: Path, clock: Clock) -> None:
    attack = Attack(clock, 0.3, seconds=1.0)
    attack.interrupted_at = 800
    with pytest.raises(recipes.StageError, match="was interrupted"):
        recipes.run(recipe, execute=attack)
    done = recipes.run(recipe, execute=attack, sets=['columns.linf.budget="10 min"'])
    assert attack.looks[5:] == [800]
    assert (clock.now, done.verdicts[0].images) == (800, 800)


def test_a_larger_budget_and_another_gate_go_on_from_what_is_done(
    recipe: Path, clock: Clock
) -> None:
    attack = Attack(clock, 0.5, seconds=1.0)
    recipes.run(recipe, execute=attack)
    assert attack.looks == [50, 100]
    done = recipes.run(recipe, execute=attack, sets=["gates.linf.at-least=0.46"])
    assert attack.looks[2:] == [100, 200, 400, 800, 1200]
    assert done.verdicts[0].verdict == "undecided"
    more = ["gates.linf.at-least=0.46", 'columns.linf.budget="2 h"']
    done = recipes.run(recipe, execute=attack, sets=more)
    assert attack.looks[7:] == [1200, 2400]
    assert (done.code, done.verdicts[0].verdict) == (0, "pass")
    other = recipes.run(recipe, execute=attack, sets=[*more, "columns.linf.attack.eps=0.01"])
    assert attack.looks[9:11] == [50, 100]
    assert other.code == 0


def test_a_first_look_that_takes_too_long_is_the_only_one(recipe: Path, clock: Clock) -> None:
    attack = Attack(clock, 0.3, seconds=60.0)
    done = recipes.run(recipe, execute=attack)
    assert attack.looks == [50]
    assert "budget of 20 min is used up" in done.verdicts[0].sentence


def test_without_a_gate_it_measures_as_many_as_the_time_allows(recipe: Path, clock: Clock) -> None:
    attack = Attack(clock, 1.0, seconds=2.0)
    Path("rlskit.toml").write_text(RECIPE.partition("[gates]")[0])
    done = recipes.run(recipe, execute=attack)
    (found,) = read_results(done.folder / "release/linf/results.json")
    assert (done.code, found.data.n) == (0, 600)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("columns.linf.budget=20", 'is a time such as "20 min"'),
        ('columns.linf.budget="20 days"', 'is a time such as "20 min"'),
        ('columns.linf.budget="0 min"', 'is a time such as "20 min"'),
        ("columns.linf.attack.repeats=3", "takes one repeat"),
        ("columns.linf.attack.fail-under=0.3", "does not go with fail-under"),
        ("columns.linf.attack.shuffle=true", "does not go with shuffle"),
        ("gates.linf.by=point", "a point decides at once"),
        ("columns.kappa={ diversity = {}, budget = '9 s' }", "this column is diversity"),
        (
            "columns.clean={ eval = { abstain = 0.05, eps = 0.1 }, budget = '9 s' }",
            "does not go with abstain",
        ),
    ],
)
def test_what_no_budget_can_bound_is_refused(recipe: Path, change: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        recipes.load(recipe, [change])


def test_a_drop_needs_as_many_images_as_the_baseline(recipe: Path) -> None:
    Path("before").mkdir()
    sets = ["gates.linf.max-drop=0.1", "baseline.results=before"]
    with pytest.raises(RequestError, match="does not go with max-drop"):
        recipes.load(recipe, sets)


def test_two_runs_on_images_in_random_order_are_no_drop(tmp_path: Path) -> None:
    data = replace(made_results.images(4), order=0)
    before, after = (write(tmp_path / name, [[1] * 4], data=data) for name in ("a", "b"))
    with pytest.raises(RequestError, match="leave `shuffle` out"):
        drops(compare(before, after), 0.5)


def test_an_estimate_is_no_longer_than_the_budget() -> None:
    options = {"method": "pgd", "eps": "0.1", "steps": "1000000", "data": "digits"}
    stage = Stage("release/linf", "attack", options, None, "model.safetensors")
    model = small_model(1, "none")
    name = stage.name
    assert (recipes.estimate_of([stage], model).hours[name] or 0) > 1 / 60
    found = recipes.estimate_of([replace(stage, budget=Budget("1 min", 60.0, "robust"))], model)
    assert found.hours[name] == 1 / 60
    assert found.costs[name] == replace(cost(stage, model) or Cost(0, 0, 0), at_most=True)


def test_its_command_line_is_one_that_the_command_takes(recipe: Path) -> None:
    recipes.check_stages(recipes.load(recipe), Path("out"), check)
