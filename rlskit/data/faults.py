"""What can be wrong with data, said in one sentence."""

from __future__ import annotations

from rlskit.errors import RequestError


class MissingSplitError(RequestError):
    """The data are there, but without the split that was asked for."""
