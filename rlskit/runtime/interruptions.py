"""Ctrl-C and SIGTERM, held back until what was done is saved."""

from __future__ import annotations

import _thread
import math
import signal
import threading
import time
from types import FrameType
from typing import Any

PATIENCE = 8.0
"""Seconds that a block or a check has to end in: `docker stop` kills after 10."""


class Interruptions:
    """Holds Ctrl-C and SIGTERM back inside a `with`, until its end or until `act`.

    A second one acts at once. Signals that are ignored stay so; in other threads than the main one,
    which get none, nothing happens.

    Args:
        patience: After so many seconds one acts, whatever is under way; 0 holds none back.

    Attributes:
        came: The one that is held back, if any.
    """

    def __init__(self, patience: float = math.inf) -> None:
        self.came: int | None = None
        self._patience = patience
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        if self._patience and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._put_back()
        number, self.came = self.came, None
        if kind is None and number is not None:
            signal.raise_signal(number)

    def act(self) -> None:
        """Let the one that came do what it does; go on if that is nothing."""
        if self.came is not None:
            number, self.came = self.came, None
            self._put_back()
            signal.raise_signal(number)
            self.__enter__()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.came is not None:
            self.act()
        self.came = number
        if math.isfinite(self._patience):
            # No `threading.Timer`: this may have come while `threading` held its own lock.
            _thread.start_new_thread(self._lose_patience, (number,))

    def _lose_patience(self, number: int) -> None:
        time.sleep(self._patience)
        if self.came == number:
            _thread.interrupt_main(signal.Signals(number))  # as a second one


def unbroken(*, kept: bool) -> Interruptions:
    """Let work end that is kept then, if it soon does, before Ctrl-C or SIGTERM acts."""
    return Interruptions(PATIENCE if kept else 0)
