"""Runs of a recipe made by hand, for tests of what reports show of them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import made_results
from rlskit.data import load
from rlskit.data.adversarial_file import write_adversarial
from rlskit.documents import to_json
from rlskit.results.result import AttackFacts, ImageFacts, Measure, Result, TransferFacts
from rlskit.results.verdict import Verdict
from rlskit.stats import Spread, accuracy

EPS = 8 / 255


def share(right: int, n: int) -> Any:
    return accuracy([right / n], n)


def attack(eps: float, **fields: Any) -> AttackFacts:
    params = {"eps": eps, "steps": 10}
    return replace(made_results.PGD, params=params, stated=params, **fields)


def result(clean: int, robust: int, n: int, eps: float = EPS, **fields: Any) -> Result:
    """A result with so many of n images right."""
    both = {"clean": share(clean, n), "robust": share(robust, n)}
    about: dict[str, Any] = {"data": made_results.images(n), "attack": attack(eps)}
    return made_results.result(**{"accuracy": both, **about, **fields})


def eval_result(clean: int, n: int, **fields: Any) -> Result:
    none = {"attack": None, "n_attacked": None, "command": "eval", "protocol": "clean"}
    return made_results.result(
        **{**none, "accuracy": {"clean": share(clean, n)}, "data": made_results.images(n), **fields}
    )


def agreement(n: int = 40) -> Result:
    """What `diversity --transfer` found, of two draws."""
    transfer = TransferFacts(
        cosine=((1.0, 0.25), (0.25, 1.0)),
        transferability=((1.0, 0.125), (0.375, None)),
        images=8,
        zero_gradients=(0, 0),
        off_diagonal={
            "cosine": Spread(0.25, None),
            "transferability": Spread(0.25, None),
        },
        attack=attack(EPS),
    )
    kappa = {"kappa": Measure(mean=0.625, std=0.03125, ci95=(0.5, 0.75))}
    single = {"clean_gibbs": share(30, n)}
    return eval_result(
        0, n, command="diversity", accuracy=single, agreement=kappa, transfer=transfer
    )


def cell(column: str, found: Result | None, **fields: Any) -> dict[str, Any]:
    document = None if found is None else found.to_json()
    plain = {"label": column, "show": "robust", "value": None, "paper": None}
    return {"column": column, **plain, "result": document, **fields}


def recipe(rows: list[dict[str, Any]], gates: list[Verdict], **fields: Any) -> dict[str, Any]:
    about = {"title": "two models", "commands": ["rlskit attack a.safetensors --eps 8/255"]}
    return {
        "schema": "rlskit.recipe/1", **about, "rows": rows, "gates": to_json(gates), **fields,
    }  # fmt: skip


def write(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document))
    return folder


def attacked_images(
    folder: Path, npz: Path, n: int, shape: tuple[int, int, int], *, names: str = ""
) -> Result:
    """Write the folder of an attack on n random images, every third broken; return its result.

    Args:
        folder: Of the cell.
        npz: Where to put the images before the attack.
        n: How many.
        shape: (C, H, W).
        names: Of the images' files.
    """
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = np.arange(n) % 4
    np.savez(npz, x_test=pixels, y_test=labels)
    data = load(f"npz:{npz}")
    before = data.images(range(n))
    signs = torch.from_numpy(generator.choice([-1.0, 1.0], before.shape)).float()
    after = (before + EPS * signs).clamp(0, 1)
    broken = np.arange(n) % 3 == 0
    robust = np.where(broken, (labels + 1) % 4, labels)
    found = result(n, int((~broken).sum()), n)
    images = ImageFacts(name=data.name, split="test", n=n, sha256=data.sha256)
    found = replace(found, data=images, per_image="per_image.csv")
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found.to_json()))
    with (folder / "per_image.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["repeat", "index", "label", "clean", "robust", "l2", "linf", "path"])
        for i in range(n):
            distance = float((after[i] - before[i]).norm())
            row = [0, i, labels[i], labels[i], robust[i], distance, EPS, f"{names}{i}.png"]
            writer.writerow(row)
    about = {
        "checkpoint_sha256": "x", "classes": 4, "data": images, "attack": found.attack,
        "protocol": "multi", "n_attacked": 5, "seed": 0,
    }  # fmt: skip
    tensors = after, torch.from_numpy(labels), torch.arange(n)
    write_adversarial(folder / "adversarial.safetensors", *tensors, about)
    return found


def verdict(kind: str, **fields: Any) -> Verdict:
    """A verdict on `rls/pgd`: 60 % of 40 images, where 50 % were asked."""
    about: dict[str, Any] = {
        "row": "rls", "column": "pgd", "show": "robust", "asked": "at-least", "threshold": 0.5,
        "by": "bound", "measured": 0.6, "bounds": (0.46, 0.73), "images": 40,
    }  # fmt: skip
    if kind == "untrusted":
        about |= {"measured": None, "bounds": None, "images": None, "reason": "it stood still"}
    if kind == "undecided":
        about |= {"more_images": 25}
    return Verdict(**{**about, "verdict": kind, **fields})


def whole(folder: Path, *, names: str = "", label: str = "random layers") -> Path:
    """A run that has something for every section but the audit; return its folder.

    Its images are in `images.npz` beside it.
    """
    saved = attacked_images(
        folder / "rls" / "pgd", folder.parent / "images.npz", 12, (1, 6, 5), names=names
    )
    sweep = [result(36, right, 40, eps) for eps, right in ((2 / 255, 30), (EPS, 20))]
    adaptive = result(36, 8, 40, protocol="adaptive", n_attacked=10)
    broken = {"clean": 4, "bank 0": 20, "square": 8}
    assert adaptive.attack is not None
    facts: dict[str, Any] = {
        "method": "adaptive",
        "broken": broken,
        "params": {"norm": "linf", "eps": EPS},
    }
    adaptive = replace(adaptive, attack=replace(adaptive.attack, **facts))
    known = result(36, 4, 40, protocol="known", n_attacked=None)
    eot = result(36, 12, 40, protocol="eot")
    cells = [
        cell("pgd", saved, label="PGD"),
        cell("low", sweep[0]),
        cell("high", sweep[1], paper=51.5),
        cell("one", result(36, 24, 40, protocol="transfer", n_attacked=1)),
        cell("eot", eot),
        cell("known", known),
        cell("adaptive", adaptive),
        cell("clean", eval_result(36, 40), show="clean"),
        cell("clean1", eval_result(32, 40, n_samples=1), show="clean"),
        cell("kappa", agreement(), show="kappa"),
    ]
    rows = [
        {"name": "rls", "label": label, "cells": cells},
        {"name": "none", "label": "undefended", "cells": [cell("pgd", None)]},
    ]
    gates = [
        verdict("pass", column="high"),
        verdict("fail", asked="at-most", threshold=0.2),
        verdict("undecided"),
        verdict("untrusted", row="none"),
        verdict("fail", column="eot", asked="max-drop", threshold=0.02, measured=-0.05,
                bounds=(-0.08, -0.025)),
    ]  # fmt: skip
    return write(folder, recipe(rows, gates))
