"""Results: what was found, written and shown. Knows nothing of models."""

from rlskit.results.journal import ADVERSARIAL, RESULTS, Journal, free_folder, refuse_finished
from rlskit.results.result import SCHEMA, Result, dump
from rlskit.results.table import accuracy_table, comparison_table, diversity_table

__all__ = [
    "ADVERSARIAL",
    "RESULTS",
    "SCHEMA",
    "Journal",
    "Result",
    "accuracy_table",
    "comparison_table",
    "diversity_table",
    "dump",
    "free_folder",
    "refuse_finished",
]
