"""The table of what abstaining is worth."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from rlskit.results.result import Measure, Result
from rlskit.results.words import attack_label, figures, heading, number, seen

_CAPTION = (
    "right if all answered: without abstaining. unanswered: the draws disagree by more than the "
    "threshold. right of answered: accuracy on the others. useful: answered rightly as it is and, "
    "under attack, not turned into another answer. AUROC: how often the disagreement on a wrong "
    "answer is above that on a right answer to a clean image."
)


def abstention_table(result: Result) -> Table:
    """Return one row per kind of images; that under who evades is always the last."""
    found = result.abstention
    assert found is not None
    assert result.attack is not None
    assert result.attack.parts
    thresholds = ", ".join(map(number, dict.fromkeys(found.thresholds)))
    title = (
        f"{heading(result)}, {result.data.n} images\n"
        f"unanswered above {thresholds} nats of mutual information of the {result.n_samples} "
        f"draws: {100 * found.false_alarms:g} % of {found.held_out} other clean images"
    )
    evading, first = attack_label(result), result.attack.parts[0].method
    names = {
        "clean": "clean",
        "transfer": f"{evading.replace(result.attack.method, first)}\ntransfer n=1",
        "evading": f"{evading}\n{seen(result)}",
    }
    table = Table(title=escape(title), title_justify="left", caption=_CAPTION)
    table.add_column("images")
    for head in ("right if all\nanswered %", "unanswered %", "right of\nanswered %", "useful %"):
        table.add_column(head, justify="right")
    table.add_column("AUROC", justify="right")
    for name, label in names.items():
        one = found.images[name]
        shares = (one.without, one.abstained, one.answered, one.useful)
        cells = ["–" if share is None else "\n".join(figures(share)[:2]) for share in shares]
        table.add_row(escape(label), *cells, _area(one.auroc), end_section=True)
    return table


def _area(auroc: Measure) -> str:
    if auroc.ci95 is None:
        return "–"
    spread = "" if auroc.std is None else f" ± {number(auroc.std)}"
    return f"{number(auroc.mean)}{spread}\n{number(auroc.ci95[0])} – {number(auroc.ci95[1])}"
