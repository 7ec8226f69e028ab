"""`rlskit init`: the recipe runs as it is, and the CI jobs' steps do what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import rlskit
from rlskit import recipes
from rlskit.cli import run as command
from rlskit.cli.recipe import check, taken
from rlskit.evaluation.clean import Knowledge
from rlskit.pixels import Pixels
from rlskit.recipes.cost import Cost, Estimate
from rlskit.recipes.drafting import ATTACKED, usual_budget
from small_models import model as small_model
from test_readme import SMALL

ROOT = Path(__file__).resolve().parents[1]
GITHUB, GITLAB = recipes.JOBS["github"], recipes.JOBS["gitlab"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network's code, its trained weights, and a checkpoint of the same."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "small.py").write_text(SMALL)
    model = rlskit.convert(f"{folder}/small.py:small", defense="none", data="digits")
    rlskit.train(model, data="digits", epochs=4, lr=0.1)
    rlskit.save(model, folder / "model.safetensors")
    rlskit.export(model, [0] * model.num_layers, folder / "weights.safetensors")
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_of_a_checkpoint_runs_as_it_is(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["init", "model.safetensors", "--data", "digits", "--eps", "0.5", "--limit", "4"]
    assert command([*asked, "--github", "--gitlab"]) == 0
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.startswith("wrote")] == [
        "wrote rlskit.toml", f"wrote {GITHUB}", f"wrote {GITLAB}",
    ]  # fmt: skip
    assert "it takes 364 images, at most " in told.out
    asks = tomllib.loads(Path("rlskit.toml").read_text())
    assert asks["columns"]["linf"]["attack"]["limit"] == 4
    assert 0.3 < asks["gates"]["clean"]["at-least"] < 1
    assert command(["run", "rlskit.toml", "-o", "out", "-q"]) == 0
    (verdict,) = json.loads(Path("out/results.json").read_text())["gates"]
    assert (verdict["column"], verdict["verdict"]) == ("clean", "pass")
    before = Path("rlskit.toml").read_text()
    for files in (["rlskit.toml"], [GITHUB]):  # nothing is written where one file is there
        Path("rlskit.toml").rename("before.toml") if files != ["rlskit.toml"] else None
        assert command([*asked, "--github"]) == 2
        assert f"{files[0]} exists already; --force replaces it" in capsys.readouterr().err
    assert not Path("rlskit.toml").exists()
    assert command([*asked, "--github", "--force"]) == 0
    assert Path("rlskit.toml").read_text() == before


def test_a_checkpoint_of_a_folder_is_measured_on_the_data_that_is_named(here: Path) -> None:
    model = rlskit.load("model.safetensors")
    model.card.data = "folder:photos"
    rlskit.save(model, "model.safetensors", force=True)
    asked = ["init", "model.safetensors", "--eps", "0.5", "--limit", "4"]
    assert command(asked) == 2
    assert command([*asked, "--data", "digits"]) == 0


def test_the_recipe_of_a_network_makes_the_model_that_was_looked_at(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["init", "small.py:small", "--weights", "weights.safetensors"]
    assert command(asked) == 2
    assert "say with --data what images it is for" in capsys.readouterr().err
    assert command([*asked, "--data", "digits", "--github"]) == 0
    assert "ASSUMED" in capsys.readouterr().err
    (convert, clean, linf) = recipes.load("rlskit.toml", takes=taken()).stages
    assert convert.options == {
        "name": "small.py:small", "weights": "weights.safetensors", "defense": "none",
        "data": "digits",
    }  # fmt: skip
    assert (clean.command, linf.options["protocol"]) == ("eval", "adaptive")
    runs = re.findall(r"rlskit run rlskit.toml.*", Path("rlskit.toml").read_text())
    assert runs == ["rlskit run rlskit.toml --trust"]  # as it names code
    assert "run: rlskit run rlskit.toml --trust --out rlskit-run\n" in GITHUB.read_text()
    said = ["--mean", "0.25", "--std", "0.5", "--image-size", "32", "--outputs", "logits"]
    assert command([*asked, "--data", "digits", *said, "--force"]) == 0
    assert "ASSUMED" not in capsys.readouterr().err
    assert "# mean" not in Path("rlskit.toml").read_text()
    convert = recipes.load("rlskit.toml", takes=taken()).stages[0]
    assert convert.options.items() > {
        "mean": "0.25", "std": "0.5", "image-size": "32", "outputs": "logits",
    }.items()  # fmt: skip
    Path("rlskit.toml").unlink()
    assert command(["doctor", "model.safetensors", "--data", "digits", "--mean", "0.25"]) == 2
    assert "is a checkpoint, which holds it; leave --mean out" in capsys.readouterr().err
    assert command(["init", "small.py:small", "--data", "digits"]) == 2
    assert "is untrained" in capsys.readouterr().err
    assert command([*asked, "--data", "digits", "-o", "a b.toml", "--github", "--force"]) == 2
    assert "letters, digits" in capsys.readouterr().err
    assert list(here.glob("*.toml")) == []


def test_no_recipe_is_written_for_a_model_that_guesses(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = rlskit.load("model.safetensors")
    for tensors in model.bank_tensors():
        for tensor in tensors.values():
            tensor.data.zero_()
    rlskit.save(model, "model.safetensors", force=True)
    assert command(["init", "model.safetensors"]) == 4
    assert "guessing could be" in capsys.readouterr().err
    assert not Path("rlskit.toml").exists()


def start(model: str = "m.safetensors", **changes: Any) -> recipes.Start:
    known = Knowledge(right=62, n=64, guessing=0.1, can_show=True)
    given = {"weights": None, "finished": True, "data": {"data": "digits"}, "clean": known}
    return recipes.Start(model=model, card=small_model(1, "none").card, **given | changes)


def test_any_text_is_written_as_toml() -> None:
    odd = 'a "b" \\ \x7f\n\t@DATA@ é 𝄞.safetensors'
    found = tomllib.loads(recipes.draft(start(odd), Path("a.toml"), 50))
    assert found["rows"]["release"]["checkpoint"] == odd
    # Clopper-Pearson's one-sided 95 % bound of 62 of 64 is 0.9049
    assert found["gates"] == {"clean": {"at-least": 0.90}}


def test_the_budget_is_the_usual_one() -> None:
    for shape, eps in (((1, 28, 28), "0.1"), ((3, 32, 32), "8/255"), ((3, 224, 224), "4/255")):
        card = small_model(1, "none").card
        card.pixels = Pixels(*shape, (0.5,) * shape[0], (0.5,) * shape[0])
        assert usual_budget(card) == eps


@pytest.mark.parametrize(
    ("hours", "limit"), [(0.01, 1000), (0.1, 500), (0.2, 200), (5.0, 100), (None, 100)]
)
def test_as_many_images_are_attacked_as_an_hour_allows(hours: float | None, limit: int) -> None:
    """The cost is of 50 images."""
    cost = None if hours is None else Cost(50, 1, 1)
    assert recipes.affordable(Estimate({ATTACKED: cost}, {ATTACKED: hours}, "cpu")) == limit


@dataclass
class Ran:
    """What the shell steps of a job did."""

    calls: list[list[str]]
    summary: str
    failed: bool


def shell(text: str, folder: Path, **more: str) -> bool:
    """Run a step as a CI job does, with stand-ins for python and rlskit; say whether it failed."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **more}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text],
        cwd=folder, env=environment, timeout=30,
    )  # fmt: skip
    return done.returncode != 0


