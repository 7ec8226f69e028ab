"""Results: what was found, written and shown. Knows nothing of models."""

from rlskit.results.comparison import Comparison, Difference, Pair
from rlskit.results.finished import Finished, read_answers, read_run
from rlskit.results.gate import NOT_MET, gate_sentence, gated
from rlskit.results.journal import (
    ADVERSARIAL,
    PARTS,
    RESULTS,
    Journal,
    claim,
    clear,
    digest,
    free_folder,
    refuse_finished,
)
from rlskit.results.plots import check_plot, plot_transfer
from rlskit.results.reading import read_results
from rlskit.results.result import SCHEMA, Result, dump
from rlskit.results.table import (
    accuracy_table,
    broken_by,
    comparison_table,
    diversity_table,
    paired_table,
    transfer_table,
)

__all__ = [
    "ADVERSARIAL",
    "NOT_MET",
    "PARTS",
    "RESULTS",
    "SCHEMA",
    "Comparison",
    "Difference",
    "Finished",
    "Journal",
    "Pair",
    "Result",
    "accuracy_table",
    "broken_by",
    "check_plot",
    "claim",
    "clear",
    "comparison_table",
    "digest",
    "diversity_table",
    "dump",
    "free_folder",
    "gate_sentence",
    "gated",
    "paired_table",
    "plot_transfer",
    "read_answers",
    "read_results",
    "read_run",
    "refuse_finished",
    "transfer_table",
]
