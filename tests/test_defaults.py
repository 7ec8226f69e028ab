"""Options that nobody typed: where they are from, what wins, and what they may not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlskit.cli import run
from rlskit.cli.app import COMMANDS, alone
from rlskit.cli.defaults import NAMES
from test_readme import SMALL


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(
        '[tool.rlskit]\nlimit = 20\ndevice = "cpu"\nrepeats = 2\n[tool.other]\nx = 1\n'
    )
    Path("rlskit.toml").write_text("[defaults]\nlimit = 30\nseed = 7\n")


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """Return what --show-config says of every option: its value, and where that is from."""
    capsys.readouterr()
    assert run([*arguments, "--show-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:24].strip(): (line[24:48].strip(), line[48:].strip()) for line in lines}


def test_the_command_line_wins_then_the_environment_then_the_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLSKIT_SEED", "8")
    monkeypatch.setenv("RLSKIT_NUM_WORKERS", "1")
    found = shown(["attack", "x.safetensors", "--num-workers", "2"], capsys)
    assert found["CHECKPOINT"] == ("x.safetensors", "command line")
    assert found["--num-workers"] == ("2", "command line")
    assert found["--seed"] == ("8", "environment, RLSKIT_SEED")
    assert found["--limit"] == ("30", "rlskit.toml [defaults]")
    assert found["--repeats"] == ("2", "pyproject.toml [tool.rlskit]")
    assert found["--batch-size"] == ("128", "default")
    learning = shown(["train"], capsys)
    assert learning["--limit"] == ("–", "default")  # it would decide what is learnt
    assert learning["--seed"] == ("8", "environment, RLSKIT_SEED")
    saved = shown(["eval", "--adversarial=x"], capsys)
    assert saved["--limit"] == ("–", "default")  # which --adversarial takes the place of


def test_a_default_is_part_of_the_run_as_if_typed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.py").write_text(SMALL)
    assert run(["convert", "small.py:small", "-q", "--seed", "0"]) == 0
    evaluation = ["eval", "--json", "-"]
    assert run(evaluation, own_defaults=True) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["data"]["n"], found["seed"], found["repeats"]) == (30, 7, 2)
    assert "not typed: --limit 30 (rlskit.toml [defaults]), --device cpu (pyproject" in captured.err
    typed = ["--limit", "30", "--seed", "7", "--repeats", "2"]
    assert run([*evaluation, *typed]) == 0  # as a stage of a recipe runs: by what it says alone
    same = json.loads(capsys.readouterr().out)
    for one in (found, same):
        del one["timing"]
    assert same == found
    assert run(evaluation) == 0
    assert json.loads(capsys.readouterr().out)["data"]["n"] == 360


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limt = 3", "'limt' is no option with a default; did you mean limit?"),
        ("fail-under = 0.1", "'fail-under' is no option with a default"),
        ("steps = 1", "'steps' is no option with a default"),
        ("force = true", "'force' is no option with a default"),
        ("limit = [1]", "limit = [1] is no value for an option"),
        ("limit = ", "rlskit.toml is no valid TOML"),
        ('limit = "many"', "(rlskit.toml [defaults])"),
    ],
)
def test_what_no_default_may_be_is_refused(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rlskit.toml").write_text(f"[defaults]\n{text}\n")
    assert run(["eval"], own_defaults=True) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("rlskit: ")
    assert said in message
    assert run(["inspect", "--show-config"]) == 0  # which takes none of them


def test_no_default_decides_a_gate_or_an_attack_or_permits_anything() -> None:
    kept = {
        "fail_under", "expect_clean", "max_drop", "method", "eps", "norm", "steps", "restarts",
        "n_attacked", "protocol", "n_samples", "abstain", "force", "download", "trust", "model",
        "skip_bad", "json_to", "out", "split",
    }  # fmt: skip
    known = {one.name for name in COMMANDS for one in alone(name).params}
    assert kept <= known
    assert not kept & {*NAMES}
    assert {*NAMES} <= known


def test_a_recipe_is_complete_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rlskit.toml").write_text(
        '[defaults]\nlimit = 30\n[all]\nlimit = 10\n[convert]\nname = "test_resnet"\n'
        'image-size = 16\n[columns.clean]\neval = {}\n[rows.none]\nconvert.defense = "none"\n'
    )
    assert run(["run", "rlskit.toml", "-q"], own_defaults=True) == 0
    results = json.loads(Path("runs").glob("*/none/clean/results.json").__next__().read_text())
    assert results["data"]["n"] == 10
    Path("other.toml").write_text(Path("rlskit.toml").read_text())
    assert run(["run", "other.toml", "-q"]) == 2
    assert "'defaults' is unknown" in capsys.readouterr().err
