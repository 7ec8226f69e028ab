"""A command that torchrun runs in several processes at once, the first of which speaks for all."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlskit.cli.show import mute

if TYPE_CHECKING:
    from rlskit.runtime.together import Ranks


@contextmanager
def one_speaks() -> Iterator[Ranks]:
    """Be together with the processes that torchrun started; all but the first are silent.

    Once one of them fails, they are sent signals to end, and do already.
    """
    from rlskit.runtime.together import together

    many = False
    try:
        with together() as ranks:
            many = ranks.many
            if not ranks.first:
                mute()
            yield ranks
    except BaseException:
        if many:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        raise
