"""The library's sentences in the words of the command line.

The library names an argument in backquotes, as Python spells it, and so says what to write there:
`steps`, `norm='l2'`, `rlskit.attack(save_adversarial=True)`. Here that is --steps, --norm l2 and
`rlskit attack --save-adversarial`. What a result holds stays as the library says it.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import warnings

_QUOTED = re.compile(r"`([^`\n]{1,5000})`")

_COMMANDS = {
    "attack": "attack",
    "attack_adaptively": "attack --protocol adaptive",
    "convert": "convert",
    "evaluate": "eval",
    "list_models": "models",
}
"""What of rlskit's functions the library's sentences name -> their command."""

_OPERANDS = {"model": "CHECKPOINT", "name": "NAME"}
"""What stands on the command line without a flag."""

_OTHERWISE = {"architecture": "model"}
"""Arguments of the library's that are called otherwise here."""


def worded(text: str) -> str:
    """Return the text with its quoted arguments and calls as the command line has them."""
    return _QUOTED.sub(lambda found: _translated(found[1]) or found[0], text)


def _translated(code: str) -> str | None:
    """Return what quoted Python is on the command line; None where it is nothing there."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd literals
            node = ast.parse(f"_({code})", mode="eval").body
        match node:
            case ast.Call(args=[], keywords=[_, *_]):
                return _options(node)
            case ast.Call(args=[ast.Name(id=name)], keywords=[]):
                return flag_of(name)
            case ast.Call(args=[ast.Call(func=ast.Attribute(attr=name)) as call], keywords=[]):
                command, *rest = _COMMANDS[name].split()
                words = [command, *map(_word, call.args), *rest, _options(call)]
                return f"`rlskit {' '.join(filter(None, words))}`"
            case ast.Call(args=[ast.Attribute(attr=name)], keywords=[]):
                return f"`rlskit {_COMMANDS[name]}`"
    except (SyntaxError, ValueError, KeyError, RecursionError, MemoryError):
        pass
    return None


def _options(call: ast.Call) -> str:
    return " ".join(_option(str(given.arg), given.value) for given in call.keywords)


def _option(name: str, value: ast.expr) -> str:
    match value:
        case ast.Constant(value=bool(on)):
            return flag_of(name, on)
    return f"{flag_of(name)} {_word(value)}"


def _word(value: ast.expr) -> str:
    """Return a value as one word; of `rlskit.load(file)`, the file."""
    match value:
        case ast.Name(id=name):
            return _OPERANDS.get(name, name)
        case ast.Call(func=ast.Attribute(attr="load"), args=[file]):
            return _word(file)
    found = ast.literal_eval(value)
    several = isinstance(found, tuple | list)
    return shlex.quote(",".join(map(str, found)) if several else str(found))


def flag_of(name: str, on: bool = True) -> str:
    """Return the flag of an argument, or the one that says no to it; `KeyError` without one."""
    return _flags()[_OTHERWISE.get(name, name), on]


@functools.cache
def _flags() -> dict[tuple[str, bool], str]:
    """Return the flag of every option by its name in Python, and the one that says no to it."""
    from rlskit.cli.app import group

    found: dict[tuple[str, bool], str] = {}
    for command in group().commands.values():
        for option in command.params:
            for on, flags in ((True, option.opts), (False, option.secondary_opts)):
                for flag in flags:
                    if flag.startswith("--"):
                        found.setdefault((option.name, on), flag)
    return found
