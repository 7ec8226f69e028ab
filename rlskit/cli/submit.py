"""`rlskit submit`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from rlskit.cli.flags import MACHINE, OUTPUT, FailUnderOption, QuietOption, flag, one_of, under
from rlskit.cli.show import check_gate, note, say
from rlskit.errors import RequestError, RunError

SHARDED = ("attack", "eval", "diversity", "audit", "run")
"""The commands that take `--shard`; `merge` ends the first three, the same command the others."""

CLUSTERS = ("slurm", "local")

TERMINATED = 143
GRACE = 300
"""Seconds that a job whose command was terminated waits for Slurm, which puts it back in line."""

_AGAIN = 20
"""How often a job that is out of time is put back in line; it goes on at its block."""

_PROGRAM = (sys.executable, "-m", "rlskit")


@dataclass(frozen=True)
class Work:
    """What one job does: a command line, in a process of its own.

    Attributes:
        arguments: Without `rlskit`.
        cpus: Its threads.
    """

    arguments: tuple[str, ...]
    cpus: int

    def __call__(self) -> None:
        """Do it.

        Raises:
            RunError: The command failed.
        """
        environ = {**os.environ, "OMP_NUM_THREADS": str(self.cpus)}
        code = subprocess.call([*_PROGRAM, *self.arguments], env=environ)
        if code == TERMINATED and "SLURM_JOB_ID" in os.environ:
            time.sleep(GRACE)  # a job that ends by itself would count as failed
        if code:
            raise RunError(f"`rlskit {shlex.join(self.arguments)}` ended with exit code {code}")

    def checkpoint(self, *_: Any) -> Any:
        """Return what is put back in line before the time is over: the same, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    command: Annotated[
        list[str], typer.Argument(help="What is to be done, after --, as: -- attack --eps 8/255.")
    ],
    shards: Annotated[int, under(MACHINE, "How many jobs share the work.", "--shards", min=1)],
    cluster: Annotated[
        str,
        under(
            MACHINE,
            "slurm, or local: as many processes here.",
            callback=one_of("--cluster", CLUSTERS),
        ),
    ] = "slurm",
    minutes: Annotated[int, under(MACHINE, "Of a job, which goes on in another.", min=1)] = 240,
    cpus: Annotated[int, under(MACHINE, "Threads of a job.", min=1)] = 1,
    gpus: Annotated[int, under(MACHINE, "GPUs of a job.", min=0)] = 0,
    sbatch: Annotated[
        list[str] | None,
        under(
            MACHINE, "More for Slurm: partition=gpu, account=a; repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
    fail_under: FailUnderOption = None,
    logs: Annotated[Path, under(OUTPUT, "Folder of the jobs' logs.")] = Path("runs/jobs"),
    quiet: QuietOption = False,
) -> int:
    """Have Slurm do a command in shards, each put back in line when preempted, then merge them."""
    check_gate(fail_under)
    ending = _ending(command, shards, fail_under)
    more = _settings(sbatch or ())
    executor = _executor(logs, cluster)
    executor.update_parameters(
        name=f"rlskit-{command[0]}", timeout_min=minutes, cpus_per_task=cpus,
        gpus_per_node=gpus or None, slurm_additional_parameters={"requeue": True, **more},
    )  # fmt: skip
    with executor.batch():
        jobs = [
            executor.submit(Work((*command, "--shard", f"{i}/{shards}"), cpus))
            for i in range(shards)
        ]
    if cluster == "local":
        return _ended_here(jobs, ending, quiet)
    array = jobs[0].job_id.partition("_")[0]
    after = {"dependency": f"afterok:{array}", "kill-on-invalid-dep": "yes"}
    executor.update_parameters(
        name="rlskit-end", slurm_additional_parameters={"requeue": True, **more, **after}
    )
    last = executor.submit(Work(ending, cpus))
    say(f"job {array}: {shards} shards; job {last.job_id}, after them: rlskit {shlex.join(ending)}")
    note(f"logs: {logs}; `scancel {array} {last.job_id}` ends them", quiet=quiet)
    return 0


def _ending(command: Sequence[str], shards: int, fail_under: float | None) -> tuple[str, ...]:
    """Return the command line that makes the result of all shards.

    Raises:
        RequestError: The command is none that shards can do, or is wrong.
    """
    from rlskit.cli.app import alone
    from rlskit.cli.recipe import check

    name, *rest = command
    if name not in SHARDED:
        raise RequestError(f"{name} is not done in shards; these are: {', '.join(SHARDED)}")
    check([name, *rest, "--shard", f"0/{shards}"])
    given = alone(name).make_context(name, list(rest)).params
    if given.get("shard") is not None:
        raise RequestError("--shards says how many there are; leave --shard out")
    if fail_under is not None and name not in ("attack", "eval"):
        raise RequestError(f"--fail-under is of attack and eval, not of {name}")
    if name == "audit":
        if given["json_to"] in (None, "-"):
            raise RequestError("audit needs --json FILE, beside which its checks are kept")
        return tuple(command)
    if given.get("fail_under") is not None:
        raise RequestError("the gate is on all shards; put --fail-under before the --")
    for option in ("json_to", "per_image"):
        if given.get(option) is not None:
            raise RequestError(
                f"a shard has no result; leave {flag(option.removesuffix('_to'))} out"
            )
    if name == "run":
        return tuple(command)
    if given["out"] is None:
        raise RequestError(f"{name} needs --out, the folder that all shards write in")
    gate = () if fail_under is None else ("--fail-under", str(fail_under))
    return ("merge", str(given["out"]), *gate)


def _settings(texts: Sequence[str]) -> dict[str, str]:
    """Read `KEY=VALUE`s.

    Raises:
        RequestError: One is none.
    """
    for text in texts:
        if not text.partition("=")[0].strip() or "=" not in text:
            raise RequestError(f"--sbatch is KEY=VALUE, such as partition=gpu, not {text!r}")
    return {key.strip(): value for key, _, value in (text.partition("=") for text in texts)}


def _executor(logs: Path, cluster: str) -> Any:
    """Return what submits jobs.

    Raises:
        RequestError: submitit is not installed, or there is no Slurm here.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise RequestError("`rlskit submit` needs submitit: pip install 'rlskit[submit]'") from None
    try:
        return submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=_AGAIN)
    except RuntimeError as error:
        raise RequestError(
            "there is no Slurm here (no srun); go where there is, or give --cluster local"
        ) from error


def _ended_here(jobs: Sequence[Any], ending: tuple[str, ...], quiet: bool) -> int:
    """Wait for jobs on this machine, then make their result.

    Raises:
        RunError: One failed.
    """
    from rlskit.cli.app import run

    for i, job in enumerate(jobs):
        note(f"waiting for shard {i}/{len(jobs)}: {job.paths.stderr}", quiet=quiet)
        if job.exception() is not None:
            raise RunError(f"shard {i}/{len(jobs)} failed, as {job.paths.stderr} says")
    return run([*ending, *(["--quiet"] if quiet else [])])
