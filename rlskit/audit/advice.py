"""What to do about a failed check: only what the attack takes, and is not told already."""

from __future__ import annotations

from rlskit.attacks import ATTACKS
from rlskit.audit.case import Case


def advice(case: Case) -> dict[str, str]:
    """Return the words that the sentences of `rlskit.audit.checks` leave open."""
    takes = ATTACKS[case.attack.method].defaults
    has_loss = "loss" in takes
    effort = "`steps` or `restarts`" if "restarts" in takes else "`steps`"
    more = "more `n_attacked`"
    draws = more if case.protocol == "eot" else f"`protocol='eot'` with {more}"
    return {
        "step_size": " or another `step_size`" if "step_size" in takes else "",
        "effort": effort,
        "draws": draws,
        "loss": "give `loss='margin'`, " if has_loss and case.attack.loss != "margin" else "",
        "other_loss": "with `loss`" if has_loss else "as by pgd's `loss`, apgd-ce or apgd-dlr",
        "eot": "" if case.protocol == "eot" else "use `protocol='eot'`; ",
    }
