"""The library's sentences name arguments, the command line's flags."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlskit
from rlskit.attacks.options import OPTIONS
from rlskit.cli import run
from rlskit.cli.app import group
from rlskit.cli.show import note
from rlskit.cli.wording import worded
from rlskit.errors import RequestError
from rlskit.evaluation import EvalOptions
from rlskit.training import TrainOptions

PACKAGE = Path(rlskit.__file__).parent

COMMAND_LINES = {
    "recipes/cell_parts.py",
    "recipes/stages.py",
    "recipes/cost.py",
    "recipes/drafting.py",
}
"""They put commands together for the command line."""

PYTHON_ONLY = {"keep", "purpose"}
"""Arguments of functions that no command has."""


@pytest.mark.parametrize(
    ("library", "here"),
    [
        ("`n_attacked` must be at least 1, not 0", "--n-attacked must be at least 1, not 0"),
        ("`compiled`, `sets` and `architecture`", "--compile, --set and --model"),
        ("give `loss='margin'`", "give --loss margin"),
        ("`method='square', norm='l2'`", "--method square --norm l2"),
        ("`image_size=(64, 32)`", "--image-size 64,32"),
        ("`transform_input=False`, `small_images=True`", "--no-transform-input, --small-images"),
        ("`data='npz:my data.npz'`", "--data 'npz:my data.npz'"),
        ("`rlskit.evaluate` tells it", "`rlskit eval` tells it"),
        ("`rlskit.convert(name, weights='w.pt')`", "`rlskit convert NAME --weights w.pt`"),
        (
            "`rlskit.attack_adaptively(rlskit.load('my model'), eps=0.03)` gives",
            "`rlskit attack 'my model' --protocol adaptive --eps 0.03` gives",
        ),
    ],
)
def test_quoted_python_becomes_flags(library: str, here: str) -> None:
    assert worded(library) == here


@pytest.mark.parametrize(
    "text",
    ["`rlskit attacks` lists them", "`surrogate_` `x) + (y` `'\\q' is x`", "`small_images=False`",
     "n_attacked", "`n_attacked", f"`{'(' * 999}`", "`rlskit.wrap(module)`", "`\0`"],
)  # fmt: skip
def test_what_is_no_argument_stays(text: str) -> None:
    assert worded(text) == text


def test_errors_and_notes_are_worded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(pattern: str) -> None:
        raise RequestError("`batch_size` 0 must be at least 1")

    monkeypatch.setattr("rlskit.models.list_models", raises)
    assert run(["models"]) == 2
    note("OPTIMISTIC: more `n_attacked`", loud=True)
    said = "rlskit: --batch-size 0 must be at least 1\nOPTIMISTIC: more --n-attacked\n"
    assert capsys.readouterr().err == said


def sentences(file: Path) -> Iterator[str]:
    """Yield every text of a file that is no docstring; an argument stands for what is filled in."""
    inner: set[ast.AST] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)
        if isinstance(node, ast.JoinedStr):
            inner |= set(node.values)
            parts = [p.value if isinstance(p, ast.Constant) else "seed" for p in node.values]
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.value


LIBRARY = [file for file in sorted(PACKAGE.rglob("*.py")) if file.parent.name != "cli"]


def test_no_sentence_of_the_library_names_a_flag() -> None:
    found = {
        str(file.relative_to(PACKAGE))
        for file in LIBRARY
        for text in sentences(file)
        if re.search(r"(?<!\S)--[a-z]", re.sub(r"[(\"'`]", " ", text))
    }
    assert found == COMMAND_LINES


def test_every_quoted_name_is_an_argument() -> None:
    functions = [getattr(rlskit, name) for name in rlskit.__all__]
    called = [one for one in functions if not inspect.isclass(one)]
    known = {name for one in called for name in inspect.signature(one).parameters}
    known |= {option.name for one in group().commands.values() for option in one.params}
    known |= OPTIONS.keys()
    for options in (EvalOptions, TrainOptions):
        known |= {field.name for field in dataclasses.fields(options)}
    for file in LIBRARY:
        for quoted in re.findall(r"`([^`]+)`", " ".join(sentences(file))):
            if quoted.startswith(("rlskit ", "git ")):
                continue
            call = ast.parse(f"_({quoted})", mode="eval").body
            names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
            names |= {str(node.arg) for node in ast.walk(call) if isinstance(node, ast.keyword)}
            assert names <= known | {"_", "rlskit"}, (file, quoted)
            translated = worded(f"`{quoted}`") != f"`{quoted}`"
            assert translated or quoted in PYTHON_ONLY, (file, quoted)
