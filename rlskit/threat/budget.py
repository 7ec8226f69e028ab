"""What an attack was allowed to change, as its result says."""

from __future__ import annotations

from rlskit.results.result import AttackFacts


def budget_of(attack: AttackFacts) -> tuple[str, float] | None:
    """Return norm and size, in [0, 1], of what an attack may change; None without a budget."""
    from rlskit.attacks import ATTACKS

    eps, norm = attack.params.get("eps"), attack.params.get("norm")
    if not isinstance(eps, int | float) or isinstance(eps, bool):
        return None
    known = ATTACKS.get(attack.method)
    return str(norm or (known.norms[0] if known else "eps")), float(eps)