def stand_ins(folder: Path, code: int, *, summary: bool) -> None:
    """Put a python and an rlskit in the path that note what they are called with."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, then in (
        ("python", ""),
        (
            "rlskit",
            f"mkdir -p rlskit-run; {'echo done > rlskit-run/summary.md' * summary}\nexit {code}",
        ),
    ):
        file = folder / "bin" / name
        note = f'for one in {name} "$@"; do printf "%s\\0" "$one"; done >> calls; echo >> calls'
        file.write_text(f"#!/bin/bash\n{note}\n{then}\n")
        file.chmod(0o755)


def steps_of(kind: str, folder: Path) -> Iterator[tuple[str, dict[str, str], bool]]:
    """Yield a job's shell steps: text, variables, and whether it runs after a failure."""
    if kind == "gitlab":
        found = yaml.safe_load(recipes.job(kind, start(), Path("rlskit.toml")))["rlskit"]
        common = {name: str(value) for name, value in found["variables"].items()}
        yield "\n".join([*found["before_script"], *found["script"]]), common, False
        yield "\n".join(found["after_script"]), common, True
        return
    if kind == "action":
        action = yaml.safe_load((ROOT / "action.yml").read_text())
        steps = action["runs"]["steps"]
        given = {name: str(one["default"]) for name, one in action["inputs"].items()}
    else:
        text = recipes.job(kind, start(), Path("rlskit.toml"))
        (job,), given = yaml.safe_load(text)["jobs"].values(), {}
        steps = job["steps"]
    for step in steps:
        if "run" in step:
            variables = {
                name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda one: given[one[1]], value)
                for name, value in step.get("env", {}).items()
            }
            yield step["run"], variables, step.get("if") == "${{ !cancelled() }}"


