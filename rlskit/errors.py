"""The errors that rlskit raises on purpose.

    RlskitError
    ├── RequestError     exit 2   the request was wrong: an option, a file, the data
    ├── RunError         exit 3   the run failed: memory, disk, a non-finite loss
    ├── UntrustedError   exit 4   it ran, but the result would not mean what it says
    └── UnmergedError    exit 0   a shard did its part, and there is no result before all are merged

The message is one sentence that says what was wrong, where, and what to do about it; the command
line prints it on stderr and ends with the error's exit code.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class RlskitError(Exception):
    """Base of every error that rlskit raises on purpose."""

    exit_code = 3


class RequestError(RlskitError, ValueError):
    """The request was wrong: a bad option, or an unreadable or mismatching file or data set."""

    exit_code = 2


class RunError(RlskitError, RuntimeError):
    """The run failed: out of memory, disk full, a non-finite loss."""

    exit_code = 3


class UntrustedError(RlskitError, RuntimeError):
    """It ran, but the result cannot be trusted: the preflight or a budget check failed."""

    exit_code = 4


class UnmergedError(RlskitError):
    """A shard did its part of a run; there is no result until all shards are merged."""

    exit_code = 0


def reason(error: BaseException) -> str:
    """Return the first sentence of another library's error, to stand in brackets in ours."""
    sentence = str(error).strip().partition("\n")[0].partition(". ")[0]
    return sentence.rstrip(".:") or type(error).__name__


def of_memory(error: BaseException) -> bool:
    """Whether it says that memory is full."""
    named = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return named or isinstance(error, MemoryError)


@contextmanager
def own_code(images: int) -> Iterator[None]:
    """Make one sentence of what the code of a network raises; rlskit's own errors stay as they are.

    A `sys.exit(0)` in it would end a script of the user's, and look like a gate that was met.

    Args:
        images: How many it is to answer.

    Raises:
        RunError: It raised something else than that memory is full.
    """
    try:
        yield
    except RlskitError:
        raise
    except (Exception, SystemExit) as error:
        if of_memory(error):
            raise
        raise RunError(
            f"the model's own code failed answering {images} images ({type(error).__name__}: "
            f"{reason(error)})"
        ) from error
