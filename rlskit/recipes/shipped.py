"""The recipes that rlskit brings: in the wheel, and at the root of its repository."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from rlskit.errors import RequestError
from rlskit.recipes.toml_file import read
from rlskit.text import nearest

ABOUT = {
    "paper": "the paper's tables with its own settings, for a GPU",
    "small": "the same for two CPU cores: within an hour each, but honest-cifar10 takes hours",
    "small/ci": "the same in minutes: everything runs, and the numbers say little",
    "refused": "random and ensemble defenses under attackers who know of them",
}
"""Folder -> what its recipes are, and how long one takes where that was measured."""


def shipped() -> dict[str, Path]:
    """Return the recipes by name, as `small/table3`, in the order of the folders."""
    root = _root()
    return {
        f"{folder}/{file.stem}": file
        for folder in ABOUT
        for file in sorted((root / folder).glob("*.toml"))
    }


def found(recipe: Path) -> Path:
    """Return a recipe's file: that path, or the shipped one of that name.

    Args:
        recipe: A path, or a name as `small/table3`, also spelled `recipes/small/table3.toml`.

    Raises:
        RequestError: There is neither.
    """
    if recipe.exists():
        return recipe
    known = shipped()
    name = recipe.with_suffix("").as_posix().removeprefix("recipes/")
    if name in known:
        return known[name]
    if recipe.suffix == ".toml":
        return recipe  # whose absence is told with all others' of files
    raise RequestError(
        f"there is no file {recipe}, and no recipe of rlskit's is called so (`rlskit recipes` "
        f"lists them); {nearest(name, known)}"
    )


def title(file: Path) -> str:
    """Return what a recipe's table is called."""
    return str(read(file).get("title", file.stem))


def _root() -> Path:
    packaged = Path(str(files("rlskit.recipes"))) / "files"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "recipes"
