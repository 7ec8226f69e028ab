"""A disk that is full after so many more files."""

import errno
from pathlib import Path

import pytest

from rlskit.storage import files


class FullDisk:
    """What rlskit writes its files on for the rest of a test.

    Attributes:
        room: For how many more files there is room.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        synced = files._sync

        def sync(path: Path) -> None:
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            synced(path)

        monkeypatch.setattr(files, "_sync", sync)
