"""Conversion: any network, with weights from elsewhere, -> a model with M banks of its weights."""

from rlskit.conversion.to_banks import convert

__all__ = ["convert"]
