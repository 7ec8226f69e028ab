"""Reports: results as tables and plots, for people."""

from rlskit.report.abstention_table import abstention_table
from rlskit.report.audit_table import audit_table
from rlskit.report.grid import Grid, markdown_grid, rich_grid
from rlskit.report.plots import check_plot, plot_transfer
from rlskit.report.tables import (
    accuracy_table,
    broken_by,
    comparison_table,
    diversity_table,
    paired_table,
    transfer_table,
)

__all__ = [
    "Grid",
    "abstention_table",
    "accuracy_table",
    "audit_table",
    "broken_by",
    "check_plot",
    "comparison_table",
    "diversity_table",
    "markdown_grid",
    "paired_table",
    "plot_transfer",
    "rich_grid",
    "transfer_table",
]
