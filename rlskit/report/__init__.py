"""Reports: results as tables, plots and pages, for people and for CI servers."""

from rlskit.report.abstention_table import abstention_table
from rlskit.report.annotations import github_annotations
from rlskit.report.audit_table import audit_table
from rlskit.report.gallery import Origin
from rlskit.report.grid import Grid, markdown_grid, rich_grid
from rlskit.report.plots import check_plot, plot_transfer
from rlskit.report.report_files import REPORTS, report_runs, write_reports
from rlskit.report.reported import Reported, read_reported
from rlskit.report.tables import (
    accuracy_table,
    broken_by,
    comparison_table,
    diversity_table,
    paired_table,
    transfer_table,
)
from rlskit.report.triage import fallen_lines

__all__ = [
    "REPORTS",
    "Grid",
    "Origin",
    "Reported",
    "abstention_table",
    "accuracy_table",
    "audit_table",
    "broken_by",
    "check_plot",
    "comparison_table",
    "diversity_table",
    "fallen_lines",
    "github_annotations",
    "markdown_grid",
    "paired_table",
    "plot_transfer",
    "read_reported",
    "report_runs",
    "rich_grid",
    "transfer_table",
    "write_reports",
]
