"""What Hugging Face's Hub reads of a model: `model-index` in its card, and `.eval_results/`.

https://github.com/huggingface/hub-docs/blob/main/modelcard.md and
https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from rlskit.report.carded import Card, Metric
from rlskit.report.honesty import said_budget
from rlskit.report.job_summary import SIGNS, escaped, table
from rlskit.results.words import figures

MARK = "# Written by `rlskit card`."
"""The first line of a file in `.eval_results/`, by which it is known again."""


def model_card(card: Card, benchmark: str | None) -> str:
    """Return the Markdown section, with `model-index` as its front matter.

    Args:
        card: What may be published.
        benchmark: The data set on the Hub that the images are of; None where they are of none.
    """
    index = [{"name": card.name, "results": [_entry(one, benchmark) for one in card.metrics]}]
    front = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True)
    lines = [[escaped(one.name), escaped(one.data), *figures(one.value)] for one in card.metrics]
    heads = ["measured", "data", "%", "95 % interval", "images"]
    parts = [f"## Robustness of {escaped(card.name)}", _READ, table(heads, lines, 2)]
    if card.gates:
        asked = [[SIGNS[one.verdict], escaped(one.sentence)] for one, _ in card.gates]
        parts += ["### What was asked of it", table(["verdict", "gate"], asked)]
    if card.warnings:
        listed = "\n".join(f"- {escaped(one)}" for one in card.warnings)
        parts += ["### Before you use the numbers", listed]
    parts.append(_measured(card))
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


_READ = (
    "An accuracy under attack is an upper bound: a better attack may leave less. Robust accuracy "
    "is what the adaptive protocol leaves; all else says by which attack it was measured, and what "
    "that attack saw."
)


def _measured(card: Card) -> str:
    """Return which file was measured, with what."""
    versions = ", ".join(f"{name} {one}" for name, one in card.result.versions.items())
    file = (
        "a model in memory" if card.file is None else f"`{card.file}`, sha256 `{card.file_sha256}`"
    )
    return f"Measured of {file}, on {card.result.device}: {escaped(versions) or 'rlskit'}."


def eval_results(card: Card, benchmark: str) -> dict[str, str]:
    """Return file name -> YAML, one for each number.

    The task says what the number is, as `transfer-linf-4-255`, so that none stands on a leaderboard
    among numbers of another kind; what is doubtful is left out. Values are in percent.

    Args:
        card: What may be published.
        benchmark: The data set on the Hub.
    """
    found: dict[str, str] = {}
    for one in (one for one in card.metrics if not one.doubtful):
        task, n = _task(one), 1
        while f"{task}.yaml" in found:
            n += 1
            task = f"{_task(one)}-no{n}"
        low, high = (100 * end for end in one.interval)
        entry = {
            "dataset": {"id": benchmark, "task_id": task},
            "value": round(100 * one.value.mean, 2),
            "notes": f"{one.name}; 95 % interval {low:.1f} to {high:.1f}",
        }
        found[f"{task}.yaml"] = f"{MARK}\n{yaml.safe_dump([entry], sort_keys=False)}"
    return found


def _task(metric: Metric) -> str:
    """Return what kind of number a metric is, as a name."""
    facts = metric.facts
    parts = [metric.type.removesuffix("_accuracy") if metric.type != "accuracy" else "clean"]
    if "attack" in facts:
        parts += [facts["attack"]] * (facts["attack"] != "adaptive")
        parts += (
            [facts["norm"]] if facts["eps"] is None else [facts["norm"], said_budget(facts["eps"])]
        )
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-")


def _entry(metric: Metric, benchmark: str | None) -> dict[str, Any]:
    """Return a result of `model-index`."""
    return {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {
            "type": benchmark or metric.data, "name": metric.data, "split": metric.split,
        },
        "metrics": [
            {
                "type": metric.type,
                "value": round(metric.value.mean, 6),
                "name": metric.name,
                "args": dict(metric.facts),
            }
        ],
    }  # fmt: skip
