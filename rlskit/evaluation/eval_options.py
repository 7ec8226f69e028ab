"""What all evaluations have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlskit.arguments import check_types
from rlskit.defenses import defense_of
from rlskit.documents import ASIDE, to_json
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.runtime.sharding import Shard
from rlskit.threat.view import MOST_DRAWS


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What all evaluations have in common.

    What is marked `ASIDE` decides no number: an unfinished run goes on where it changes.

    Attributes:
        n_samples: N, the defender's draws that answer together, or several N, scored in one pass
            on nested draws; None for the defense's own number.
        repeats: R, each with its own draws.
        batch_size: Images per block.
        num_workers: Threads that decode images.
        seed: All randomness derives from it.
        per_example: Whether each image has draws of its own, on both sides; then it is also
            attacked and scored by itself.
        expect_clean: The least clean accuracy in [0, 1] that is expected of the model; below it
            nothing goes on.
        gated: Whether a gate decides on the result, so that what cannot be told from guessing is
            refused, however few the images, and untrained models, too.
        shard: The part of the blocks that is done here, as `0/3`; None for all. There is no result
            then: what would return it raises `UnmergedError`, and `merge` makes it of all shards.
    """

    n_samples: int | Sequence[int] | None = None
    repeats: int = 1
    batch_size: int = 128
    num_workers: int = field(default=0, metadata=ASIDE)
    seed: int = 0
    per_example: bool = False
    expect_clean: float | None = field(default=None, metadata=ASIDE)
    gated: bool = field(default=False, metadata=ASIDE)
    shard: str | None = field(default=None, metadata=ASIDE)

    def __post_init__(self) -> None:
        check_types(vars(self), EvalOptions)
        if self.n_samples is not None and (least := min(self._given(), default=0)) < 1:
            raise RequestError(f"`n_samples` must be at least 1, not {least}")
        repeats = ("`repeats`", self.repeats)
        for flag, value in (repeats, ("`batch_size`", self.batch_size)):
            if value < 1:
                raise RequestError(f"{flag} must be at least 1, not {value}")
        for flag, value in (("`n_samples`", max(self._given(), default=1)), repeats):
            if value > MOST_DRAWS:
                raise RequestError(f"{flag} {value} is beyond reason; it is {MOST_DRAWS} at most")
        check_expected(self.expect_clean)
        _ = self.part  # which refuses what it cannot be

    @property
    def part(self) -> Shard | None:
        """The shard.

        Raises:
            RequestError: It is none.
        """
        return None if self.shard is None else Shard.read(self.shard)

    def takes(self, repeat: int, block: int, blocks: int) -> bool:
        """Whether a block is done here, which is one of so many in a repeat."""
        return self.part is None or self.part.takes(repeat * blocks + block)

    def counts(self, model: BankedModel) -> tuple[int, ...]:
        """Return the Ns to score, ascending."""
        return self._given() or (defense_of(model).samples(model),)

    def request(self, model: BankedModel) -> dict[str, Any]:
        """Return everything here that decides the numbers of a model, as JSON values."""
        found: dict[str, Any] = to_json(dataclasses.replace(self, n_samples=self.counts(model)))
        return found

    def _given(self) -> tuple[int, ...]:
        if self.n_samples is None:
            return ()
        several = (self.n_samples,) if isinstance(self.n_samples, int) else self.n_samples
        return tuple(sorted(set(several)))


def check_expected(expect_clean: float | None) -> None:
    """Require an `--expect-clean` that is a share.

    Raises:
        RequestError: It is not.
    """
    if expect_clean is not None and not 0 <= expect_clean <= 1:
        raise RequestError(
            f"`expect_clean` is a share in [0, 1], such as 0.90, not {expect_clean:g}"
        )


def counts_of(text: str | None) -> tuple[int, ...] | None:
    """Read one N or several, as in `10` or `1,5,10`; None stays None.

    Raises:
        RequestError: They are no numbers.
    """
    if text is None:
        return None
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise RequestError(
            f"`n_samples` {text!r} is not a number of draws such as 10 or 1,5,10"
        ) from None


OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(EvalOptions))
