"""Runs in parts: every part by itself, one killed, and the merged result that of one process."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import small_models
from rlskit import (
    attack_adaptively,
    attack_all,
    evaluate,
    measure_abstention,
    measure_diversity,
    measure_transfer,
    merge,
)
from rlskit.attacks import prepare
from rlskit.cli import run
from rlskit.errors import RequestError, RunError, UnmergedError, UntrustedError
from rlskit.evaluation import EvalOptions
from rlskit.models.banks import BankedModel
from rlskit.results import SCHEMA
from rlskit.results.journal import BLOCK
from rlskit.runtime.sharding import Shard
from rlskit.storage.sealed import read_sealed, write_sealed
from rlskit.threat.adaptive import Adaptive, prepare_adaptive

DATA = small_models.digits(50)

TINY = """
from torch import nn

def tiny(num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""

DYING = """
import os, signal, sys, rlskit, torch
from rlskit.cli import run
from rlskit.evaluation.run import Run

block = Run._block

def dying(self, repeat, indices, *rest):
    if indices.start == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return block(self, repeat, indices, *rest)

Run._block = dying
torch.set_num_threads(int(sys.argv[1]))
sys.exit(run(sys.argv[2:]))
"""
"""The command line, killed in the block of image 40."""


@pytest.fixture(scope="module")
def rls() -> BankedModel:
    return small_models.trained("rls", 3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code and the checkpoint of a network that learned the digits."""
    folder = tmp_path_factory.mktemp("tiny")
    convert = ["convert", "tiny.py:tiny", "--image-size", "8", "--data", "digits", "-q"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("XDG_STATE_HOME", str(folder / "state"))  # where the code is known
        Path("tiny.py").write_text(TINY)
        assert run(convert) == run(["train", "--epochs", "3", "--lr", "0.1", "-q"]) == 0
    return folder


def written(folder: Path) -> dict[str, Any]:
    """All that a run wrote but for its times, bytes but for results, whose passes count."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name == "results.json":
            results = json.loads(file.read_text())
            for one in results if isinstance(results, list) else [results]:
                assert one["schema"] == SCHEMA
                one["timing"] |= {"seconds": None, "images_per_second": None}
            found[name] = json.dumps(results)
        elif file.name == "SHA256SUMS":
            found[name] = file.read_text().split()[1::2]
        elif file.is_file() and file.parent.name not in ("blocks", "shards"):
            found[name] = file.read_bytes()
        elif file.is_file() and file.parent.name == "blocks":
            found[name] = "a block"
    return found


SINGLE = [prepare("pgd", eps=0.15, steps=3)]
SEVERAL = [prepare("pgd", eps=0.1, steps=2), prepare("fgsm", eps=0.1)]


def short_adaptive(model: BankedModel, **options: Any) -> Adaptive:
    """The protocol `adaptive`, of which two parts run, for two steps each."""
    found = prepare_adaptive(model, **options, steps=2, n_attacked=2)
    parts = [one for one in found.parts if one.attack.params.get("loss") == "margin"][:2]
    return dataclasses.replace(found, parts=tuple(parts))


def several(model: BankedModel, attacks: Any = SEVERAL, **more: Any) -> Any:
    fields = {name: more.pop(name) for name in ("shard", "seed", "expect_clean") if name in more}
    options = EvalOptions(n_samples=3, batch_size=20, repeats=2, **fields)
    return attack_all(model, DATA, attacks=attacks, options=options, save_adversarial=True, **more)


RUNS: dict[str, Callable[..., Any]] = {
    "attack": functools.partial(several, attacks=SINGLE),
    "several": several,
    "targeted": functools.partial(
        several, attacks=[prepare("pgd", eps=0.1, steps=2, target=1)], protocol="eot"
    ),
    "known": functools.partial(several, attacks=SINGLE, protocol="known", n_attacked=3),
    "adaptive": lambda model, **more: attack_adaptively(
        model, DATA, eps=0.1, n_samples=2, batch_size=20, save_adversarial=True, **more
    ),
    "eval": lambda model, **more: evaluate(
        model, DATA, n_samples=(1, 3), repeats=2, batch_size=9, **more
    ),
    "diversity": lambda model, **more: measure_diversity(
        model, DATA, n_samples=3, repeats=2, batch_size=9, **more
    ),
    "transfer": lambda model, **more: measure_transfer(
        model, DATA, n_samples=2, repeats=2, steps=2, batch_size=17, **more
    ),
    "abstain": lambda model, **more: measure_abstention(
        model, DATA, eps=0.1, steps=1, n_attacked=1, n_samples=2, batch_size=13, **more
    ),
}  # fmt: skip


def part(name: str, model: BankedModel, shard: str, out: Path, **more: Any) -> None:
    """Do one shard."""
    with pytest.raises(UnmergedError, match=f"shard {shard} is done; once all"):
        RUNS[name](model, out=out, shard=shard, **more)


@pytest.mark.parametrize("name", RUNS)
def test_the_parts_of_a_run_make_what_one_process_makes(
    rls: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In one folder, and in one each, whatever their order."""
    monkeypatch.setattr("rlskit.evaluation.attacking.prepare_adaptive", short_adaptive)
    whole = RUNS[name](rls, out=tmp_path / "whole")
    for shard in ("2/3", "0/3", "1/3"):
        part(name, rls, shard, tmp_path / "shared")
    for shard in ("0/2", "1/2"):
        part(name, rls, shard, tmp_path / shard[0])
    merged = merge([tmp_path / "shared"])
    again = merge([tmp_path / "1", tmp_path / "0"], out=tmp_path / "merged")
    wanted = written(tmp_path / "whole")
    assert written(tmp_path / "merged") == wanted
    assert written(tmp_path / "shared") == wanted
    results = whole if isinstance(whole, list) else [whole]
    for found in (merged, again):
        assert [one.accuracy for one in found] == [one.accuracy for one in results]
        assert [one.agreement for one in found] == [one.agreement for one in results]
        assert [one.warnings for one in found] == [one.warnings for one in results]


@pytest.mark.parametrize("name", ["diversity", "transfer"])
def test_an_interrupted_comparison_goes_on(rls: BankedModel, tmp_path: Path, name: str) -> None:
    seen: list[int] = []

    def progress(step: str, done: int, total: int, **facts: float) -> None:
        seen.append(done)
        if len(seen) == 4:
            raise KeyboardInterrupt

    whole = RUNS[name](rls)
    with pytest.raises(KeyboardInterrupt):
        RUNS[name](rls, out=tmp_path, progress=progress)
    found = RUNS[name](rls, out=tmp_path, progress=progress)
    assert seen == sorted(seen)  # no block was done twice
    assert seen[4] == seen[3] > 0
    assert seen[-1] == 100
    assert found.agreement == whole.agreement
    assert found.transfer == whole.transfer
    assert found.timing.forwards == whole.timing.forwards
    assert found.timing.backwards == whole.timing.backwards


def test_saved_images_are_scored_in_parts(rls: BankedModel, tmp_path: Path) -> None:
    """Their clean accuracy is known of the data that they were made from, also when merged."""
    RUNS["attack"](rls, out=tmp_path / "made")
    request: dict[str, Any] = {
        "adversarial": tmp_path / "made" / "adversarial.safetensors", "n_samples": 2,
        "batch_size": 20,
    }  # fmt: skip
    evaluate(rls, DATA, **request, out=tmp_path / "whole")
    for shard in ("0/2", "1/2"):
        with pytest.raises(UnmergedError):
            evaluate(rls, DATA, **request, out=tmp_path / "parts", shard=shard)
    merge([tmp_path / "parts"])
    assert written(tmp_path / "parts") == written(tmp_path / "whole")


def test_what_is_missing_is_named_and_done_by_the_same_command(
    rls: BankedModel, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    part("eval", rls, "0/3", out)
    part("eval", rls, "2/3", out)
    with pytest.raises(RequestError, match=r"4 of 12 blocks are not there, .*run `shard` 1/3 to"):
        merge([out])
    assert not (out / "results.json").exists()
    part("eval", rls, "1/3", out)
    (out / "blocks" / "1-9.safetensors").unlink()
    with pytest.raises(RequestError, match=r"1 of 12 blocks .*repeat 1 and image 9; .*were lost"):
        merge([out])
    part("eval", rls, "1/3", out)
    merge([out])
    with pytest.raises(RequestError, match="holds a finished run"):
        merge([out])
    with pytest.raises(RequestError, match=r"run lies in .*, whose run `force` removes"):
        merge([out], out=tmp_path, force=True)
    before = written(out)
    merge([out], force=True)
    assert written(out) == before


def test_an_ordinary_run_goes_on_where_shards_ended(rls: BankedModel, tmp_path: Path) -> None:
    RUNS["several"](rls, out=tmp_path / "whole")
    part("several", rls, "1/3", tmp_path / "run")
    RUNS["several"](rls, out=tmp_path / "run")
    assert written(tmp_path / "run") == written(tmp_path / "whole")


def test_parts_of_two_runs_are_not_merged(
    rls: BankedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part("attack", rls, "0/2", tmp_path / "0")
    part("attack", rls, "1/2", tmp_path / "1", seed=1)
    with pytest.raises(RequestError, match="are not of one run: seed differ"):
        merge([tmp_path / "0", tmp_path / "1"], out=tmp_path / "out")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    part("attack", rls, "1/2", tmp_path / "threads")
    monkeypatch.undo()
    with pytest.raises(RequestError, match="are not of one run: threads differ"):
        merge([tmp_path / "0", tmp_path / "threads"], out=tmp_path / "out")
    part("attack", rls, "1/2", tmp_path / "2", expect_clean=0.1)
    with pytest.raises(UntrustedError, match="notes another end of the run"):
        merge([tmp_path / "0", tmp_path / "2"], out=tmp_path / "out")
    with pytest.raises(RequestError, match="say with `out` where"):
        merge([tmp_path / "0", tmp_path / "2"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RequestError, match="nothing holds no run of rlskit's"):
        merge([tmp_path / "nothing"])
    assert not (tmp_path / "out").exists()


def test_a_block_twice_must_be_the_same_twice(rls: BankedModel, tmp_path: Path) -> None:
    for shard, folder in (("0/2", "a"), ("1/2", "b"), ("0/4", "c")):
        part("attack", rls, shard, tmp_path / folder)
    folders = [tmp_path / name for name in "abc"]
    merge(folders, out=tmp_path / "once")
    file = tmp_path / "c" / "blocks" / "1-20.safetensors"
    about, block = read_sealed(file, BLOCK)
    write_sealed(file, block | {"robust": block["robust"] + 1}, about)
    with pytest.raises(UntrustedError, match=r"repeat 1 and image 20 in .*c says otherwise"):
        merge(folders, out=tmp_path / "twice")
    assert not (tmp_path / "twice" / "results.json").exists()


def test_the_end_of_a_run_is_not_lost_by_merging(tmp_path: Path) -> None:
    """A model that only guesses has no result, and a gate decides on none that is untrained."""
    guessing = small_models.model(2, trained=False)
    for shard in ("0/2", "1/2"):
        with pytest.raises(UnmergedError):
            evaluate(guessing, DATA, n_samples=2, batch_size=9, out=tmp_path, shard=shard)
    with pytest.raises(UntrustedError, match="guessing could be, too"):
        merge([tmp_path], gated=True)
    assert not (tmp_path / "results.json").exists()
    (result,) = merge([tmp_path])
    assert result.warnings[0].startswith("UNTRAINED MODEL")


def test_nobody_else_writes_beside_shards(rls: BankedModel, tmp_path: Path) -> None:
    """Not the merge, not an ordinary run, not the same shard; another shard does."""
    out = tmp_path / "run"
    tried: list[int] = []

    def interfere(step: str, done: int, total: int, **facts: float) -> None:
        if not tried:
            for other in (
                lambda: RUNS["eval"](rls, out=out),
                lambda: RUNS["eval"](rls, out=out, shard="0/2"),
                lambda: merge([out]),
                lambda: merge([out], out=tmp_path / "merged"),
            ):
                with pytest.raises(RunError, match="is being written by process"):
                    other()
            part("eval", rls, "1/2", out)
        tried.append(done)

    part("eval", rls, "0/2", out, progress=interfere)
    assert sorted(set(tried)) == [0, 9, 18, 27, 36, 45, 54]
    merge([out])
    assert not list(tmp_path.rglob(".rlskit*"))


@pytest.mark.parametrize(
    ("text", "environ", "wanted"),
    [
        ("0/3", {}, Shard(0, 3)),
        ("2/3", {"RANK": "0", "WORLD_SIZE": "9"}, Shard(2, 3)),
        ("auto", {"RANK": "1", "WORLD_SIZE": "4"}, Shard(1, 4)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4",
                  "SLURM_ARRAY_TASK_MIN": "5"}, Shard(2, 4)),
        ("3/3", {}, "`shard` 3/3 is no part of 3: they are counted from 0, as 0/3 to 2/3"),
        ("0/0", {}, "is no part of 0"),
        ("1", {}, "such as 0/3, or auto, not '1'"),
        ("auto", {}, r"needs RANK and WORLD_SIZE \(torchrun\) or SLURM_ARRAY_TASK_ID"),
        ("auto", {"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 of WORLD_SIZE=4 is no part of 4"),
        ("auto", {"RANK": "a", "WORLD_SIZE": "4"}, "are no numbers"),
    ],
)  # fmt: skip
def test_which_shard_it_is(text: str, environ: dict[str, str], wanted: Shard | str) -> None:
    if isinstance(wanted, Shard):
        assert Shard.read(text, environ) == wanted
    else:
        with pytest.raises(RequestError, match=wanted):
            Shard.read(text, environ)


def test_what_a_shard_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shard = ["eval", "--shard", "0/2"]
    for more, said in (
        (["--fail-under", "0.4", "-o", "x"], "leave --fail-under to `rlskit merge`"),
        (["--json", "-", "-o", "x"], "leave --json to `rlskit merge`"),
        (["--per-image", "a.csv", "-o", "x"], "leave --per-image to `rlskit merge`"),
        ([], "--shard needs --out"),
    ):
        assert run([*shard, *more]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(RequestError, match="`shard` needs `out`"):
        evaluate(small_models.model(2), DATA, n_samples=2, shard="0/2")


SCALE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")


def callers() -> dict[str, list[tuple[dict[str, str], str]]]:
    """The lines of the page's callers with what is set for each of their three processes."""
    bash = re.findall(r"```bash\n(.*?)```", SCALE, re.DOTALL)
    job, workflow = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", SCALE, re.DOTALL))
    (torchrun,) = re.findall(r"torchrun --nproc-per-node 3 -m (rlskit .*)", bash[0])
    (slurm,) = re.findall(r"^rlskit .*", bash[1], re.MULTILINE)
    assert "#SBATCH --array=0-2\n" in bash[1]
    (pod,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 3
    assert job["spec"]["completionMode"] == "Indexed"
    matrix = workflow["jobs"]["attack"]
    assert matrix["strategy"]["matrix"]["shard"] == [0, 1, 2]
    (step,) = (one["run"] for one in matrix["steps"] if "rlskit attack" in one.get("run", ""))
    return {
        "torchrun": [({"RANK": str(i), "WORLD_SIZE": "3"}, torchrun) for i in range(3)],
        "Slurm": [
            ({"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_TASK_COUNT": "3",
              "SLURM_ARRAY_TASK_MIN": "0"}, slurm) for i in range(3)
        ],
        "Kubernetes": [({}, pod.replace("$JOB_COMPLETION_INDEX", str(i))) for i in range(3)],
        "GitHub": [({}, step.replace("${{ matrix.shard }}", str(i))) for i in range(3)],
    }  # fmt: skip


def test_the_callers_of_the_page_make_one_result(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as its system would call it, and merged as the page says."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    merges = re.findall(r"rlskit (merge runs/.*--fail-under 0\.1)", SCALE)
    assert len(merges) == 4
    line = "attack rls.safetensors --eps 0.1 --out whole --batch-size 90 --n-samples 2 -q"
    assert run(line.split()) == 0
    for (name, calls), merging in zip(callers().items(), merges, strict=True):
        for environ, said in calls:
            with monkeypatch.context() as patched:
                for key, value in environ.items():
                    patched.setenv(key, value)
                words = said.split()[1:]
                assert run([*words, "--batch-size", "90", "--n-samples", "2", "-q"]) == 0
        assert run([*merging.split(), "-q"]) == 0, name
        found, wanted = (written(Path(one)) for one in ("runs/whole", "whole"))
        results = json.loads(found.pop("results.json"))
        assert results.pop("gate")["verdict"] == "met"
        assert {**results, "gate": None} == json.loads(wanted.pop("results.json"))
        assert found == wanted
        shutil.rmtree("runs")


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="needs actionlint")
def test_the_workflow_of_the_page_is_one(tmp_path: Path) -> None:
    workflow = re.findall(r"```yaml\n(.*?)```", SCALE, re.DOTALL)[1]
    (tmp_path / "attack.yml").write_text(workflow)
    subprocess.run(["actionlint", str(tmp_path / "attack.yml")], check=True)


def test_a_shard_that_is_killed_costs_its_block(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The command itself: three shards, one killed and run again, and the gate by merge."""
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    line = ["attack", "--eps", "0.1", "--batch-size", "10", "--limit", "60", "--n-samples", "2",
            "--save-adversarial", "-q", "-o"]  # fmt: skip
    assert run([*line, "whole"]) == 0
    shard = [*line, "parts", "--shard"]
    command = [sys.executable, "-c", DYING, str(torch.get_num_threads()), *shard, "1/3"]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [file.name for file in Path("parts/blocks").glob("[!.]*")] == ["0-10.safetensors"]
    for which in ("0/3", "2/3"):
        assert run([*shard, which]) == 0
    capsys.readouterr()
    assert run(["merge", "parts"]) == 2
    assert "2 of 6 blocks are not there" in capsys.readouterr().err
    assert run([*shard, "1/3"]) == 0
    assert run(["merge", "parts", "-q", "--fail-under", "1"]) == 1
    assert json.loads(Path("parts/results.json").read_text())["gate"]["verdict"] == "not met"
    assert run(["merge", "parts", "-q", "--force"]) == 0
    assert written(Path("parts")) == written(Path("whole"))
