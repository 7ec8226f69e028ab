"""A recipe may come from anyone: the code that it names runs only where the user agreed to it.

What was introduced on this machine before is asked for again: its digest is of one file, and
beside a recipe from elsewhere other files may lie that it imports.
"""

from __future__ import annotations

from rlskit.errors import RequestError
from rlskit.models.architecture import names_code
from rlskit.recipes.recipe import Recipe

_NETWORKS = ("name", "model")
"""The options that name a network: of `convert`, and of the commands that read a checkpoint."""


def require_trust(recipe: Recipe, trust: bool) -> None:
    """Require that the user trusts the recipe's code, or named it in `--set`.

    Raises:
        RequestError: The recipe names code, and neither holds.
    """
    for stage in recipe.stages:
        for option in _NETWORKS:
            spec = stage.options.get(option)
            if trust or not isinstance(spec, str) or spec in recipe.said or not names_code(spec):
                continue
            own = [f"{stage.command}.{option}={spec}"]
            raise RequestError(
                f"{recipe.path}: stage {stage.name} would run code, {spec}; read it, then add "
                f"`trust=True`, or name it yourself with `sets={own}`"
            )
