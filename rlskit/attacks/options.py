"""How each option of an attack is read, and how it is put into the pixel scale [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlskit.arguments import argument
from rlskit.attacks.losses import LOSSES
from rlskit.attacks.targets import TARGETS
from rlskit.errors import RequestError
from rlskit.pixels import parse_budget, parse_number, range_width


def read(option: str, value: Any, pixel_range: str, norm: str = "linf") -> Any:
    """Return the value that a user states for an option, checked, in the scale it is stated in.

    Args:
        option: A key of `READERS`.
        value: A number, a string such as `8/255`, or one of the option's choices.
        pixel_range: The scale, a key of `rlskit.pixels.PIXEL_RANGES`.
        norm: Of a budget; only one in linf cannot be wider than the pixel range.

    Raises:
        RequestError: The option cannot have this value.
    """
    if option in BUDGETS and norm != "linf":
        return parse_number(value, argument(option))
    return READERS[option](value, argument(option), pixel_range)


def in_unit_range(stated: Mapping[str, Any], pixel_range: str) -> dict[str, Any]:
    """Return the options converted from the scale `pixel_range` to [0, 1].

    A distance d' is d = d' / width there, so lengths are divided by the width, and `c`, which
    weighs against a squared distance, by its square. The learning rate of EAD's Adam is a length
    in pixels; those of Adam in tanh space and of plain gradient steps do not change.
    """
    width = range_width(pixel_range)
    powers = POWERS_OF_PIXELS | ({"lr": 1} if stated.get("optimizer") == "adam" else {})
    return {
        option: value / width ** powers[option] if option in powers else value
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


def _count(least: int) -> Callable[[Any, str, str], int]:
    def parse(value: Any, name: str, _: str) -> int:
        try:
            count = int(str(value))
        except ValueError:
            raise RequestError(f"{name} {value!r} is not a whole number") from None
        if count < least:
            raise RequestError(f"{name} must be at least {least}, not {count}")
        return count

    return parse


def _target(value: Any, name: str, _: str) -> str | int:
    if value in TARGETS:
        return str(value)
    if not str(value).isdecimal():
        raise RequestError(f"{name} {value!r} is no class, {' or '.join(TARGETS)}")
    return int(value)


def _choice(*choices: Any) -> Callable[[Any, str, str], Any]:
    def parse(value: Any, name: str, _: str) -> Any:
        if value not in choices:
            known = " or ".join(map(str, choices))
            raise RequestError(f"{name} {value!r} is unknown; it is {known}")
        return value

    return parse


BUDGETS = ("eps", "step_size")
"""Options that are lengths in the attack's norm."""

READERS: dict[str, Callable[[Any, str, str], Any]] = {
    "eps": _budget,
    "step_size": _budget,
    "steps": _count(1),
    "random_start": _choice(True, False),
    "restarts": _count(1),
    "eot_samples": _count(1),
    "loss": _choice(*LOSSES),
    "momentum": _number,
    "target": _target,
    "norm": _choice("linf", "l2", "l1"),
    "rho": _share,
    "target_classes": _count(0),
    "queries": _count(1),
    "p_init": _share,
    "version": _choice("standard", "rand"),
    "distribution": _choice("uniform", "gaussian"),
    "theta": _signed_length,
    "gamma": _share,
    "smallest_patch": _count(1),
    "largest_patch": _count(1),
    "pixels": _count(1),
    "population": _count(1),
    "overshoot": _number,
    "top_classes": _count(2),
    "c": _positive,
    "beta": _number,
    "kappa": _number,
    "lr": _positive,
    "search_steps": _count(1),
    "decision_rule": _choice("en", "l1"),
    "optimizer": _choice("adam", "fista"),
}
"""Option -> what reads it: (value, its name in sentences, the pixel scale) -> its value there."""

POWERS_OF_PIXELS = {"eps": 1, "step_size": 1, "theta": 1, "beta": 1, "c": 2}
"""Options that are stated in pixels -> the power of pixels that they are."""
