"""How a command ends: with rlskit's own exit codes, whatever the code of a model does.

0 fine, 1 a gate was not met, 2 the request was wrong, 3 the run failed, 4 it ran but cannot be
trusted, 130 and 143 interrupted, 141 nobody reads what it prints any more.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from rlskit.cli.show import results_alone
from rlskit.cli.wording import worded
from rlskit.errors import RequestError, RlskitError, RunError, of_memory
from rlskit.text import printable

_WRITTEN = ("json_to", "per_image", "plot", "out")
_READ = ("data", "weights", "model", "name", "classes")
"""Options whose values are files to write, and texts that may name files to read."""

_LARGEST = 10**9  # of any count

CLOSED_PIPE = 128 + signal.SIGPIPE

_RUN = "what was finished is kept: the same command with --out the run's folder goes on"
_KEPT = {
    "attack": _RUN,
    "eval": _RUN,
    "audit": "finished checks are kept, if there is --json FILE: the same command goes on",
    "diversity": "what was finished is kept, if there is --out: the same command goes on",
    "train": "what was done is kept: the same command goes on",
    "run": "what was finished is kept: the same command goes on",
}
"""What a command that was ended leaves, unless a note of the interruption says more; the others
leave nothing."""

_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO)
"""Of the disk or of open files: libraries wrap them in their own, and no request is at fault."""

_WRAPPED = re.compile(r"(?:\[Errno |\(os error |Os \{ code: )(\d+)")


class _TerminatedError(BaseException):
    """SIGTERM came."""


class _InterruptedError(BaseException):
    """Ctrl-C came; Typer, which would make an exit code of that itself, lets this through."""


def guarded(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Return the command as the command line calls it.

    An option where a file's name should be is refused; and a model's code cannot end the command:
    its `sys.exit(0)` would look like a gate that was met.
    """

    @functools.wraps(command)
    def called(**given: Any) -> int | None:
        check_values(given)
        try:
            with results_alone():
                return command(**given)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error
        except _TerminatedError:
            raise
        except BaseException as error:
            ends = not isinstance(error, Exception) or isinstance(
                error, typer.Exit | typer.Abort | EOFError
            )
            if not ends or _closed_pipe(error):
                raise
            said = f"{type(error).__name__} {error}".strip()
            raise RunError(
                f"code that is not rlskit's, such as the model's, ended the command ({said}), so "
                "there is no result; --debug shows where"
            ) from error

    return called


def check_values(given: Mapping[str, Any]) -> None:
    """Require of the values of a command's parameters what holds for those of every command.

    No file is called like an option: in `--json -q` its name was forgotten. No count is beyond a
    thousand millions. No file that is read is written, nor one file twice.

    Raises:
        RequestError: One is.
    """
    _check_files(given)
    for name, value in given.items():
        text = str(value)
        option = _option(name)
        file = isinstance(value, Path) or name == "json_to"
        if file and text.startswith("-") and text != "-":
            raise RequestError(f"{option} needs a file or folder before {text}; none is called so")
        if isinstance(value, int) and name != "seed" and abs(value) > _LARGEST:
            raise RequestError(f"{option} {text[:12]}... is beyond reason")


def _check_files(given: Mapping[str, Any]) -> None:
    """Require that what is written to a file is neither read nor written to by another option."""
    written = {name: given[name] for name in _WRITTEN if given.get(name) not in (None, "-")}
    for name, file in written.items():
        for other, value in given.items():
            if other == name or (name, other) == ("out", "checkpoint"):  # `train` does so in place
                continue
            if other in written and os.path.realpath(file) == os.path.realpath(value):
                raise RequestError(f"{_option(name)} and {_option(other)} both name {file}")
            read = isinstance(value, Path | list) or (other in _READ and value)
            if read and Path(file).is_file() and os.path.realpath(file) in _files(value):
                raise RequestError(
                    f"{_option(name)} {file} would replace a file that this command reads; name "
                    "another"
                )


def _files(value: Any) -> set[str]:
    """Return the files that a value may name: `a`, `kind:a`, `a:factory` or `a,b`, or a list."""
    if isinstance(value, list):
        return {file for one in value for file in _files(one)}
    text = str(value)
    names = {text, text.partition(":")[2], text.rpartition(":")[0], *text.split(",")}
    return {os.path.realpath(name) for name in names if name}


def _option(name: str) -> str:
    return "--json" if name == "json_to" else "--" + name.replace("_", "-")


