"""How a command ends: exit codes that no model's code, closed pipe or full disk can turn green."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from rich.table import Table
from safetensors import SafetensorError

import rlskit
import rlskit.models
from rlskit.cli import run
from rlskit.cli.ending import fail, flushed
from rlskit.cli.show import note, print_table, say
from rlskit.errors import RequestError, RunError
from rlskit.text import printable

COMMAND = Path(sys.executable).with_name("rlskit")

QUITS = """
import sys
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(64, 10)

    def forward(self, x):
        if len(x) > 8:
            sys.exit(0)
        return self.l(x.flatten(1))
"""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a command in the middle of which an error is raised; return its exit code."""

    def ends(error: BaseException) -> int:
        def raises(pattern: str) -> None:
            raise error

        monkeypatch.setattr(rlskit.models, "list_models", raises)
        return run(["models"])

    return ends


def test_a_model_that_exits_is_no_gate_that_was_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quits.py").write_text(QUITS)
    convert = ["convert", "quits.py:Net", "--defense", "none", "--image-size", "8", "-q"]
    assert run(convert) == 0
    capsys.readouterr()
    assert run(["eval", "--limit", "40", "--fail-under", "0.99", "-q", "-o", "run"]) == 3
    message = capsys.readouterr().err
    assert "the model's own code failed answering" in message
    assert "(SystemExit: 0)" in message
    assert not Path("run/results.json").exists()


def test_a_model_that_exits_ends_no_script_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "quits.py").write_text(QUITS + "\n\ndef leaves():\n    sys.exit(0)\n")
    with pytest.raises(RunError, match=r"ends the process \(SystemExit: 0\)"):
        rlskit.convert(f"{tmp_path}/quits.py:leaves")
    model = rlskit.convert(f"{tmp_path}/quits.py:Net", defense="none", image_size=8)
    data = rlskit.load_data("digits", limit=40)
    for given in (model, model.banks[0]):  # also in memory
        with pytest.raises(RunError, match=r"failed answering \d+ images \(SystemExit: 0\)"):
            rlskit.evaluate(given, data)


class _OwnError(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [SystemExit(0), SystemExit(None), GeneratorExit(), EOFError(), typer.Exit(0), typer.Abort(),
     _OwnError("x")],
    ids=repr,
)  # fmt: skip
def test_whatever_ends_a_command_is_exit_3(
    failing: Callable[[BaseException], int],
    error: BaseException,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert failing(error) == 3
    message = capsys.readouterr().err
    assert f"ended the command ({type(error).__name__}" in message
    assert message.count("\n") == 1


def test_an_interruption_stays_one(failing: Callable[[BaseException], int]) -> None:
    assert failing(KeyboardInterrupt()) == 130


def test_a_signal_stays_one_whatever_a_library_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallows(pattern: str) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise AttributeError("module has no attribute") from None

    monkeypatch.setattr(rlskit.models, "list_models", swallows)
    assert run(["models"]) == 143
    assert "terminated; nothing is kept" in capsys.readouterr().err


IO_ERROR = 'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No" })'


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), "No space left"),
        (SafetensorError(IO_ERROR), "No space left"),
        (RuntimeError("unable to write to file: No space left on device (28)"), "No space left"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "Read-only"),
        (RuntimeError("[Errno 24] Too many open files: '/x'"), "Too many open files"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), "Is a directory (d)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone/x"), "No such file or directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_disk_is_no_bug(
    failing: Callable[[BaseException], int],
    error: Exception,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert failing(error) == 3
    message = capsys.readouterr().err
    assert said in message
    assert "bug" not in message


def test_a_request_is_not_to_blame_for_the_machine(
    failing: Callable[[BaseException], int],
) -> None:
    blamed = RequestError("x.safetensors cannot be read")
    blamed.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert failing(blamed) == 3
    assert failing(RequestError("x.safetensors cannot be read")) == 2
    assert failing(RuntimeError("the command ended with exit code: 5")) == 3


