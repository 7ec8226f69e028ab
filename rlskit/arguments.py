"""What a caller may give by name, and how our sentences name it.

An argument stands in backquotes as Python spells it, `n_samples`; so does what to write there,
`norm='l2'` or `rlskit.attack(save_adversarial=True)`. The command line turns both into its own
words (`rlskit.cli.wording`).
"""

from __future__ import annotations


def argument(name: str) -> str:
    """Return how a sentence names an argument, or the option of a recipe, `step-size`."""
    return f"`{name.replace('-', '_')}`"
