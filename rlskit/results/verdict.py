"""Verdicts: whether a number is what a gate asks for, or is not, or cannot be told yet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlskit.documents import Count, Number, Whole
from rlskit.errors import RequestError
from rlskit.results.comparison import Comparison, Difference, Pair
from rlskit.results.result import Measure, Result
from rlskit.results.words import attack_label, draws_of, percents
from rlskit.stats import Accuracy

PASS, FAIL, UNDECIDED, UNTRUSTED = "pass", "fail", "undecided", "untrusted"

ASKS = ("at-least", "at-most", "max-drop")
"""What a gate may ask: of the number itself, or of its change against a baseline's."""

SIGNED = ("kappa", "q_statistic")
"""Numbers in [-1, 1], which are no shares."""

BOUND, POINT = "bound", "point"
"""What decides: the one-sided 95 % bound, or the value as it was measured."""


_GUESSED = ("NO BETTER THAN GUESSING:", "TOO FEW IMAGES:", "CLEAN ACCURACY UNKNOWN:")
_ASTRAY = ("MISLEADING GRADIENTS:", "STOOD STILL:")
_FAILED = ("FAILED SEARCHES:",)
"""How warnings begin of what no gate may decide on."""


def undecidable(result: Result) -> str:
    """Return the warning that forbids a gate to decide on a result; empty where there is none.

    An attack on one draw of several gives back what that draw errs on: no search failed then. And
    where another attack is beside it, the worst case of both stands.
    """
    alone = not (result.attack and result.attack.of)
    named = _GUESSED + (_ASTRAY if alone else ())
    named += _FAILED if alone and draws_of(result) == 1 else ()
    return next((warning for warning in result.warnings if warning.startswith(named)), "")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one thing that a gate asks for.

    Accuracies, their differences and shares of images lie in [0, 1], or [-1, 1]; so does kappa.

    Attributes:
        row: The model's name in the recipe.
        column: The measurement's.
        show: The number that is looked at, such as `robust`.
        asked: One of `ASKS`.
        threshold: What it asks for.
        by: `bound` or `point`.
        measured: The number, or under `max-drop` its change against the baseline's; None where
            there is none.
        bounds: Its one-sided 95 % bounds, from below and from above; of a diversity measure the
            ends of its 95 % interval.
        images: How many it was measured on.
        verdict: `pass`, `fail`, `undecided` (so many images do not tell; a gate is not met then,
            either) or `untrusted` (the number means nothing).
        more_images: About how many more would tell, if they are like these.
        reason: Why it is untrusted, was not measured, or was not measured on more images.
    """

    row: str
    column: str
    show: str
    asked: str
    threshold: Number
    by: str
    verdict: str
    measured: Number | None = None
    bounds: tuple[Number, Number] | None = None
    images: Count | None = None
    more_images: Whole | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """What the gate is called: `ROW/COLUMN ASK`."""
        return f"{self.row}/{self.column} {self.asked}"

    @property
    def sentence(self) -> str:
        """One line for people: what was measured and asked, on how many images, the verdict."""
        if self.measured is None or self.images is None:
            (threshold,) = self._said(self.threshold)
            return f"{self.name} {threshold}: {self.verdict}: {self.reason}"
        upper, drop = self.asked == "at-most", self.asked == "max-drop"
        told = self.by == BOUND and self.bounds is not None
        decides = self.bounds[upper] if told and self.bounds else self.measured
        least = -self.threshold if drop else self.threshold
        measured, said, threshold = self._said(self.measured, decides, least)
        bound = f" (with 95 % confidence at {'most' if upper else 'least'} {said})" if told else ""
        what = "changed by" if drop else "is"
        asked = (
            f"asked {self.asked.replace('-', ' ')} {threshold.lstrip('-') if drop else threshold}"
        )
        more = ""
        if self.verdict == UNDECIDED:
            count = "more" if self.more_images is None else f"about {self.more_images:,} more"
            more = f" ({self.reason})" if self.reason else ""
            more += f", it takes {count} images to tell"
        return (
            f"{self.row}/{self.column}: {self.show} {what} {measured}{bound}, "
            f"{asked}, {self.images:,} images: {self.verdict}{more}"
        )

    def _said(self, *values: float) -> list[str]:
        if self.show in SIGNED:
            return [f"{value:.3f}" for value in values]
        return [
            f"{one} {'points' if self.asked == 'max-drop' else '%'}" for one in percents(*values)
        ]


def judged(
    value: Accuracy | Measure | Difference, *, images: int, asked: str, threshold: float, by: str,
    **place: str,
) -> Verdict:  # fmt: skip
    """Return what becomes of something that is asked of a number.

    Args:
        value: The number; under `max-drop` the difference, new minus baseline.
        images: How many it was measured on.
        asked: One of `ASKS`.
        threshold: What it asks for; the largest drop is at least 0.
        by: `bound` decides on the one-sided 95 % bound, `point` on the value.
        **place: `row`, `column` and `show`.
    """
    mean, low, high = _numbers(value)
    common = {"images": images, "asked": asked, "threshold": threshold, "by": by, **place}
    if mean is None:
        why = "the number is undefined on these images"
        return Verdict(**common, verdict=UNTRUSTED, reason=why)  # type: ignore[arg-type]
    sign = -1 if asked == "at-most" else 1
    least = -threshold if asked in ("at-most", "max-drop") else threshold
    surely, perhaps = sorted((sign * low, sign * high))
    if by == POINT:
        surely = perhaps = sign * mean
    verdict, more = UNDECIDED, None
    if surely >= least:
        verdict = PASS
    elif perhaps < least:
        verdict = FAIL
    else:
        more = _more(sign * mean, surely, perhaps, least, images)
    bounds = (low, high) if math.isfinite(low) and math.isfinite(high) else None
    return Verdict(**common, verdict=verdict, measured=mean, bounds=bounds, more_images=more)  # type: ignore[arg-type]


def dropped(pair: Pair, show: str, *, most: float, by: str, row: str, column: str) -> Verdict:
    """Say whether an accuracy of a pair's second result surely lost no more than `most`.

    Raises:
        RequestError: The two were measured under different protocols, one of them `known`; or on
            images in random order.
    """
    require_one_protocol(pair, f"{row}/{column}")
    if pair.b.data.order is not None:
        raise RequestError(
            f"{row}/{column} was measured on images in random order, of which one takes more until "
            "one stops, and the bound of a drop does not allow for that; leave `shuffle` out"
        )
    return judged(
        pair.differences[show], images=int(pair.b.data.n), asked="max-drop", threshold=most, by=by,
        row=row, column=column, show=show,
    )  # fmt: skip


def require_one_protocol(pair: Pair, name: str) -> None:
    """Require two results whose difference is the models'.

    Raises:
        RequestError: One was measured under `known`, the other was not.
    """
    if pair.a.protocol != pair.b.protocol:
        raise RequestError(
            f"{name} was measured under {pair.b.protocol}, and what it is held against under "
            f"{pair.a.protocol}: that difference is the protocols', no drop; run the same one"
        )


def drops(found: Comparison, most: float) -> tuple[Verdict, ...]:
    """Say of every accuracy of a comparison whether the second run surely lost no more than `most`.

    Raises:
        RequestError: `most` is no share below 1; or the second run lacks an attack of the first, or
            was measured under another protocol.
    """
    if not 0 <= most < 1:
        raise RequestError(f"`max_drop` is a share in [0, 1), such as 0.02, not {most:g}")
    if found.unanswered:
        raise RequestError(
            f"B was not attacked with {', '.join(found.unanswered)}, so nothing tells what it lost "
            "there; run it with the attacks of A"
        )
    return tuple(
        dropped(
            pair, show, most=most, by=BOUND, row="B",
            column=attack_label(pair.b) if pair.b.attack else "clean",
        )
        for pair in found.pairs
        for show in pair.differences
    )  # fmt: skip


def _numbers(value: Accuracy | Measure | Difference) -> tuple[float | None, float, float]:
    """Return the number and its bounds."""
    if isinstance(value, Accuracy):
        return value.mean, value.lower_bound, value.upper_bound
    if isinstance(value, Difference):
        return value.difference, *value.bounds
    if value.ci95 is None:
        return value.mean, -math.inf, math.inf
    return value.mean, *value.ci95


def _more(mean: float, low: float, high: float, least: float, images: int) -> int | None:
    """Return how many more images bring the bound to the threshold, were they like these.

    A bound is so far from its number as one over the root of the images.
    """
    half, distance = (mean - low, mean - least) if mean >= least else (high - mean, least - mean)
    if distance <= 0 or not math.isfinite(half):
        return None
    return max(1, math.ceil(images * ((half / distance) ** 2 - 1)))
