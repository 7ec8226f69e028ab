"""What a long command says of how far it is, with a clock of the test's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import rlskit
import small_models
from rlskit.cli import run, ticker
from rlskit.cli.ticker import Lines, duration
from rlskit.progress import PART
from rlskit.threat.adaptive import prepare_adaptive
from test_readme import SMALL


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines() -> tuple[Lines, Clock, list[str]]:
    clock, written = Clock(), list[str]()
    return Lines(written.append, clock), clock, written


def test_a_plain_line_every_half_minute_with_what_is_left() -> None:
    told, clock, written = lines()
    told("attacking", 50, 200)  # found finished: no rate follows from them
    for done in (60, 70, 80):
        clock.now += 20
        told("attacking", done, 200)
    assert written == ["attacking: 70 of 200, 40 s so far, about 4 min left"]
    clock.now += 9
    told.beat()
    assert len(written) == 1
    clock.now += 1
    told.beat()  # 30 in 70 s, 120 to go: 280 s
    assert written[1:] == ["attacking: 80 of 200, 1 min so far, about 5 min left"]


def test_lines_come_within_one_long_block_and_name_its_part() -> None:
    told, clock, written = lines()
    clock.now += 30
    told.beat()
    told("attacking", 0, 100)
    told(f"{PART}autoattack rand", 9, 12)
    clock.now += 30
    told.beat()
    told("attacking", 100, 100)
    clock.now += 60
    told("attacking with another", 0, 100)
    assert written == [
        "starting, 30 s so far",
        "attacking: 0 of 100, part 9 of 12 (autoattack rand), 1 min so far",
        "attacking with another: 0 of 100, 2 min so far",
    ]


def test_of_several_steps_the_time_left_is_that_of_all() -> None:
    told, clock, written = lines()
    told("epoch 1/4", 10, 10, loss=1.0, accuracy=0.5, share=0.25)
    clock.now += 60
    told("epoch 2/4", 10, 10, loss=0.5, accuracy=0.75, share=0.5)
    assert written == [
        "epoch 2/4: 10 of 10, loss 0.5000  accuracy 75.0 %, 1 min so far, about 2 min left"
    ]
    assert [duration(one) for one in (0, 59.4, 90, 7199, 12600)] == [
        "1 s", "59 s", "2 min", "120 min", "3.5 hours"
    ]  # fmt: skip


def test_progress_is_on_stderr_and_never_in_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ticker, "EVERY", 0.0)
    Path("small.py").write_text(SMALL)
    assert run(["convert", "small.py:small", "-q"]) == 0
    for asked, plain, bar in (
        ([], True, False),
        (["--progress", "plain"], True, False),
        (["--progress", "none"], False, False),
        (["--progress", "bar"], False, True),
        (["--progress", "plain", "--quiet"], False, False),
    ):
        capsys.readouterr()
        assert run(["eval", "--limit", "20", "--json", "-", *asked]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["data"]["n"] == 20
        assert ("evaluating: 20 of 20" in captured.err) == plain
        assert ("20/20" in captured.err) == bar
    assert run(["eval", "--progress", "loud"]) == 2
    assert "--progress is none, plain or bar, not 'loud'" in capsys.readouterr().err


def test_the_adaptive_protocol_says_at_which_part_it_is() -> None:
    told: list[tuple[str, int, int]] = []
    model, images = small_models.model(1, "none", layers=1), small_models.digits(4).images(range(4))
    (draw,) = rlskit.draws(model, 1, seed=0, purpose="defender")
    threat = prepare_adaptive(model, eps=0.001, steps=1)
    threat = replace(threat, parts=threat.parts[:2])
    threat.craft(
        model,
        images,
        draw(images).argmax(-1),
        seed=0,
        repeat=0,
        progress=lambda step, done, total, **facts: told.append((step, done, total)),
    )
    assert told == [(f"{PART}pgd ce", 1, 2), (f"{PART}pgd margin", 2, 2)]
