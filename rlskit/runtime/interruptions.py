"""Ctrl-C and SIGTERM, held back until what was done is saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruptions:
    """Holds Ctrl-C and SIGTERM back inside a `with`, until its end or until `act`.

    A second one acts at once. Signals that are ignored stay so; in other threads than the main one,
    which get none, nothing happens.

    Attributes:
        came: The one that is held back, if any.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._put_back()
        if kind is None and self.came is not None:
            signal.raise_signal(self.came)

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
