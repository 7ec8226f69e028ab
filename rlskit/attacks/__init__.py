"""The attacks, and how a request for one is checked and put into the pixel scale [0, 1].

`ATTACKS` lists them; `prepare` turns a name and options as a user states them into an attack that
is ready to run and checks what it returns.
"""

from __future__ import annotations

from rlskit.attacks.catalogue import ATTACKS, Attack
from rlskit.attacks.prepared import ENGINES, PreparedAttack, prepare

__all__ = ["ATTACKS", "ENGINES", "Attack", "PreparedAttack", "prepare"]
