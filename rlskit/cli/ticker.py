"""How far a long command is, on stderr: bars on a terminal, a plain line now and then without."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rlskit.cli.flags import BAR, NONE, PLAIN
from rlskit.cli.show import note
from rlskit.progress import PART, Progress, no_progress

EVERY = 30.0  # seconds between two plain lines


@contextmanager
def progress_shown(kind: str | None, quiet: bool) -> Iterator[Progress]:
    """Give a `Progress` that shows on stderr what it is told.

    Args:
        kind: One of `rlskit.cli.flags.PROGRESS`; None for bars on a terminal, else plain lines.
        quiet: Show nothing.
    """
    from rich.console import Console

    if kind is None:
        kind = BAR if Console(stderr=True).is_terminal else PLAIN
    shown = {NONE: _nothing, PLAIN: _lines, BAR: _bars}[NONE if quiet else kind]
    with shown() as progress:
        yield progress


class Lines:
    """A `Progress` that writes a plain line at most every so many seconds.

    Args:
        write: Takes a line.
        clock: Returns seconds.
        every: Seconds between two lines, and before the first one.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        every: float = 30,
    ) -> None:
        self._write, self._clock, self._every = write, clock, every
        self._lock = threading.Lock()
        self._began = self._said = clock()
        self._step, self._done, self._total = "", 0, 0
        self._facts: dict[str, float] = {}
        self._first: tuple[float, float] | None = None  # when, and the share that was done then
        self._part = ""

    def __call__(self, step: str, done: int, total: int, **facts: float) -> None:
        """Note how far it is; write a line if one is due."""
        with self._lock:
            if step.startswith(PART):
                self._part = f"part {done} of {total} ({step.removeprefix(PART)})"
            else:
                self._note(step, done, total, facts)
        self.beat()

    def beat(self) -> None:
        """Write a line if one is due, also where nothing new is known."""
        with self._lock:
            now = self._clock()
            if now - self._said < self._every:
                return
            self._said = now
            self._write(self._line(now))

    def _note(self, step: str, done: int, total: int, facts: dict[str, float]) -> None:
        again = self._first is not None and ("share" in facts) == ("share" in self._facts)
        if not (again and (step == self._step or "share" in facts)):
            self._first = (self._clock(), facts.get("share", done / max(total, 1)))
        self._step, self._done, self._total, self._facts = step, done, total, facts
        self._part = ""

    def _line(self, now: float) -> str:
        words = [f"{self._step}: {self._done} of {self._total}"] if self._step else ["starting"]
        words += [self._part] if self._part else []
        words += [shown] if (shown := _facts(self._facts)) else []
        words.append(f"{duration(now - self._began)} so far")
        if self._first is not None:
            since, before = self._first
            share = self._facts.get("share", self._done / max(self._total, 1))
            if share > before:
                left = (1 - share) * (now - since) / (share - before)
                words.append(f"about {duration(left)} left")
        return ", ".join(words)


def duration(seconds: float) -> str:
    """Return a time in the unit in which it is no small fraction: `40 s`, `12 min`, `3.5 hours`."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{max(seconds, 1):.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.3g} hours"


@contextmanager
def _nothing() -> Iterator[Progress]:
    yield no_progress


@contextmanager
def _lines() -> Iterator[Progress]:
    """Give lines that are written also while nothing is told, as within one long block."""
    lines, over = Lines(note, every=EVERY), threading.Event()

    def beat() -> None:
        with suppress(OSError, ValueError):  # stderr is closed: the command itself will say so
            while not over.wait(1):
                lines.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        over.set()
        thread.join()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(step: str, done: int, total: int, **facts: float) -> None:
            key = PART if step.startswith(PART) else step
            if key not in tasks:
                tasks[key] = bars.add_task(step, total=total, facts="")
            bars.update(
                tasks[key], description=step, completed=done, total=total, facts=_facts(facts)
            )

        yield show


def _facts(facts: dict[str, float]) -> str:
    shown = []
    for name, value in facts.items():
        if name == "accuracy":
            shown.append(f"accuracy {100 * value:.1f} %")
        elif name == "images_per_second":
            shown.append(f"{value:.0f} images/s")
        elif name != "share":
            shown.append(f"{name} {value:.4f}")
    return "  ".join(shown)
