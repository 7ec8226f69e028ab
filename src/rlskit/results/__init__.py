"""Results: what was found, written and shown. Knows nothing of models."""

from rlskit.results.journal import ADVERSARIAL, RESULTS, Journal, free_folder, refuse_finished
from rlskit.results.plots import check_plot, plot_transfer
from rlskit.results.result import SCHEMA, Result, dump
from rlskit.results.table import (
    accuracy_table,
    comparison_table,
    diversity_table,
    transfer_table,
)

__all__ = [
    "ADVERSARIAL",
    "RESULTS",
    "SCHEMA",
    "Journal",
    "Result",
    "accuracy_table",
    "check_plot",
    "comparison_table",
    "diversity_table",
    "dump",
    "free_folder",
    "plot_transfer",
    "refuse_finished",
    "transfer_table",
]