def ended(call: Callable[[], int | None], name: str, *, debug: bool) -> int:
    """Call what runs the command of a name; return its exit code. Errors are one sentence."""
    kept = _KEPT.get(name, "nothing is kept of it: run the same command again")
    came: list[int] = []

    def terminate(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(signum)
        raise _TerminatedError

    signal.signal(signal.SIGTERM, terminate)
    try:
        code = int(call() or 0)
        if code == 130:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code
    except RlskitError as error:
        return fail(str(error), _code(error), debug)
    except (KeyboardInterrupt, typer.Abort):
        return fail(f"interrupted; {kept}", 130, debug)
    except _InterruptedError as error:
        return fail(f"interrupted; {_noted(error) or kept}", 130, debug)
    except _TerminatedError as error:
        return fail(f"terminated; {_noted(error) or kept}", 143, debug)
    except (SystemExit, BrokenPipeError) as error:  # Typer and Rich make an exit of a closed pipe
        if _closed_pipe(error):
            return CLOSED_PIPE
        return fail(f"something ended the command ({error!r})", 3, debug)
    except Exception as error:
        if came:  # a library made something else of it, as numpy does while it is loaded
            return fail(f"terminated; {kept}", 143, debug)
        return fail(*_unexpected(error, kept), debug)


def apart_from_its_number(stdout: Any) -> Any:
    """Return a stream to where stdout leads, and let what is written to its number reach stderr.

    A model's subprocesses and C code write to the file of number 1, whatever `sys.stdout` is. What
    an encoding lacks is escaped, as on stderr.
    """
    if not isinstance(stdout, io.TextIOWrapper):
        return stdout
    stdout.reconfigure(errors="backslashreplace")
    try:
        result = os.dup(stdout.fileno())
        os.dup2(sys.stderr.fileno(), stdout.fileno())
    except (OSError, ValueError, AttributeError):  # there is no stderr
        return stdout
    return os.fdopen(result, "w", encoding=stdout.encoding, errors="backslashreplace")


def flushed(code: int) -> int:
    """Write out what was printed, which may fail late; return the exit code after that."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError) as error:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # it has no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or exit tries again
            if isinstance(error, OSError) and not code:
                closed = _closed_pipe(error)
                code = CLOSED_PIPE if closed else fail(*_unexpected(error, ""), debug=False)
    return code


def fail(message: str, code: int, debug: bool) -> int:
    """Say on stderr why a command failed; return its exit code."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or not there
        if debug:
            traceback.print_exc()
        sys.stderr.write(f"rlskit: {printable(' '.join(worded(message).split()))}\n")
    return code


def _noted(error: BaseException) -> str:
    """Return what was noted on an interruption on its way here."""
    return " ".join(note for one in _chain(error) for note in getattr(one, "__notes__", ()))


def _code(error: RlskitError) -> int:
    """Return an error's exit code; a request is not to blame for the machine it met."""
    blamed = error.exit_code == RequestError.exit_code and _number(error) in _OF_THE_MACHINE
    return RunError.exit_code if blamed else error.exit_code


def _unexpected(error: Exception, kept: str) -> tuple[str, int]:
    """Map what libraries raise to a sentence and an exit code."""
    message = " ".join(str(error).split())
    if hasattr(error, "format_message"):  # Typer's own usage errors
        return error.format_message(), 2
    if isinstance(error, RecursionError):
        return "a file, or the model, nests more deeply than can be followed", 3
    if of_memory(error):
        return "out of memory; a smaller --batch-size needs less", 3
    number = _number(error)
    if isinstance(error, OSError) or number in _OF_THE_MACHINE:
        what = os.strerror(number) if number else message
        where = getattr(error, "filename", None) or "while reading or writing"
        return f"{what} ({where})" + (kept and f"; {kept}"), 3
    return f"{type(error).__name__}: {message} (a bug; --debug shows where)", 3


def _number(error: BaseException) -> int | None:
    """Return the operating system's number of an error, or of one that was wrapped in it."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno:
            return one.errno
        found = _WRAPPED.search(str(one))
        if found:
            return int(found[1])
        for number in _OF_THE_MACHINE:
            if os.strerror(number) in str(one):
                return number
    return None


def _closed_pipe(error: BaseException) -> bool:
    """Whether an error is, or was made of, a write to a pipe that nobody reads any more."""
    return any(isinstance(one, OSError) and one.errno == errno.EPIPE for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
