"""The options of the attacks: one row each, from which the command line is built.

An attack takes the options that its function has parameters for, and their defaults are those of
its signature. Nothing here loads torch, so that `--help` does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlskit.arguments import argument
from rlskit.errors import RequestError
from rlskit.pixels import parse_budget, parse_number, range_width


@dataclass(frozen=True)
class Reader:
    """What reads an option's value.

    Attributes:
        kind: What the command line makes of its text first.
        parse: (value, the option's name, the pixel scale) -> the value, in that scale.
    """

    kind: type
    parse: Callable[[Any, str, str], Any]


@dataclass(frozen=True)
class Option:
    """An option of one attack or more.

    Attributes:
        reader: What reads it.
        group: The heading it stands under in `rlskit attack --help`.
        help: What it is, for people.
        power: Of pixels that it is: 1 for a length, 2 for what weighs against a squared one.
        short: At most so much of it makes a run short, as the preflight's.
    """

    reader: Reader
    group: str
    help: str
    power: int = 0
    short: int | None = None


def read(option: str, value: Any, pixel_range: str, norm: str = "linf") -> Any:
    """Return the value that a user states for an option, checked, in the scale it is stated in.

    Args:
        option: A key of `OPTIONS`.
        value: A number, a string such as `8/255`, or one of the option's choices.
        pixel_range: The scale, a key of `rlskit.pixels.PIXEL_RANGES`.
        norm: Of a budget; only one in linf cannot be wider than the pixel range.

    Raises:
        RequestError: The option cannot have this value.
    """
    reader = OPTIONS[option].reader
    if reader is BUDGET and norm != "linf":
        return parse_number(value, argument(option))
    return reader.parse(value, argument(option), pixel_range)


def in_unit_range(stated: Mapping[str, Any], pixel_range: str) -> dict[str, Any]:
    """Return the options converted from the scale `pixel_range` to [0, 1].

    A distance d' is d = d' / width there, so lengths are divided by the width, and `c`, which
    weighs against a squared distance, by its square. The learning rate of EAD's Adam is a length
    in pixels; those of Adam in tanh space and of plain gradient steps do not change.
    """
    width = range_width(pixel_range)
    powers = {option: OPTIONS[option].power for option in stated}
    if stated.get("optimizer") == "adam":
        powers["lr"] = 1
    return {
        option: value / width ** powers[option] if powers[option] else value
        for option, value in stated.items()
    }


def _budget(value: Any, name: str, pixel_range: str) -> float:
    return parse_budget(value, pixel_range, name) * range_width(pixel_range)


def _number(value: Any, name: str, _: str) -> float:
    return parse_number(value, name)


def _positive(value: Any, name: str, _: str) -> float:
    number = parse_number(value, name)
    if number == 0:
        raise RequestError(f"{name} must be above 0")
    return number


def _share(value: Any, name: str, _: str) -> float:
    number = parse_number(value, name)
    if not 0 < number <= 1:
        raise RequestError(f"{name} {value} must be above 0 and at most 1")
    return number


def _signed_length(value: Any, name: str, pixel_range: str) -> float:
    text = str(value)
    negative = text.startswith("-")
    length = _budget(text.removeprefix("-"), name, pixel_range)
    if length == 0:
        raise RequestError(f"{name} must not be 0")
    return -length if negative else length


def _count(least: int) -> Reader:
    def parse(value: Any, name: str, _: str) -> int:
        try:
            count = int(str(value))
        except ValueError:
            raise RequestError(f"{name} {value!r} is not a whole number") from None
        if count < least:
            raise RequestError(f"{name} must be at least {least}, not {count}")
        return count

    return Reader(int, parse)


def _choice(*choices: Any, kind: type = str) -> Reader:
    def parse(value: Any, name: str, _: str) -> Any:
        return _one_of(choices, value, name)

    return Reader(kind, parse)


def _one_of(choices: tuple[Any, ...], value: Any, name: str) -> Any:
    if value not in choices:
        known = " or ".join(map(str, choices))
        raise RequestError(f"{name} {value!r} is unknown; it is {known}")
    return value


def _loss(value: Any, name: str, _: str) -> Any:
    from rlskit.attacks.losses import LOSSES  # which needs torch

    return _one_of((*LOSSES,), value, name)


def _target(value: Any, name: str, _: str) -> str | int:
    from rlskit.attacks.targets import TARGETS  # which needs torch

    if value in TARGETS:
        return str(value)
    if not str(value).isdecimal():
        raise RequestError(f"{name} {value!r} is no class, {' or '.join(TARGETS)}")
    return int(value)


BUDGET = Reader(str, _budget)
"""Of a length in the attack's norm."""

NUMBER = Reader(float, _number)
POSITIVE = Reader(float, _positive)
SHARE = Reader(float, _share)
COUNT = _count(1)

EFFORT = "Budget and steps"
ASCENT = "What is ascended"
CONSTANTS = "Of cw and ead"
BOUNDARIES = "Of deepfool, fab, fmn, arc and apgd"
SEARCHES = "Of square, autoattack and noise"
FEW_PIXELS = "Of jsma, onepixel and pixle"

OPTIONS: dict[str, Option] = {
    "eps": Option(BUDGET, EFFORT, "Budget: 0.02 or 8/255.", power=1),
    "norm": Option(
        _choice("linf", "l2", "l1", "l0"), EFFORT, "linf, l2, l1 or l0, where there is a choice."
    ),
    "steps": Option(COUNT, EFFORT, "Iterations; of square, queries.", short=2),
    "step_size": Option(BUDGET, EFFORT, "Of pgd and its kin; eps / 10.", power=1),
    "random_start": Option(_choice(True, False, kind=bool), EFFORT, "Of pgd."),
    "restarts": Option(COUNT, EFFORT, "Runs per image; the worst counts.", short=1),
    "loss": Option(
        Reader(str, _loss), ASCENT,
        "What is ascended: ce (does not saturate), margin, dlr; or ce-saturating, the textbook's, "
        "bit-equal to torchattacks.",
    ),
    "target": Option(
        Reader(str, _target), ASCENT, "Attack towards: random, least-likely, or a class."
    ),
    "momentum": Option(NUMBER, ASCENT, "Decay of past gradients in pgd."),
    "eot_samples": Option(COUNT, ASCENT, "Calls of the view whose gradients make one step."),
    "c": Option(POSITIVE, CONSTANTS, "Weight of the misclassification.", power=2),
    "kappa": Option(NUMBER, CONSTANTS, "Confidence: the lead that another class must have."),
    "beta": Option(NUMBER, CONSTANTS, "Weight of l1 in ead.", power=1),
    "lr": Option(POSITIVE, CONSTANTS, "Learning rate."),
    "search_steps": Option(
        COUNT, CONSTANTS, "Binary search for c; 1 keeps it fixed.", short=1
    ),
    "decision_rule": Option(_choice("en", "l1"), CONSTANTS, "Of ead: en or l1."),
    "optimizer": Option(_choice("adam", "fista"), CONSTANTS, "Of ead: adam or fista."),
    "overshoot": Option(
        NUMBER, BOUNDARIES, "Of deepfool and fmn: how far past a boundary they step."
    ),
    "top_classes": Option(_count(2), BOUNDARIES, "Of deepfool and arc: the label and its rivals."),
    "target_classes": Option(
        _count(0), BOUNDARIES, "Of apgd-t and fab: nearest classes aimed at, one by one."
    ),
    "rho": Option(SHARE, BOUNDARIES, "Of apgd: share of steps that must help."),
    "version": Option(
        _choice("standard", "rand"), SEARCHES, "Of autoattack: standard or rand."
    ),
    "queries": Option(
        COUNT, SEARCHES, "Of autoattack's Square, and of adaptive's.", short=2
    ),
    "p_init": Option(SHARE, SEARCHES, "Of square: first share of pixels."),
    "distribution": Option(
        _choice("uniform", "gaussian"), SEARCHES, "Of noise: uniform or gaussian."
    ),
    "theta": Option(
        Reader(str, _signed_length), FEW_PIXELS, "Of jsma: change of a value.", power=1
    ),
    "gamma": Option(SHARE, FEW_PIXELS, "Of jsma: share that may change."),
    "pixels": Option(COUNT, FEW_PIXELS, "Of onepixel: how many may change."),
    "population": Option(COUNT, FEW_PIXELS, "Of onepixel: candidates of a generation."),
    "smallest_patch": Option(COUNT, FEW_PIXELS, "Of pixle: least side of a patch."),
    "largest_patch": Option(COUNT, FEW_PIXELS, "Of pixle: greatest side of a patch."),
}  # fmt: skip
"""Name of an option -> its row."""
