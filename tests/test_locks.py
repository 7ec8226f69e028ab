"""Files and folders that several processes write in, some of which are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlskit.errors import RequestError, RunError
from rlskit.storage.files import replacing, write_text
from rlskit.storage.locks import LOCK, locked, only_writer, refuse_busy

HOLDER = """
import sys, time
from pathlib import Path
from rlskit.storage.files import replacing
from rlskit.storage.locks import only_writer

with only_writer(Path("run")), replacing(Path("run/file"), force=True):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = f"is being written by process {os.getpid()} on {socket.gethostname()}, for 0.0 minutes"
    with only_writer(folder, None, folder):
        (folder / "kept").touch()
        with pytest.raises(RunError, match=other), only_writer(tmp_path / "new", folder):
            pass
        assert not (tmp_path / "new").exists()  # which was made for nothing
        with pytest.raises(RunError, match=other):
            refuse_busy(folder)
    refuse_busy(folder)
    refuse_busy(tmp_path / "none")
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with only_writer(folder):
        pass
    with pytest.raises(RequestError, match="is not a folder"), only_writer(folder / "kept" / "x"):
        pass


def test_what_a_killed_writer_leaves_holds_nobody_up(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    folder = tmp_path / "run"
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(RunError, match=f"by process {holder.pid} on"):
            refuse_busy(folder)
        write_text(folder / "other", "text", force=False)  # sweeps nothing of the living
        assert len(list(folder.glob(".rlskit-*"))) == 1
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert (folder / LOCK).exists()
    refuse_busy(folder)
    with only_writer(folder):
        (folder / ".rlskit-notes").touch()  # nobody's temporary file
        write_text(folder / "other", "text", force=True)
        names = {path.name for path in folder.iterdir()}
    assert names == {".rlskit-notes", LOCK, "other"}


def test_the_lock_of_a_file_that_is_gone_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last holder removed it just after it was opened, and another writer made a new one."""
    others: list[int] = []

    def late(handle: int, *kind: int) -> bool:
        if not others:
            (tmp_path / LOCK).unlink()
            others.append(os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT))
            assert locked(others[0])
        return locked(handle, *kind)

    monkeypatch.setattr("rlskit.storage.locks.locked", late)
    with pytest.raises(RunError, match="written by another process"), only_writer(tmp_path):
        pass
    os.close(others[0])
    with only_writer(tmp_path):
        pass


def test_a_link_stays_one_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "link"
    for there in (False, True):
        link.unlink(missing_ok=True)
        link.symlink_to("store/file")
        write_text(link, f"text {there}", force=there)
        assert link.is_symlink()
        assert (tmp_path / "store" / "file").read_text() == f"text {there}"
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["file"]


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(RequestError, match="is a device or a pipe"):
            write_text(path, "text", force=True)
    assert Path("/dev/null").is_char_device()


def test_a_writer_does_not_sweep_its_own(tmp_path: Path) -> None:
    with replacing(tmp_path / "outer", force=False) as outer:
        write_text(tmp_path / "inner", "text", force=False)
        outer.write_text("outer")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "outer"]