def ran(kind: str, folder: Path, code: int, *, summary: bool) -> Ran:
    stand_ins(folder, code, summary=summary)
    (folder / "summary").write_text("")
    failed = False
    for text, variables, always in steps_of(kind, folder):
        if always or not failed:
            own = {"GITHUB_STEP_SUMMARY": "summary", "GITHUB_ACTION_PATH": "/the/action"}
            failed |= shell(text, folder, **own, **variables)
    calls = [line.split("\0")[:-1] for line in (folder / "calls").read_text().splitlines()]
    return Ran(calls, (folder / "summary").read_text(), failed)


@pytest.mark.parametrize("kind", ["github", "action", "gitlab"])
@pytest.mark.parametrize(("code", "summary"), [(0, True), (1, True), (3, False)])
def test_a_job_installs_runs_and_tells_also_when_a_gate_fails(
    kind: str, code: int, summary: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = ran(kind, tmp_path, code, summary=summary)
    install, run = found.calls
    assert install[:4] == ["python", "-m", "pip", "install"]
    assert install[-1] == ("/the/action" if kind == "action" else f"rlskit=={rlskit.__version__}")
    assert run == ["rlskit", "run", "rlskit.toml", "--out", "rlskit-run"]
    check(run[1:])
    assert found.failed == (code != 0)
    told = capfd.readouterr().out if kind == "gitlab" else found.summary
    assert told.startswith("done\n" if summary else "rlskit ended without a summary")


def test_code_is_trusted_where_the_user_of_the_action_says_so(tmp_path: Path) -> None:
    stand_ins(tmp_path, 0, summary=True)
    (text,) = (text for text, *_ in steps_of("action", tmp_path) if "rlskit run" in text)
    for trust, more in (("true", ["--trust"]), ("false", []), ("", [])):
        (tmp_path / "calls").unlink(missing_ok=True)
        assert not shell(text, tmp_path, RECIPE="a b.toml", FOLDER="out", TRUST=trust)
        called = (tmp_path / "calls").read_text().split("\0")[:-1]
        assert called == ["rlskit", "run", "a b.toml", "--out", "out", *more]


def test_every_job_keeps_what_a_run_writes_and_actions_are_pinned() -> None:
    wanted = {
        f"rlskit-run/{name}" for name in ("report.html", "summary.md", "junit.xml", "results.json")
    }
    texts = {kind: recipes.job(kind, start(), Path("rlskit.toml")) for kind in recipes.JOBS}
    artifacts = yaml.safe_load(texts["gitlab"])["rlskit"]["artifacts"]
    assert set(artifacts["paths"]) == wanted
    assert (artifacts["when"], artifacts["reports"]) == (
        "always",
        {"junit": "rlskit-run/junit.xml"},
    )
    action = (ROOT / "action.yml").read_text()
    for text in (texts["github"], action.replace("${{ inputs.folder }}", "rlskit-run")):
        assert wanted <= set(text.split())
        used = re.findall(r"uses: (.*)", text)
        assert all(
            re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one) for one in used
        )
        assert len(used) >= 2


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (["zizmor", "--offline", "--persona=pedantic"], ["github", "action"]),
        (["actionlint"], ["github"]),
        (["check-jsonschema", "--builtin-schema", "vendor.github-workflows"], ["github"]),
        (["check-jsonschema", "--builtin-schema", "vendor.github-actions"], ["action"]),
        (["check-jsonschema", "--builtin-schema", "vendor.gitlab-ci"], ["gitlab"]),
    ],
    ids=" ".join,
)
def test_the_checkers_of_each_format_find_nothing(
    arguments: list[str], kinds: list[str], tmp_path: Path
) -> None:
    arguments[0] = tool(arguments[0])
    files = {
        "github": tmp_path / GITHUB,
        "gitlab": tmp_path / GITLAB,
        "action": ROOT / "action.yml",
    }
    for kind in recipes.JOBS:
        files[kind].parent.mkdir(parents=True, exist_ok=True)
        files[kind].write_text(recipes.job(kind, start(), Path("rlskit.toml")))
    done = subprocess.run(
        [*arguments, *(str(files[kind]) for kind in kinds)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
