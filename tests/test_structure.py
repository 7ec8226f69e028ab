"""The package keeps its structure: imports go down the layers of docs/architecture.md only.

Every import counts: at the top of a file, inside a function, or for type checking. A new top-level
module must be placed in `LAYERS` before anything may import it.
"""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rlskit"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"cli"}),
    frozenset({"recipes"}),
    frozenset({"report", "merging"}),
    frozenset({"conversion", "training", "diversity", "audit"}),
    frozenset({"evaluation"}),
    frozenset({"threat"}),
    frozenset({"attacks", "defenses", "inputs", "results"}),
    frozenset({"models", "data"}),
    frozenset({"arguments", "pixels", "runtime", "seeds", "stats", "storage", "torchvision_ops"}),
    frozenset({"documents", "errors", "lazy", "progress", "text"}),
)
"""Top-level modules from the top down; one imports from the layers below its own, not beside it."""

BELOW_MODELS = frozenset().union(*LAYERS[-2:])
"""All that `results` may import: it reads results and knows nothing of models."""

EXEMPT = {"__init__.py", "__main__.py"}
"""Files at the top of the package that hand out names of any layer."""

HEAVY = {"torch", "timm", "torchvision", "sklearn", "torchattacks", "adv_lib", "matplotlib"}
"""What takes seconds to load, and must not be loaded before it is used."""


def top_name(path: Path, package: Path) -> str:
    """Return the top-level module that a file belongs to: models/bank.py -> models."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported_names(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the top-level module of each import from the package in a file.

    The package itself is yielded as `rlskit`; a dunder such as `__version__` is nobody's module.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path, package)
            names = [alias.name for alias in node.names if not alias.name.startswith("__")]
            modules = [f"rlskit.{name}" for name in names] if module == "rlskit" else [module]
        else:
            continue
        for module in modules:
            root, _, rest = module.partition(".")
            if root == "rlskit":
                yield node.lineno, rest.partition(".")[0] or "rlskit"


def absolute(node: ast.ImportFrom, path: Path, package: Path) -> str:
    """Return the absolute name of the module that `from module import ...` names in a file."""
    if not node.level:
        return node.module or ""
    parents = ["rlskit", *path.relative_to(package).parent.parts]
    base = parents[: len(parents) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def objection(importer: str, imported: str) -> str | None:
    """Say why one top-level module may not import another; None if it may."""
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    if (importer, imported) == ("cli", "rlskit"):
        return None  # the commands are users of the public names
    for name in (importer, imported):
        if name not in level:
            return f"{name} has no place in LAYERS"
    if importer == imported:
        return None
    if importer == "results" and imported not in BELOW_MODELS:
        return f"results knows nothing of {imported}"
    if level[imported] == level[importer]:
        return f"{importer} -> {imported} is a sibling"
    return None if level[imported] > level[importer] else f"{importer} -> {imported} goes up"


def violations(package: Path) -> list[str]:
    """Return `file:line: reason` for every import that breaks the layers."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.parent == package and path.name in EXEMPT:
            continue
        importer, where = top_name(path, package), path.relative_to(package)
        for line, imported in imported_names(path, package):
            reason = objection(importer, imported)
            if reason:
                found.append(f"{where}:{line}: {reason}")
    return found


def test_imports_go_down_only() -> None:
    assert violations(PACKAGE) == []


def test_every_module_has_a_place() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name not in EXEMPT]
    placed = frozenset().union(*LAYERS)
    assert {top_name(path, PACKAGE) for path in files} - placed == set()
    assert sum(map(len, LAYERS)) == len(placed), "a module stands in two layers"


