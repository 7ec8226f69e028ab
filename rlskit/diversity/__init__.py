"""Diversity: how far a model's draws are right and wrong together, and fall to the same attacks."""

from rlskit.diversity.between_draws import measure_diversity
from rlskit.diversity.transfer import measure_transfer

__all__ = ["measure_diversity", "measure_transfer"]
