"""Plots of results, as files. matplotlib is loaded only where one is drawn."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlskit.errors import RequestError
from rlskit.results.result import Matrix, Result
from rlskit.results.words import attack_label, heading, number
from rlskit.storage.files import refuse_existing, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""Ending -> what a file must not hold, so that the same result gives the same bytes."""

_DPI = 150
_CELL = 0.5, 0.8  # inches, the least and the most: four characters must fit
_PANEL = 4.5  # inches that a matrix takes as long as its cells may have any size


def check_plot(path: Path, *, force: bool) -> None:
    """Require that a plot may be written, before the work that it is to show.

    Raises:
        RequestError: The ending is not one of `ENDINGS`, the file exists and `force` is not given,
            or its folder does not exist.
    """
    if path.suffix.lower() not in ENDINGS:
        raise RequestError(f"`plot` {path} must end in {', '.join(ENDINGS)}")
    refuse_existing(path, force)


def plot_transfer(result: Result, path: Path, *, force: bool = False) -> None:
    """Draw the two matrices between draws as heatmaps with their numbers.

    Args:
        result: One with `transfer`.
        path: The file, with one of `ENDINGS`.
        force: Replace an existing file.

    Raises:
        RequestError: As for `check_plot`.
    """
    import matplotlib

    check_plot(path, force=force)
    figure, ending = _transfer_figure(result), path.suffix.lower()
    with (
        replacing(path, force=force) as temporary,
        matplotlib.rc_context({"svg.hashsalt": "rlskit"}),
    ):
        figure.savefig(temporary, format=ending[1:], dpi=_DPI, metadata=ENDINGS[ending])


def _transfer_figure(result: Result) -> Figure:
    from matplotlib.figure import Figure  # and not pyplot, which keeps every figure

    transfer = result.transfer
    assert transfer is not None
    side = _side(result.n_samples)
    figure = Figure((2 * side + 3.2, side + 1.7), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    means = {name: number(value.mean) for name, value in transfer.off_diagonal.items()}
    _heatmap(figure, left, transfer.cosine, "PuOr", -1)
    left.set_title(
        f"cosine of the loss gradients\noff the diagonal {means['cosine']} · "
        f"{result.data.n} images",
        fontsize=10,
    )
    _heatmap(figure, right, transfer.transferability, "cividis", 0)
    right.set_title(
        f"transferability of {attack_label(result)}\noff the diagonal {means['transferability']} · "
        f"{transfer.images} images right for all",
        fontsize=10,
    )
    title = textwrap.fill(f"{heading(result)} · {result.protocol}", int(10 * figure.get_figwidth()))
    figure.suptitle(title, fontsize=11, weight="bold", parse_math=False)
    figure.supxlabel("is scored by draw j")
    figure.supylabel("draw i attacks")
    return figure


def _side(count: int) -> float:
    """Return the length of a matrix's side in inches."""
    least, most = _CELL
    return max(2.6, count * min(most, max(least, _PANEL / count)))


def _heatmap(figure: Figure, axes: Axes, matrix: Matrix, colours: str, lowest: float) -> None:
    """Draw a square matrix of numbers in [lowest, 1], on maps that colour-blind people can read."""
    import matplotlib

    rows = [[math.nan if one is None else one for one in row] for row in matrix]
    colour_map = matplotlib.colormaps[colours].with_extremes(bad="0.85")
    image = axes.imshow(rows, cmap=colour_map, vmin=lowest, vmax=1)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            red, green, blue, _ = colour_map((value - lowest) / (1 - lowest))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            shown = "–" if math.isnan(value) else f"{value:.2f}"
            colour = "white" if dark else "black"
            axes.text(j, i, shown, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(rows)))
    axes.set_yticks(range(len(rows)))
    axes.tick_params(length=0, labelleft=True)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)
