"""Threads and memory: what is asked of the system, and what the user or a container said first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlskit.runtime import allocator, threads
from rlskit.runtime.allocator import return_memory
from rlskit.runtime.threads import cpu_share, settle_threads


def groups(root: Path, lines: str, limits: dict[str, str]) -> Path:
    """Lay out a `proc` and a `sys` as a kernel would."""
    for name, text in {"proc/self/cgroup": lines, **limits}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "limits", "share"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 1"}, 3),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "9 10"}, 1),
        ("0::/../../seen/from/outside\n", {"cpu.max": "400000 100000"}, 4),
        ("4:memory:/\n1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n"}, None),
        (
            "3:cpu,cpuacct:/docker/x\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("2:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, None),
        ("0::/\n", {"cpu.max": "what is this"}, None),
        ("0::/\n", {"cpu.max": "1 0"}, None),
        ("nonsense\n\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_share_of_the_control_groups(
    tmp_path: Path, lines: str, limits: dict[str, str], share: int | None
) -> None:
    limits = {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    if "cpu/cpu.cfs_quota_us" in str(limits):
        limits["sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000"
    assert cpu_share(groups(tmp_path, lines, limits)) == share


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_share(tmp_path) is None


def test_threads_do_not_spin_and_are_no_more_than_there_are_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_usable", lambda: 4)
    for share, added in ((None, {}), (4, {}), (9, {}), (2, {"OMP_NUM_THREADS": "2"})):
        monkeypatch.setattr(threads, "cpu_share", lambda share=share: share)
        environ: dict[str, str] = {}
        settle_threads(environ)
        assert environ == {"OMP_WAIT_POLICY": "PASSIVE", **added}
    own = {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "3"}
    environ = dict(own)
    settle_threads(environ)
    assert environ == own


def test_the_command_line_settles_threads_before_torch_is_loaded() -> None:
    """And importing the library leaves the environment as it was."""
    program = (
        "import os, sys, rlskit, rlskit.cli\n"
        "assert 'OMP_WAIT_POLICY' not in os.environ\n"
        "rlskit.cli.app.run = lambda arguments, **_: print('torch' in sys.modules, "
        "os.environ['OMP_WAIT_POLICY']) or 0\n"
        "rlskit.cli.main()\n"
    )
    environ = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("False PASSIVE\n", 0), done.stderr


def test_memory_is_returned_where_the_library_can_and_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    return_memory()
    calls: list[int] = []
    clock = iter((100.5, 101.5, 101.6, 102, 102.6, 102.6))
    monkeypatch.setattr(allocator, "_malloc_trim", lambda: calls.append)
    monkeypatch.setattr(allocator, "_returned", 100.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for _ in range(4):
        return_memory()
    assert calls == [0, 0]


def test_other_c_libraries_keep_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert allocator._malloc_trim.__wrapped__()(0) == 0
