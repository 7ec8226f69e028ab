"""A gate: the least accuracy that a result must show, decided on its lower bound."""

from __future__ import annotations

from dataclasses import replace

from rlskit.results.result import Gate, Result
from rlskit.results.words import attack_label, percents, seen

MET, NOT_MET = "met", "not met"


def gated(result: Result, threshold: float) -> Result:
    """Return the result with the gate's threshold, the bound it was held against, and the verdict.

    Args:
        result: Of `attack` or `eval`.
        threshold: Share in [0, 1] that the lower bound of the accuracy must not be under.
    """
    bound = result.headline.lower_bound
    verdict = MET if bound >= threshold else NOT_MET  # NaN is not met
    return replace(result, gate=Gate(threshold=threshold, bound=bound, verdict=verdict))


def gate_sentence(result: Result) -> str:
    """Return what a gate found, for people."""
    assert result.gate is not None
    bound, threshold = percents(result.gate.bound, result.gate.threshold)
    what = attack_label(result) if result.attack else result.command
    said = "under" if result.gate.verdict == NOT_MET else "not under"
    return (
        f"gate {result.gate.verdict}: {what} ({seen(result)}) accuracy is at least "
        f"{bound} % with 95 % confidence, {said} {threshold} %"
    )