def test_no_two_files_share_a_name() -> None:
    """But commands, which are named after what they call, and the catalogues."""
    names = Counter(
        path.stem
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "cli" and path.stem not in {"__init__", "catalogue"}
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_init_files_hand_out_names_only() -> None:
    for path in PACKAGE.rglob("*/__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        kinds = {type(node).__name__ for node in body}
        allowed = {"Expr", "ImportFrom", "Assign", "If"}  # docstring, names, __all__, TYPE_CHECKING
        assert kinds <= allowed, path


def test_the_page_on_architecture_names_every_file_in_the_order_of_the_layers() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    named = {row[1].strip(" `"): re.findall("`([a-z0-9_]+)`", row[3]) for row in rows}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert named == {room: sorted(modules(PACKAGE / room)) for room in rooms}
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    depths = [level[room] for room in named]
    assert depths == sorted(depths)
    beside = re.findall("`([a-z_]+)`", page.split("Beside the rooms")[1].split("`__init__")[0])
    assert modules(PACKAGE) <= set(beside)


def modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}


def test_every_file_that_the_page_on_architecture_names_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = re.findall(r"`((?:rlskit|tests|docs)/[\w/]+\.(?:py|json))`", page)
    assert len(files) > 5
    assert [file for file in files if "NAME" not in file and not (ROOT / file).is_file()] == []
    tables = re.findall(r"`([A-Z]+)`,\s+`(rlskit/[\w/]+\.py)`", page)
    assert {name for name, _ in tables} == {"ATTACKS", "OPTIONS", "DEFENSES", "KINDS", "CHECKS"}
    for table, file in tables:
        assert f"\n{table}: " in (ROOT / file).read_text(encoding="utf-8"), table


def test_recipes_is_no_package() -> None:
    done = subprocess.run([sys.executable, "-c", "import recipes"], cwd=ROOT, capture_output=True)
    assert b"the library is rlskit.recipes" in done.stderr


def test_no_file_is_a_drawer_for_anything() -> None:
    paths = [*PACKAGE.rglob("*"), *Path(__file__).parent.rglob("*")]
    assert [str(path) for path in paths if path.stem in {"utils", "helpers", "misc"}] == []


@pytest.mark.parametrize(
    ("file", "source", "reasons"),
    [
        ("evaluation/run.py", "from rlskit.attacks.pgd import pgd", []),
        ("evaluation/run.py", "from rlskit import __version__, seeds", []),
        ("evaluation/run.py", "from rlskit.results import journal", []),
        ("models/bank.py", "from .partition import partition", []),
        ("report/plots.py", "from rlskit.results.result import Result", []),
        ("stats.py", "import torch", []),
        ("pixels.py", "def f():\n    from rlskit.models import load", ["pixels -> models goes up"]),
        ("attacks/pgd.py", "from ..evaluation import run", ["attacks -> evaluation goes up"]),
        ("models/bank.py", "from rlskit import data", ["models -> data is a sibling"]),
        ("data/npz.py", "from .. import models", ["data -> models is a sibling"]),
        (
            "results/html.py",
            "import rlskit.models.checkpoint",
            ["results knows nothing of models"],
        ),
        ("results/html.py", "from rlskit.evaluation import x", ["results knows nothing of eval"]),
        ("stats.py", "from rlskit.results import journal", ["stats -> results goes up"]),
        ("shiny.py", "from rlskit.errors import RlskitError", ["shiny has no place"]),
        ("cli/attack.py", "from rlskit import evaluate", ["evaluate has no place"]),
        ("cli/attack.py", "import rlskit", []),
        ("training/loop.py", "import rlskit", ["rlskit has no place"]),
        ("__init__.py", "from rlskit.cli import main", []),
    ],
)
def test_the_check_itself(tmp_path: Path, file: str, source: str, reasons: list[str]) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    found = violations(tmp_path)
    assert len(found) == len(reasons)
    for line, reason in zip(found, reasons, strict=True):
        assert line.startswith(f"{file}:") and reason in line  # noqa: PT018


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (["-c", "import rlskit"], "__init__.py"),
        (["-c", "import rlskit.cli"], "cli/__init__.py"),
        (["-m", "rlskit", "--help"], "__main__.py"),
        (["-m", "rlskit", "attack", "--help"], "__main__.py"),
    ],
    ids=["import rlskit", "import rlskit.cli", "rlskit --help", "rlskit attack --help"],
)
def test_start_up_loads_nothing_heavy(arguments: list[str], needs: str) -> None:
    if not (PACKAGE / needs).is_file():
        pytest.skip(f"rlskit/{needs} is not written yet")
    command = [sys.executable, "-X", "importtime", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rlskit" in loaded  # so that the listing was understood
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()
