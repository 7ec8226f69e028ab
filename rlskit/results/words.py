"""How the facts of a result are said, wherever they are shown."""

from __future__ import annotations

from rlskit.results.result import ModelFacts, Result
from rlskit.stats import Accuracy

_OF_FRESH = ("transfer", "multi", "eot")
"""The protocols whose attacker is scored on other draws than he saw, where there are others."""


def figures(accuracy: Accuracy) -> tuple[str, str, str]:
    """Return accuracy in percent (with its spread over repeats), interval and denominator."""
    mean = f"{100 * accuracy.mean:.1f}"
    if accuracy.std is not None:
        mean += f" ± {100 * accuracy.std:.1f}"
    low, high = accuracy.ci95
    return mean, f"{100 * low:.1f} – {100 * high:.1f}", f"{accuracy.n:g}"


def protocol(result: Result) -> str:
    """Return the protocol with the number of attacked draws, as it stands beside every number."""
    own = " per image" if result.per_example else ""
    saved = " on saved images" if are_saved(result) else ""
    if result.n_attacked is None:
        return result.protocol + own + saved
    gibbs = " gibbs" if result.attack and result.attack.risk == "gibbs" else ""
    return f"{result.protocol} n={result.n_attacked}{gibbs}{own}{saved}"


def are_saved(result: Result) -> bool:
    """Whether the images were read from a file: what its attacker saw may be another model."""
    return result.data.adversarial_sha256 is not None


def draws_of(result: Result) -> int | None:
    """Return how many different draws the defense has; None where they are many, or not known."""
    return draws_known(result.defense, result.model)


def draws_known(defense: str, model: ModelFacts) -> int | None:
    """Return how many different draws a defense has; None where they are many, or not known."""
    return 1 if defense == "none" else model.draws


def seen(result: Result) -> str:
    """Return the protocol for people: `white-box` where the attacker saw every draw there is."""
    said = protocol(result)
    return said if are_saved(result) else called(said, result.n_attacked, draws_of(result))


def called(said: str, n_attacked: int | None, draws: int | None) -> str:
    """Return what a protocol is called for people.

    `transfer` says of a defense with one draw that another one answered, and none did.

    Args:
        said: It, as `protocol` says it.
        n_attacked: How many draws the attacker saw.
        draws: How many there are; None where they are many, or not known.
    """
    name, *rest = said.split(" ")
    if name not in _OF_FRESH or draws is None or (n_attacked or 0) < draws:
        return said
    return " ".join(["white-box", *rest])


def percents(*shares: float) -> list[str]:
    """Return shares in percent, with as many digits as tell them apart, and from 0 and 100 %."""
    wanted = len({round(share, 8) for share in (*shares, 0.0, 1.0)})
    for digits in range(1, 7):
        said = [f"{100 * share:.{digits}f}" for share in (*shares, 0.0, 1.0)]
        if len(set(said)) >= wanted:
            break
    return said[:-2]


def number(value: float | None) -> str:
    """Return three decimals, or a dash for what is undefined."""
    return "–" if value is None else f"{value:.3f}"


def heading(result: Result) -> str:
    """Return defense, architecture and data, the title of tables and plots."""
    data = f"{result.data.name} ({result.data.split})"
    return f"{result.defense} · {result.model.architecture} · {data}"


def attack_label(result: Result) -> str:
    """Return the method with its budget or constant, in the scale it was stated in."""
    assert result.attack is not None
    stated, scale = result.attack.stated, result.attack.pixel_range
    given = [(name, stated.get(name)) for name in ("eps", "c")]
    shown = [f"{name}={value:.4g}" for name, value in given if isinstance(value, int | float)]
    if scale != "0:1":
        shown.append(f"in {scale}")
    return " ".join([result.attack.method, *shown])
