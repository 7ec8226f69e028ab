"""A shard's part of a recipe's run: its blocks of every cell, and in turns what cannot be divided.

Shards share the run's folder, beside each other or one after the other, and say nothing to each
other but by the files in it. A model, an audit or a cell with a budget is done by the shard that
gets to it first; the others do something else meanwhile, and wait for a model only where nothing
else is left. A cell is merged by whichever shard ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlskit.errors import UntrustedError
from rlskit.recipes.cell_parts import begin_part, end_part, is_whole, part_line
from rlskit.recipes.noted import StageError, is_finished, state_file, unmade
from rlskit.recipes.recipe import Recipe
from rlskit.recipes.stages import AUDIT, Stage, typed
from rlskit.recipes.staging import Execute, run_stage
from rlskit.runtime.sharding import Shard
from rlskit.storage.locks import if_free, in_turn

_PAUSE = 1.0
"""Seconds between two looks at whether another shard is done with what is waited for."""


@dataclass(frozen=True)
class Part:
    """A shard's part.

    Attributes:
        recipe: What is run.
        folder: Of the run.
        shard: Which part.
        execute: Runs one command line.
        note: Told what happens, a line at a time.
        untrusted: The cells whose command said that they mean nothing.
    """

    recipe: Recipe
    folder: Path
    shard: Shard
    execute: Execute
    note: Callable[[str], None]
    untrusted: set[str] = field(default_factory=set)

    def finish(self, stages: Sequence[Stage]) -> None:
        """Do all that is this shard's of some stages, and wait for what that needs.

        Raises:
            RequestError: A stage needs another that is neither finished nor among them.
            StageError: A command failed.
        """
        left = sorted(stages, key=lambda stage: stage.command == AUDIT)  # when cells are finished
        waits = ""
        while left:
            later = [stage for stage in left if not self._advance(stage, left)]
            if len(later) == len(left):
                if waits != (waits := f"waiting for another shard to end {later[0].name}"):
                    self.note(waits)
                time.sleep(_PAUSE)
            left = later

    def _advance(self, stage: Stage, left: Sequence[Stage]) -> bool:
        """Do what can be done of a stage now; say whether nothing of it is left to this shard."""
        if stage.about in self.untrusted or is_finished(stage, self.folder):
            return True
        if stage.needs is not None and not is_finished(stage.needs, self.folder):
            if stage.needs.name not in [one.name for one in left]:
                raise unmade(stage)
            return False
        try:
            if stage.cell is not None and stage.budget is None:
                return self._share(stage)
            if stage.command == AUDIT and not self._is_measured(stage):
                return True  # whoever ends the cell audits it
            return self._take(stage)
        except StageError as error:
            if error.exit_code != UntrustedError.exit_code or not self.recipe.gated(stage):
                raise
            self.untrusted.add(stage.about)
            return True

    def _share(self, stage: Stage) -> bool:
        """Do this shard's blocks of a cell; the last one merges them."""
        with in_turn(self.folder):
            state = begin_part(stage, self.folder, self.shard)
        if not (state.get("finished") or self.shard.index in state["done"]):
            line = part_line(stage, self.folder, self.shard)
            self.note(f"{stage.name}: {typed(line)}")
            code = self.execute(line)
            with in_turn(self.folder):
                state = end_part(stage, self.folder, self.shard, code)
        if state.get("finished") or is_whole(state):
            self._take(stage)
        return True

    def _take(self, stage: Stage) -> bool:
        """Do a stage, or merge a cell, unless another shard is at it; say whether it is done."""
        file = state_file(stage, self.folder)
        file.parent.mkdir(exist_ok=True)
        with if_free(file) as ours:
            if ours and not is_finished(stage, self.folder):
                self.note(f"{stage.name}: {typed(stage.arguments(self.folder))}")
                run_stage(stage, self.folder, self.execute)
        return ours

    def _is_measured(self, audit: Stage) -> bool:
        """Whether the cell that an audit is about is finished."""
        return any(
            stage.name == audit.about and is_finished(stage, self.folder)
            for stage in self.recipe.stages
        )
