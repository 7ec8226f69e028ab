"""Several methods and several budgets in one request."""

from __future__ import annotations

from typing import Any

from rlskit.attacks import ATTACKS, PreparedAttack, prepare


def prepare_all(
    methods: str, *, pixel_range: str = "0:1", engine: str = "rlskit", **options: Any
) -> list[PreparedAttack]:
    """Prepare every method with every budget; an option goes to the methods that take it.

    Args:
        methods: Names separated by commas.
        pixel_range: As for `prepare`.
        engine: As for `prepare`.
        **options: As for `prepare`; `eps` may be several budgets separated by commas.

    Raises:
        RequestError: As `prepare`; also when no method takes an option that is given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    budgets = str(given.pop("eps")).split(",") if "eps" in given else [None]
    names = [name.strip() for name in methods.split(",")]
    known = [name for name in names if name in ATTACKS]
    taken = {option for name in known for option in ATTACKS[name].defaults}
    prepared = []
    for name in names:
        own = ATTACKS[name].defaults if name in ATTACKS else {}
        # What nobody takes stays in the request, so that `prepare` names it.
        chosen = {k: v for k, v in given.items() if k in own or k not in taken}
        takes_eps = "eps" in own or "eps" not in taken
        for eps in budgets if takes_eps else [None]:
            request = {**chosen, "eps": eps}
            prepared.append(prepare(name, pixel_range=pixel_range, engine=engine, **request))
    return prepared
