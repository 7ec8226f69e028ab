"""Rich tables of results, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from rlskit.errors import RequestError
from rlskit.results.comparison import Comparison, Difference
from rlskit.results.result import Matrix, Result
from rlskit.results.words import attack_label, draws_of, figures, heading, number, protocol, seen
from rlskit.stats import Accuracy

_NAMES = {
    "clean": "clean",
    "clean_gibbs": "clean, one draw",
    "robust": "robust",
    "robust_gibbs": "robust, one draw",
    "robust_8bit": "robust, saved with 8 bits",
    "attack_success": "attack success on the correct",
    "target_reached": "target reached, other classes",
    "withstood": "still right, other classes",
}


_TESTS = (
    "mcnemar: exact, one decision per image. sign-flip: exact, on each image's mean over its "
    "repeats. Interval of B − A: paired bootstrap over images."
)


def accuracy_table(results: Sequence[Result]) -> Table:
    """Return one row per result and accuracy, with protocol, interval and denominator."""
    first = results[0]
    table = Table(title=escape(heading(first)), title_justify="left")
    if first.attack:
        table.add_column("attack")
    table.add_column("accuracy of")
    table.add_column("protocol")
    table.add_column("N", justify="right")
    table.add_column("%", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("images", justify="right")
    said: set[tuple[str, ...]] = set()
    for result in results:
        attack = [attack_label(result)] if first.attack else []
        for name, view, row in _rows(result):
            if view == "clean" and row in said:  # of several attacks the same, too
                continue
            said.add(row)
            table.add_row(*attack, name, view, *row[1:])
            attack = [""] if attack else []
        table.add_section()
    return table


def _rows(result: Result) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield name, protocol and figures of the accuracies; of one draw only where there are more."""
    alone = result.n_samples == 1 or draws_of(result) == 1
    for name, accuracy in result.accuracy.items():
        single = name.endswith("_gibbs")
        if single and alone and figures(accuracy) == figures(_of_mean(result, name)):
            continue
        view = "clean" if name.startswith("clean") else seen(result)
        n = 1 if single else result.n_samples
        yield _NAMES[name], view, (name, str(n), *figures(accuracy))


def _of_mean(result: Result, name: str) -> Accuracy:
    """Return the accuracy of the mean beside that of one draw."""
    return result.accuracy[name.removesuffix("_gibbs")]


def diversity_table(result: Result) -> Table:
    """Return the diversity measures with their spread over repeats."""
    assert result.agreement is not None
    title = f"{heading(result)} · {result.n_samples} draws, {result.repeats} repeats"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("measure")
    table.add_column("mean", justify="right")
    table.add_column("std over repeats", justify="right")
    table.add_column("95 % interval over images", justify="right")
    for name, value in result.agreement.items():
        low, high = value.ci95 or (None, None)
        span = "–" if low is None else f"{number(low)} – {number(high)}"
        table.add_row(name.replace("_", " "), number(value.mean), number(value.std), span)
    return table


def paired_table(comparison: Comparison) -> Table:
    """Return one row per pair of results and accuracy, with the difference, the test and its p."""
    first, (path_a, path_b) = comparison.pairs[0], comparison.paths
    data = f"{first.a.data.name} ({first.a.data.split}), {first.a.data.n} images"
    title = f"A: {_run(first.a, path_a)}\nB: {_run(first.b, path_b)}\non {data}"
    table = Table(title=escape(title), title_justify="left", caption=_TESTS)
    if first.a.attack:
        table.add_column("attack")
    table.add_column("accuracy of")
    table.add_column("protocol")
    for head in ("A %\n95 % interval", "B %\n95 % interval", "B − A, points\n95 % interval"):
        table.add_column(head, justify="right")
    table.add_column("test\nonly A : only B", justify="right")
    table.add_column("p", justify="right")
    for pair in comparison.pairs:
        attack = [attack_label(pair.a)] if first.a.attack else []
        for name, difference in pair.differences.items():
            views = dict.fromkeys(map(seen, (pair.a, pair.b)))
            view = "clean" if name == "clean" else "\n".join(views)
            table.add_row(*attack, _NAMES[name], view, *_compared(difference))
            attack = [""] if attack else []
        table.add_section()
    return table


