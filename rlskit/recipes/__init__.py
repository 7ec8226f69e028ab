"""Recipes: a TOML file whose stages are rlskit's own commands (`rlskit run`, docs/recipes.md)."""

from rlskit.recipes.baseline import export_baseline
from rlskit.recipes.cells import grid, to_json
from rlskit.recipes.cost import Cost, Estimate, estimate, estimate_of, foreseen, foreseen_run
from rlskit.recipes.drafting import JOBS, LIMITS, Start, affordable, draft, job
from rlskit.recipes.noted import StageError, is_finished
from rlskit.recipes.recipe import COMMANDS, Column, Recipe, Row, load
from rlskit.recipes.running import (
    MARKER,
    Outcome,
    check_stages,
    command_line,
    default_folder,
    run,
    select,
)
from rlskit.recipes.shipped import ABOUT, found, shipped, title
from rlskit.recipes.stages import Stage, option_text
from rlskit.recipes.trust import require_trust

__all__ = [
    "ABOUT",
    "COMMANDS",
    "JOBS",
    "LIMITS",
    "MARKER",
    "Column",
    "Cost",
    "Estimate",
    "Outcome",
    "Recipe",
    "Row",
    "Stage",
    "StageError",
    "Start",
    "affordable",
    "check_stages",
    "command_line",
    "default_folder",
    "draft",
    "estimate",
    "estimate_of",
    "export_baseline",
    "foreseen",
    "foreseen_run",
    "found",
    "grid",
    "is_finished",
    "job",
    "load",
    "option_text",
    "require_trust",
    "run",
    "select",
    "shipped",
    "title",
    "to_json",
]