def test_a_reader_that_goes_away_is_no_unmet_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([COMMAND, "--help"], stdout=writer, stderr=subprocess.PIPE) as started:
        assert started.stderr is not None
        assert started.stderr.read() == b""
    assert started.returncode == 141
    with os.fdopen(writer, "w") as closed:  # Rich leaves /dev/null in its place
        monkeypatch.setattr(sys, "stdout", closed)
        assert run(["attacks"]) == 141
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        closed.write("a table")
        assert flushed(0) == 141


def test_what_cannot_be_written_at_the_end_is_exit_3() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert b"No space left" in done.stderr
    with Path("/dev/full").open("w") as full:
        wrong = subprocess.run([COMMAND, "nonsense"], stdout=subprocess.PIPE, stderr=full)
    assert wrong.returncode == 2


@pytest.mark.parametrize("option", ["--json", "--out", "-o", "--adversarial", "--data-dir"])
def test_an_option_is_no_file(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["eval", option, "-q"]) == 2
    assert "needs a file or folder before -q" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "m", "--json", "m"],
        ["attack", "m", "--per-image", "linked", "--data", "manifest:m"],
        ["audit", "other", "--json", "./m", "--surrogate", "m"],
        ["convert", "m:factory", "-o", "m"],
        ["convert", "resnet18", "--weights", "other", "--weights", "m", "-o", "m"],
        ["train", "other", "--data", "npz:m", "-o", "m"],
        ["run", "m", "--json", "m"],
        ["export", "m", "--bank", "0", "-o", "linked"],
        ["eval", "other", "--json", "m", "--per-image", "linked"],
    ],
)
def test_no_command_replaces_what_it_reads(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m").write_text("two hundred pages")
    Path("linked").symlink_to("m")
    assert run([*command, "--force"]) == 2
    said = capsys.readouterr().err
    assert "would replace" in said or "both name m" in said
    assert Path("m").read_text() == "two hundred pages"


def test_what_an_encoding_lacks_is_escaped() -> None:
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([COMMAND, "attacks"], env=narrow, capture_output=True)
    assert done.returncode == 0
    assert rb"\xe0" in done.stdout


NOISY = """
import atexit, os, subprocess, sys
from rlskit.cli import app

def noisy(arguments, own_defaults):
    atexit.register(print, "at its end")
    os.write(1, b"of C code\\n")
    subprocess.run(["echo", "of a subprocess"])
    print("for \\u00e0 machine")
    print("to the first stdout", file=sys.__stdout__, flush=True)
    return 0

app.run = noisy
app.main()
"""


def test_nothing_but_results_comes_to_stdout() -> None:
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", NOISY], env=narrow, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == "for \\xe0 machine\n"
    others = ("of C code", "of a subprocess", "to the first stdout", "at its end")
    assert done.stderr.splitlines() == list(others)


EVIL = "x\x1b[2J\x07\x9b1m\u202e\ud800y"


def test_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title=EVIL)
    table.add_row(EVIL)
    print_table(table)
    say(EVIL)
    note(EVIL)
    note(EVIL, loud=True)
    fail(f"{EVIL}\nrlskit: all is well", 2, debug=False)
    shown = "".join(capsys.readouterr())
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\ud800"} & set(shown)
    assert shown.count("x\\x1b[2J\\x07\\x9b1m\\u202e\\ud800y") == 4
    assert shown.count("x\\x1b[2J\\x9b1m\\u202e\\ud800y") == 2  # Rich drops bells
    assert "\nrlskit: all is well" not in shown
    assert printable("Größe 10³ – 図\n") == "Größe 10³ – 図\\n"


def test_tables_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a", "b", title="two\nlines")
    table.add_row("1\n2", "3")
    print_table(table)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [
        "┏━━━┳━━━┓", "┃ a ┃ b ┃", "┡━━━╇━━━┩", "│ 1 │ 3 │", "│ 2 │   │", "└───┴───┘"
    ]  # fmt: skip
