"""`rlskit submit`: the jobs that Slurm would be given, by a stand-in for it, and what each does."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rlskit.cli import run
from rlskit.cli import submit as submitting
from rlskit.cli.submit import GRACE, TERMINATED, Work
from rlskit.errors import RunError

submitit = pytest.importorskip("submitit")

SBATCH = """#!/bin/sh
n=$(ls submitted-* 2>/dev/null | wc -l)
cp "$1" submitted-$n
echo "Submitted batch job 70$n"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `sbatch` keeps what it is given."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("sbatch", SBATCH), ("srun", "#!/bin/sh\n")):
        Path(name).write_text(text)
        Path(name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def given(file: str) -> tuple[dict[str, str], list[Work]]:
    """What a job was submitted with, and its work, in the order of the array."""
    settings = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", Path(file).read_text(), re.MULTILINE)
    job = {"submitted-0": "700", "submitted-1": "701"}[file]
    pickles = sorted(Path("logs").glob(f"{job}*_submitted.pkl"))
    return dict(settings), [
        submitit.helpers.DelayedSubmission.load(one).function for one in pickles
    ]


def test_an_array_of_shards_and_a_merge_after_it(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = ["attack", "rls.safetensors", "--eps", "0.1", "--out", "runs/whole"]
    options = ["--shards", "3", "--minutes", "90", "--cpus", "2", "--gpus", "1", "--logs", "logs",
               "--sbatch", "partition=big", "--fail-under", "0.4"]  # fmt: skip
    assert run(["submit", *options, "--", *attack]) == 0
    array, shards = given("submitted-0")
    wanted = {"array": "0-2%3", "requeue": "", "time": "90", "cpus-per-task": "2",
              "gpus-per-node": "1", "partition": "big", "signal": "USR2@90"}  # fmt: skip
    assert wanted.items() <= array.items()
    assert "dependency" not in array
    assert shards == [Work((*attack, "--shard", f"{i}/3"), 2) for i in range(3)]
    end, (merging,) = given("submitted-1")
    assert end["dependency"] == "afterok:700"
    assert {"kill-on-invalid-dep": "yes", "partition": "big", "requeue": ""}.items() <= end.items()
    assert merging == Work(("merge", "runs/whole", "--fail-under", "0.4"), 2)
    assert "job 700: 3 shards; job 701, after them: rlskit merge runs/whole" in (
        capsys.readouterr().out
    )
    again = shards[1].checkpoint()
    assert (again.function, again.args, again.kwargs) == (shards[1], (), {})


@pytest.mark.parametrize(
    "command", [["run", "small/table3", "--only", "rls/*"], ["audit", "--json", "a.json"]]
)
def test_a_recipe_and_an_audit_end_by_the_same_command(slurm: Path, command: list[str]) -> None:
    assert run(["submit", "--shards", "1", "--logs", "logs", "-q", "--", *command]) == 0
    settings, shards = given("submitted-0")
    assert "array" not in settings
    assert shards == [Work((*command, "--shard", "0/1"), 1)]
    end, ending = given("submitted-1")
    assert (end["dependency"], ending) == ("afterok:700", [Work(tuple(command), 1)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-- convert resnet18", "convert is not done in shards; these are: attack, eval"),
        ("-- attack --eps 0.1", "attack needs --out, the folder that all shards write in"),
        ("-- attack --esp 0.1 --out x", "No such option: --esp"),
        ("-- attack --out x --shard 0/3", "leave --shard out"),
        ("-- attack --out x --fail-under 0.4", "put --fail-under before the --"),
        ("-- eval --out x --json r.json", "a shard has no result; leave --json out"),
        ("--fail-under 0.4 -- run x.toml", "--fail-under is of attack and eval, not of run"),
        ("-- run x.toml --json r.json", "a shard has no result; leave --json out"),
        ("-- audit", "audit needs --json FILE"),
        ("--sbatch big -- eval --out x", "--sbatch is KEY=VALUE, such as partition=gpu, not 'big'"),
        ("--cluster lsf -- eval --out x", "--cluster is slurm or local, not 'lsf'"),
    ],
)
def test_what_cannot_be_submitted_is_refused_at_once(
    slurm: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    assert run(["submit", "--shards", "2", *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert not list(Path().glob("submitted-*"))


def test_without_slurm_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["submit", "--shards", "2", "--", "eval", "--out", "x"]) == 2
    assert "there is no Slurm here (no srun)" in capsys.readouterr().err


def program(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Have jobs note their threads and arguments in place of a command."""
    said = "import os, sys; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:])"
    monkeypatch.setattr(submitting, "_PROGRAM", (sys.executable, "-c", f"{said}; sys.exit({code})"))


def test_work_is_a_process_of_its_own_with_its_threads(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that was terminated waits for Slurm to put it back in line, and so does not fail."""
    waited: list[int] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    for code in (0, 3, TERMINATED):
        program(monkeypatch, code)
        work = Work(("eval", "--out", "a b"), 2)
        if code:
            with pytest.raises(RunError, match=rf"`rlskit eval --out 'a b'` .* exit code {code}"):
                work()
        else:
            work()
        assert capfd.readouterr().out == "2 eval --out a b\n"
    assert waited == [GRACE]


def test_here_shards_run_beside_each_other_and_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By submitit's executor that runs in this process."""
    monkeypatch.chdir(tmp_path)
    ended: list[Any] = []

    def merging(line: list[str]) -> int:
        ended.append(line)
        return 1

    monkeypatch.setattr("rlskit.cli.app.run", merging)
    monkeypatch.setattr(
        submitting, "_executor", lambda logs, cluster: submitit.AutoExecutor(logs, cluster="debug")
    )
    line = ["submit", "--shards", "2", "--cluster", "local", "--fail-under", "0.4", "-q", "--"]
    program(monkeypatch, 0)
    assert run([*line, "eval", "--out", "x"]) == 1
    assert ended == [["merge", "x", "--fail-under", "0.4", "--quiet"]]
    program(monkeypatch, 4)
    assert run([*line, "eval", "--out", "x"]) == 3
    assert "shard 0/2 failed, as" in capsys.readouterr().err
    assert len(ended) == 1
