"""The honest number of each model: the lowest that was measured, and how far the others are off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlskit.report.reported import Row
from rlskit.results import words
from rlskit.results.comparing import hidden_among
from rlskit.results.comparison import KNOWN
from rlskit.results.result import Result
from rlskit.results.words import attack_label
from rlskit.stats import Accuracy
from rlskit.threat.budget import budget_of

PROTOCOLS = ("transfer", "multi", "eot", "adaptive", KNOWN)
"""From the attacker who sees least to the one who sees most."""

ADAPTIVE = "adaptive"
"""The protocol whose number is the one to trust."""


@dataclass(frozen=True)
class Honest:
    """What is left of a model under one threat.

    Attributes:
        row: The model.
        threat: What the attacker may do, for people.
        numbers: All results under it, from the lowest accuracy up; those under `known` last.
        sentence: What to think of them.
    """

    row: str
    threat: str
    numbers: tuple[Result, ...]
    sentence: str

    @property
    def by_protocol(self) -> dict[str, Accuracy]:
        """The lowest accuracy under each protocol, but for images from a file: see `are_saved`."""
        return {
            one.protocol: one.accuracy["robust"]
            for one in reversed(self.numbers)
            if not words.are_saved(one)
        }

    @property
    def clean(self) -> Accuracy | None:
        """That of the same images before the attack, where it was scored beside it."""
        return next((r.accuracy["clean"] for r in self.numbers if "clean" in r.accuracy), None)

    @property
    def said(self) -> str:
        """The sentence, where there is more than one number to say something of."""
        return self.sentence if len(self.numbers) > 1 else ""

    @property
    def lowest(self) -> Accuracy:
        """The honest number, as far as it was measured."""
        return self.numbers[0].accuracy["robust"]


def honest_numbers(rows: Sequence[Row]) -> tuple[Honest, ...]:
    """Return the robust accuracies of every model, those of the same threat and images together."""
    found = []
    for row in rows:
        together: dict[tuple[str, str], list[Result]] = {}
        for result in row.results:
            if is_untargeted(result) and not _over_budgets(result):
                key = threat(result), result.data.adversarial_sha256 or result.data.sha256
                together.setdefault(key, []).append(result)
        for (name, _), results in together.items():
            results.sort(key=lambda one: (one.protocol == KNOWN, one.accuracy["robust"].mean))
            images = f"{results[0].data.n:,} images of {results[0].data.name}"
            said = " ".join(_sentences(results))
            found.append(Honest(row.label, f"{name}, {images}", tuple(results), said))
    return tuple(found)


def without_adaptive(found: Sequence[Honest]) -> str:
    """Return a sentence on the models and threats that the adaptive protocol was not tried on."""
    left = [one for one in found if ADAPTIVE not in one.by_protocol]
    if not left:
        return ""
    which = (
        ""
        if len(left) == len(found)
        else " for " + "; ".join(f"{one.row} ({one.threat})" for one in left)
    )
    return (
        f"The adaptive protocol, whose number is the one to trust, was not measured{which}: what "
        "is honestly left may be less."
    )


def _over_budgets(result: Result) -> bool:
    """Whether a result is the worst case over several budgets, which the largest one tells."""
    assert result.attack is not None
    budgets = {budget_of(attack) for attack in result.attack.of}
    return len(budgets) > 1 and None not in budgets


def is_untargeted(result: Result) -> bool:
    """Whether a result has a robust accuracy that any wrong answer lowers."""
    return (
        result.attack is not None
        and "robust" in result.accuracy
        and "target_reached" not in result.accuracy
    )


def threat(result: Result) -> str:
    """Return the budget with its norm, or the attack where nothing bounds it."""
    assert result.attack is not None
    budgets = {budget_of(attack) for attack in result.attack.of or (result.attack,)}
    (only,) = budgets if len(budgets) == 1 else (None,)
    return attack_label(result) if only is None else f"{only[0]} eps {said_budget(only[1])}"


def said_budget(eps: float) -> str:
    """Return a budget in [0, 1], as a multiple of 1/255 where it is one."""
    steps = round(255 * eps, 6)
    return f"{steps:g}/255" if 0 < steps == round(steps) < 255 else f"{eps:.4g}"


def _sentences(results: Sequence[Result]) -> Iterator[str]:
    """Yield what results of one threat say, from the lowest accuracy up, `known` last."""
    seen = [result for result in results if result.protocol != KNOWN]
    if seen:
        lowest, highest = seen[0], seen[-1]
        yield f"{_percent(lowest)} % is the lowest number that was measured ({_how(lowest)})."
        apart = 100 * (highest.accuracy["robust"].mean - lowest.accuracy["robust"].mean)
        if apart > 0:
            yield (
                f"{_how(highest)} left {_percent(highest)} %: it flatters the model by "
                f"{apart:.1f} points."
            )
    yield from (f"{said[:1].upper()}{said[1:]}." for said in hidden_among(results))


def _how(result: Result) -> str:
    assert result.attack is not None
    same = result.attack.method == result.protocol
    return words.seen(result) if same else f"{result.attack.method}, {words.seen(result)}"


def _percent(result: Result) -> str:
    return f"{100 * result.accuracy['robust'].mean:.1f}"
