"""Ratios of processor times, for the benchmarks beside this file."""

from __future__ import annotations

import time
from collections.abc import Callable

ROUNDS, SECONDS = 3, 15.0
"""At least, per ratio: with a few seconds the best of either is still off by a tenth."""


def ratio(
    ours: Callable[[], object],
    plain: Callable[[], object],
    *,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Return the best time of `ours` over the best of `plain`, run in turn."""
    best = {ours: float("inf"), plain: float("inf")}
    order, rounds, begin = [ours, plain], 0, clock()
    while rounds < ROUNDS or clock() - begin < SECONDS:
        for run in order:
            start = clock()
            run()
            best[run] = min(best[run], clock() - start)
        order.reverse()  # whoever comes second finds the caches warm
        rounds += 1
    return best[ours] / best[plain]
