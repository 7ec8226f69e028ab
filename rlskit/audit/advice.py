"""What to do about a failed check: only what the attack takes, and is not told already."""

from __future__ import annotations

from rlskit.attacks import ATTACKS
from rlskit.audit.case import Case


def advice(case: Case) -> dict[str, str]:
    """Return the words that the sentences of `rlskit.audit.checks` leave open."""
    takes = ATTACKS[case.attack.method].defaults
    effort = "--steps or --restarts" if "restarts" in takes else "--steps"
    more = "more --n-attacked"
    draws = more if case.protocol == "eot" else f"--protocol eot with {more}"
    return {
        "step_size": " or another --step-size" if "step_size" in takes else "",
        "effort": effort,
        "draws": draws,
        "loss": "give --loss margin, " if "loss" in takes and case.attack.loss != "margin" else "",
        "other_loss": "with --loss" if "loss" in takes else "as by pgd --loss, apgd-ce or apgd-dlr",
        "eot": "" if case.protocol == "eot" else "use --protocol eot; ",
    }
