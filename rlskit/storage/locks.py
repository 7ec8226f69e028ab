"""One writer per folder, or file: a lock of the system's, which ends with its process.

The file `.rlskit.lock`, or `.NAME.lock`, says whose it is, for people. It goes when its writer is
done; what a killed writer left of it holds nobody up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from rlskit.errors import RequestError, RunError

LOCK = ".rlskit.lock"

_LOG = logging.getLogger("rlskit")
_TRIES, _PAUSE = 5, 0.05  # `refuse_busy` holds a lock for a moment, too
_PATIENCE = 1200  # tries of `in_turn`: a minute
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class BusyError(RunError):
    """Somebody else writes there."""


@contextlib.contextmanager
def only_writer(*folders: Path | None, part: str | None = None) -> Iterator[None]:
    """Be the only one that writes in these folders, which are made; None is no folder.

    A folder that was made for nothing, as the work failed before it wrote, is removed again.

    Args:
        folders: The folders.
        part: Write beside others that call themselves otherwise, and nobody else.

    Raises:
        RequestError: One is a file.
        RunError: Another process, or another thread of this one, writes in one of them.
    """
    with contextlib.ExitStack() as held:
        for folder in dict.fromkeys(folders):
            if folder is not None:
                held.enter_context(_only_writer(folder, part))
        yield


def make_folder(folder: Path) -> None:
    """Make a folder, and those it is in, where they are not there yet.

    Raises:
        RequestError: A file is in its place, or in that of one it is in.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RequestError(
            f"{folder} is not a folder, nor can it become one; name another"
        ) from error


@contextlib.contextmanager
def _only_writer(folder: Path, part: str | None) -> Iterator[None]:
    made = not folder.exists()
    make_folder(folder)
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(_holding(folder / LOCK, folder, shared=part is not None))
            if part is not None:
                held.enter_context(_holding(folder / f".rlskit.{part}.lock", folder))
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which leaves a folder that holds anything


@contextlib.contextmanager
def only_writer_of(file: Path | None) -> Iterator[None]:
    """Be the only one that writes a file, and what belongs to it; None is no file.

    Raises:
        RunError: Another process, or another thread of this one, does.
    """
    if file is None:
        yield
        return
    target = Path(os.path.realpath(file))
    with _holding(target.with_name(f".{target.name}.lock"), file):
        yield


@contextlib.contextmanager
def if_free(file: Path) -> Iterator[bool]:
    """Be the only one that makes a file, unless somebody else is at it; say whether it is ours."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(only_writer_of(file))
        except BusyError:
            ours = False
        else:
            ours = True
        yield ours


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Do what takes a moment, one after the other of those that write in a folder by parts.

    Raises:
        RunError: Another one takes longer than a minute.
    """
    with _holding(folder / ".rlskit.turn.lock", folder, tries=_PATIENCE):
        yield


@contextlib.contextmanager
def _holding(
    lock: Path, what: Path, *, shared: bool = False, tries: int = _TRIES
) -> Iterator[None]:
    handle = _acquired(lock, what, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, tries)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if not shared or locked(handle):  # else others hold it still
                lock.unlink(missing_ok=True)  # before it is given up: see `_acquired`
        os.close(handle)


def refuse_busy(folder: Path, *, parts: bool = False) -> None:
    """Require that nobody writes in a folder, without waiting for the work to begin.

    Args:
        folder: The folder.
        parts: Whether those who write by parts count, too.

    Raises:
        RunError: Somebody does.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        free = locked(handle, fcntl.LOCK_EX if parts else fcntl.LOCK_SH)
    except OSError:
        free = True
    finally:
        os.close(handle)
    if not free:
        raise _busy(folder / LOCK, folder)


def locked(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file unless somebody else holds it; say whether it is ours now.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _acquired(lock: Path, what: Path, kind: int, tries: int) -> int:
    """Return the open lock of a folder or file, which is ours."""
    for _ in range(tries):
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if _ours(handle, lock, kind):
            facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(facts).encode(), 0)
            return handle
        os.close(handle)  # somebody's, or removed by its last holder just as it was opened
        time.sleep(_PAUSE)
    raise _busy(lock, what)


def _ours(handle: int, lock: Path, kind: int) -> bool:
    """Lock an open file, if it is free and still the one that all others lock."""
    try:
        return locked(handle, kind) and os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOG.warning(
            "%s cannot be locked on its file system: let nobody else write there", lock.parent
        )
        return True


def _busy(lock: Path, what: Path) -> BusyError:
    try:
        facts = json.loads(lock.read_text(encoding="utf-8"))
        minutes = max(time.time() - float(facts["since"]), 0) / 60
        who = f"process {int(facts['pid'])} on {facts['host']}, for {minutes:.1f} minutes now"
    except (OSError, ValueError, TypeError, KeyError):
        who = "another process"
    return BusyError(f"{what} is being written by {who}; wait for its end, or name another `out`")
