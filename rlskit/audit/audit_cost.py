"""What an audit costs at most, in passes of single draws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from rlskit.attacks import PreparedAttack, prepare
from rlskit.attacks.passes import Passes, Setting
from rlskit.audit.binarization import IMAGES, INNER
from rlskit.audit.checks import EOT_DRAWS, GRADIENT_SETS, GRAY_LEVEL
from rlskit.audit.defended import SHOWN

_CALLS = 200
"""How often `SHOWN` images are asked about, at most, to see randomness and what mates do."""

_TRIES = 25
"""Of M12: what a problem's readout is asked besides, among it the noise that may solve it."""


def audit_passes(
    attack: PreparedAttack,
    setting: Setting,
    *,
    images: int,
    n_samples: int,
    draws: int | None,
    batch_size: int = 128,
    queries: int = 500,
    points: int = 100,
) -> Passes:
    """Return an upper bound of all passes of an audit: some checks ask of survivors only.

    Args:
        attack: What is audited.
        setting: The images, and the draws in the attacker's view.
        images: How many images.
        n_samples: N, the draws that answer.
        draws: How many different draws the model has; None for no limit.
        batch_size: Images that are attacked together; after each such batch all images are
            answered.
        queries: Of the square attack.
        points: Of the random search.
    """
    assert attack.eps is not None
    levels = math.ceil(math.log(1 / max(attack.eps, GRAY_LEVEL / 4), 4))
    alike = 1 + 2 + 2 + 2 * levels + 3  # itself, M3, M4, M10, M13
    runs = [
        *[attack] * alike,
        prepare("fgsm", eps=attack.eps),
        prepare("square", eps=attack.eps, steps=queries),
        _longer(attack, "steps", 10),
        _longer(attack, "restarts", 5),
    ]
    found = [_scaled(one.passes(setting), images * setting.draws) for one in runs]
    if draws != 1:  # M7
        seen = min(EOT_DRAWS, draws or EOT_DRAWS)
        found.append(_scaled(attack.passes(replace(setting, draws=seen)), images * seen))
    gradients = (GRADIENT_SETS + 2) * images * setting.draws  # M8, M9
    found.append(Passes(2 * gradients + points * images * setting.draws, gradients))
    alone = attack.passes(replace(setting, draws=1)).and_then(Passes(INNER + _TRIES, 0))
    found.append(_scaled(alone, IMAGES))
    answered = 2 + (len(runs) + 1) * math.ceil(images / batch_size)
    found.append(Passes(answered * images * n_samples + _CALLS * SHOWN * n_samples, 0))
    return Passes(sum(one.forwards for one in found), sum(one.backwards for one in found))


def _longer(attack: PreparedAttack, name: str, times: int) -> PreparedAttack:
    """Return an attack with more of a parameter; itself where it has none such."""
    old: Any = attack.params.get(name)
    return attack if old is None else replace(attack, params={**attack.params, name: times * old})


def _scaled(one: Passes, times: int) -> Passes:
    return Passes(times * one.forwards, times * one.backwards)
