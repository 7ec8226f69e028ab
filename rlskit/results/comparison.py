"""What a comparison of two runs found, as Python and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlskit.documents import OPTIONAL, Count, Number, Share, Whole, to_json
from rlskit.results.result import AttackFacts, CheckpointFacts, ImageFacts, ModelFacts, Result
from rlskit.results.words import protocol
from rlskit.stats import Accuracy

COMPARISON_SCHEMA = "rlskit.comparison/1"


KNOWN = "known"
"""The protocol under which the attacker sees the draws that answer."""


@dataclass(frozen=True)
class Fallen:
    """An image that the first run was right on, in more of its repeats than the second is.

    Attributes:
        index: Its place in the whole data set.
        label: Its class.
        answer: The wrong class that the second run answered, the most frequent over its repeats.
        path: Of an image from a folder, its path there.
    """

    index: Whole
    label: Whole
    answer: Whole
    path: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def sentence(self) -> str:
        """The image in a line for people."""
        path = f" ({self.path})" if self.path else ""
        return f"image {self.index}{path}: label {self.label}, answered {self.answer}"


@dataclass(frozen=True)
class Difference:
    """One accuracy of two runs on the same images; all shares lie in [0, 1].

    Attributes:
        a: The first run's.
        b: The second run's.
        difference: Mean of B minus mean of A, in [-1, 1].
        ci95: Paired-bootstrap 95 % interval of the difference: images are resampled, each with all
            repeats of both runs.
        bounds: Its one-sided 95 % bounds from below and from above, likewise, for gates; no
            narrower than the exact ones of images that all changed to one side.
        test: `mcnemar` with one repeat in both runs, else `sign-flip` on each image's means.
        only_a: Images that are right more often in A; with one repeat, right in A only.
        only_b: Images that are right more often in B.
        p_value: Two-sided, exact, of the test, in [0, 1].
        fallen: The images of `only_a`, which newly fall where A is the baseline.
    """

    a: Accuracy
    b: Accuracy
    difference: Number
    ci95: tuple[Number, Number]
    bounds: tuple[Number, Number]
    test: str
    only_a: Whole
    only_b: Whole
    p_value: Share
    fallen: tuple[Fallen, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two results that answer the same question, one of each run.

    Attributes:
        a: Of the first run.
        b: Of the second run.
        differences: `clean` and `robust`, as far as they were scored.
    """

    a: Result
    b: Result
    differences: dict[str, Difference]

    @property
    def hidden(self) -> str:
        """A sentence on what is robust and what is hidden; empty unless one is under `known`."""
        return hidden(self.a, self.b)


def hidden(a: Result, b: Result) -> str:
    """Return a sentence on what is robust and what is hidden; empty unless one is under `known`.

    The two are of one model, attacked alike on the same images.
    """
    if (a.protocol == KNOWN) == (b.protocol == KNOWN) or "robust" not in a.accuracy:
        return ""
    known, other = (a, b) if a.protocol == KNOWN else (b, a)
    left, robust = (100 * found.accuracy["robust"].mean for found in (other, known))
    if robust > left:  # the attack did worse where it saw more, so neither number is a bound
        return (
            f"{protocol(known)} leaves {robust:.1f} points, more than the {left:.1f} that "
            f"{protocol(other)} leaves: it tells nothing of what is hidden"
        )
    return (
        f"of the {left:.1f} points that {protocol(other)} leaves, {left - robust:.1f} "
        f"are hidden and {robust:.1f} robust"
    )


@dataclass(frozen=True)
class Comparison:
    """Two runs, image by image.

    Attributes:
        paths: The folders of the first run, A, and the second, B.
        pairs: At least one.
        left_out: The results without a partner, and why, for people.
        seed: The bootstrap's.
        resamples: Of the bootstrap.
        unanswered: The first run's attacks that the second was not attacked with.
    """

    paths: tuple[str, str]
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]
    seed: int
    resamples: int
    unanswered: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know about either run before using the numbers."""
        found = [f"A: {warning}" for pair in self.pairs for warning in pair.a.warnings]
        found += [f"B: {warning}" for pair in self.pairs for warning in pair.b.warnings]
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        first = self.pairs[0]
        return {
            "schema": COMPARISON_SCHEMA,
            **to_json(
                ComparisonDocument(
                    a=_side(self.paths[0], first.a),
                    b=_side(self.paths[1], first.b),
                    data=first.a.data,
                    protocol=first.a.protocol,
                    n_attacked=first.a.n_attacked,
                    per_example=first.a.per_example,
                    seed=self.seed,
                    resamples=self.resamples,
                    pairs=tuple(Compared(pair.a.attack, pair.differences) for pair in self.pairs),
                    left_out=self.left_out,
                    warnings=self.warnings,
                )
            ),
        }


@dataclass(frozen=True)
class Side:
    """What is the same for all results of a run, and may differ between the two."""

    path: str
    checkpoint: CheckpointFacts
    model: ModelFacts
    defense: str
    n_samples: Count
    repeats: Count
    seed: int


@dataclass(frozen=True)
class Compared:
    """One attack of both runs, None without one, and the accuracies under it."""

    attack: AttackFacts | None
    accuracy: Mapping[str, Difference]


@dataclass(frozen=True)
class ComparisonDocument:
    """A comparison in its JSON; the attributes are those of `Comparison` and of its results."""

    a: Side
    b: Side
    data: ImageFacts
    protocol: str
    n_attacked: Count | None
    per_example: bool
    seed: int
    resamples: Count
    pairs: tuple[Compared, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def _side(path: str, result: Result) -> Side:
    names = ("checkpoint", "model", "defense", "n_samples", "repeats", "seed")
    return Side(path, **{name: getattr(result, name) for name in names})
