"""The attacks, and how a request for one is checked and put into the pixel scale [0, 1].

`ATTACKS` lists them; `prepare` turns a name and options as a user states them into an attack that
is ready to run and checks what it returns. They load torch when they are asked for, so that the
command line can read `rlskit.attacks.options` without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlskit.lazy import names_of

if TYPE_CHECKING:
    from rlskit.attacks.catalogue import ATTACKS, Attack
    from rlskit.attacks.prepared import ENGINES, PreparedAttack, prepare

__all__ = ["ATTACKS", "ENGINES", "Attack", "PreparedAttack", "prepare"]

__getattr__ = names_of(
    __name__,
    {
        "ATTACKS": "rlskit.attacks.catalogue",
        "Attack": "rlskit.attacks.catalogue",
        "ENGINES": "rlskit.attacks.prepared",
        "PreparedAttack": "rlskit.attacks.prepared",
        "prepare": "rlskit.attacks.prepared",
    },
)
