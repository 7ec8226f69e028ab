"""How torch's threads wait and how many there are, which must be settled before it is loaded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path


def settle_threads(environ: MutableMapping[str, str] | None = None) -> None:
    """Choose how torch's threads wait and how many there are, before it is loaded.

    OpenMP's threads spin while they wait for each other. Beside a busy neighbour, the one that all
    wait for does not run because the others spin: an attack took six times as long with two threads
    as with one. What the user has set is left alone.

    Args:
        environ: The process's own by default.
    """
    environ = os.environ if environ is None else environ
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    share = cpu_share()
    if share is not None and share < _usable():  # which is all that OpenMP looks at
        environ.setdefault("OMP_NUM_THREADS", str(share))


def cpu_share(root: Path = Path("/")) -> int | None:
    """Return how many CPUs the control groups of a container or a job give, rounded up.

    Args:
        root: Where `proc` and `sys` are.

    Returns:
        At least 1; None where there is no limit, or no control groups.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    shares = [share for line in lines for share in _shares(root / "sys/fs/cgroup", line)]
    return max(math.ceil(min(shares)), 1) if shares else None


def _shares(mounted: Path, line: str) -> Iterator[float]:
    """Yield the limits of a group, which is a line `0::/a/b` or `4:cpu,cpuacct:/a`, and its kin."""
    number, controllers, path = (line + "::").split(":")[:3]
    if not number.isdigit() or (controllers and "cpu" not in controllers.split(",")):
        return
    top = mounted / controllers  # version 2 has no controllers here
    inside = [part for part in Path(path).parts[1:] if part != ".."]
    for depth in range(len(inside) + 1):
        group = top.joinpath(*inside[:depth])
        try:
            if controllers:
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = ((group / name).read_text() for name in files)
            else:
                quota, period = (group / "cpu.max").read_text().split()
            if quota != "max" and float(quota) > 0:
                yield float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # not mounted here, or without this limit


def _usable() -> int:
    """Return how many CPUs the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