def transfer_table(result: Result) -> Table:
    """Return the two matrices between draws, one below the other."""
    transfer = result.transfer
    assert transfer is not None
    title = f"{heading(result)} · {result.n_samples} draws, {result.repeats} repeats"
    table = Table.grid()
    table.title, table.title_justify = escape(title), "left"
    headlines = {
        "cosine": f"cosine of the loss gradients of draws i and j, {result.data.n} images",
        "transferability": f"transferability of {attack_label(result)} from draw i to draw j "
        f"({result.protocol}), {transfer.images} images right for all",
    }
    for name, headline in headlines.items():
        mean = transfer.off_diagonal[name]
        spread = "" if mean.std is None else f" ± {number(mean.std)}"
        table.add_row(headline)
        table.add_row(_matrix(getattr(transfer, name)))
        table.add_row(f"mean off the diagonal {number(mean.mean)}{spread}", end_section=True)
    return table


def comparison_table(rows: Mapping[str, Sequence[Result]], title: str) -> Table:
    """Return defenses side by side: clean, each attack with its protocol, and kappa.

    Args:
        rows: Name of a defense -> its results of `attack`, at least one, and, last, of `diversity`.
        title: The table's title.

    Raises:
        RequestError: The rows are not of the same attacks and protocols.
    """
    heads = [[_attack_head(result) for result in results[:-1]] for results in rows.values()]
    if any(head != heads[0] for head in heads):
        raise RequestError("a comparison needs the same attacks and protocols in every row")
    table = Table(title=escape(title), title_justify="left")
    table.add_column("defense")
    table.add_column("N", justify="right")
    table.add_column("clean %\n95 % interval", justify="right")
    for head in heads[0]:
        table.add_column(head, justify="right")
    table.add_column("kappa\nmean ± std", justify="right")
    for name, (*found, diversity) in rows.items():
        cells = [found[0].accuracy["clean"], *(result.accuracy["robust"] for result in found)]
        shown = ["\n".join(figures(cell)[:2]) for cell in cells]
        for i, result in enumerate(found, 1):  # the head says how the others were attacked
            if seen(result) != protocol(result):
                shown[i] += f"\n{seen(result)}"
        assert diversity.agreement is not None
        kappa = diversity.agreement["kappa"]
        spread = f"{number(kappa.mean)} ± {number(kappa.std)}"
        table.add_row(name, str(found[0].n_samples), *shown, spread, end_section=True)
    return table


def broken_by(result: Result) -> str:
    """Return a sentence on which part of the adaptive protocol broke how many images."""
    assert result.attack is not None
    broken, tried = dict(result.attack.broken or {}), result.data.n * result.repeats
    left = tried - sum(broken.values())
    clean = broken.pop("clean", 0)
    shown = ", ".join(f"{name} {count}" for name, count in broken.items())
    return f"broken by: {shown}; wrong as they are: {clean}; by none: {left} of {tried}"


def _matrix(rows: Matrix) -> Table:
    """Return a matrix with its rows and columns numbered."""
    table = Table()
    table.add_column("i \\ j", justify="right")
    for j in range(len(rows)):
        table.add_column(str(j), justify="right")
    for i, row in enumerate(rows):
        table.add_row(str(i), *map(number, row))
    return table


def _run(result: Result, path: str) -> str:
    """Return what a run is of, for the title of a comparison."""
    draws = f"N = {result.n_samples}, R = {result.repeats}"
    return f"{result.defense} · {result.model.architecture} · {draws} · {path}"


def _compared(difference: Difference) -> list[str]:
    """Return the cells of a comparison: both accuracies, the difference, the test and its p."""
    both = ["\n".join(figures(one)[:2]) for one in (difference.a, difference.b)]
    low, high = difference.ci95
    apart = f"{100 * difference.difference:+.1f}\n{100 * low:+.1f} – {100 * high:+.1f}"
    counts = f"{difference.test}\n{difference.only_a} : {difference.only_b}"
    p_value = "< 0.0001" if difference.p_value < 1e-4 else f"{difference.p_value:.2g}"
    return [*both, apart, counts, p_value]


def _attack_head(result: Result) -> str:
    return f"{attack_label(result)}\n{protocol(result)}"
