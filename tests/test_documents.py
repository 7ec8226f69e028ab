"""Results as documents: what is written is read back, older and newer ones too, as docs/ says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import schemas
from made_results import ACCURACY, PGD, result
from rlskit.documents import Value, from_json, to_json
from rlskit.errors import RequestError
from rlskit.results import Result, dump, read_results
from rlskit.results.result import (
    AttackFacts,
    Extent,
    Gate,
    ImageFacts,
    Measure,
    PartFacts,
    TransferFacts,
)
from rlskit.stats import Spread

PART = PartFacts(name="bank 0", method="pgd", params={"eps": 0.1, "steps": 5, "twin": None})
FULL = result(
    attack=replace(
        PGD, method="worst-case", params={"of": (PGD, replace(PGD, parts=(PART,), risk="mean"))}
    ),
    data=ImageFacts(
        name="folder:x", split="all", n=4, sha256="y", adversarial_sha256="z", skipped=2
    ),
    perturbation={"linf": Extent(median=0.01, max=0.02)},
    agreement={"kappa": Measure(mean=None, std=None, ci95=(0.1, 0.2))},
    transfer=TransferFacts(
        cosine=((1.0, None), (None, 1.0)),
        transferability=((0.5, 0.25), (0.25, 0.5)),
        images=3,
        zero_gradients=(0, 1),
        off_diagonal={"cosine": Spread(None, None)},
        attack=PGD,
    ),
    warnings=("one",),
    gate=Gate(threshold=0.4, bound=0.25, verdict="not met"),
)


def written(folder: Path, *documents: Any) -> Path:
    file = folder / "results.json"
    file.write_text(json.dumps(documents[0] if len(documents) == 1 else documents))
    return file


def test_docs_hold_the_schemas() -> None:
    for file, text in schemas.schemas():
        assert file.read_text() == text, "python tests/schemas.py writes it again"


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(dump([FULL, result()]))
    assert read_results(file) == [FULL, result()]
    assert dump(read_results(file)) == file.read_text()
    assert "skipped" not in result().to_json()["data"]  # as in results of before there was one


def test_what_a_newer_version_adds_is_kept(tmp_path: Path) -> None:
    newer = FULL.to_json() | {"shards": {"n": 2, "of": [{}]}, "newer": None}
    newer["accuracy"]["clean"]["jackknife"] = [0.1, None]
    newer["attack"]["params"]["of"][1]["parts"][0]["cost"] = {}
    newer["gate"]["rule"] = "x"
    (found,) = read_results(written(tmp_path, newer))
    assert found == FULL
    assert found.to_json() == newer
    assert replace(found, gate=None).to_json() == {**newer, "gate": None}
    found.to_json()["shards"]["of"].append(1)
    assert found.to_json() == newer


def test_another_major_version_is_refused(tmp_path: Path) -> None:
    for schema, message in (
        ("rlskit.result/2", "version 2, and this rlskit reads rlskit.result/1 only; use the"),
        ("rlskit.audit/1", "does not hold results of the schema rlskit.result/1"),
        (None, "does not hold results of the schema"),
    ):
        file = written(tmp_path, result().to_json(), result().to_json() | {"schema": schema})
        with pytest.raises(RequestError, match=message):
            read_results(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1.5}, r"\(Expected int, got float - at seed\)"),
        ({"accuracy": {}}, r"\(accuracy is neither of clean images nor robust\)"),
        ({"accuracy": {"clean": {**to_json(ACCURACY), "mean": 2}}}, r"<= 1.0 - at accuracy\[...\]"),
        ({"attack": {}}, r"missing required field method - at attack\)"),
        ({"data": {"name": "x", "split": "test", "n": 0, "sha256": ""}}, r"data\.n"),
    ],
)
def test_the_sentence_says_which_field_is_wrong(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=rf"results\.json is not a result of .*{message}"):
        read_results(written(tmp_path, result().to_json() | fields))


def test_values_of_an_option_keep_their_kind() -> None:
    params: dict[str, Value] = {"steps": 5, "eps": 5.0, "check": True, "norm": "l2", "target": None}
    found = from_json(to_json(replace(PGD, params=params)), AttackFacts).params
    assert {name: type(one) for name, one in found.items()} == {
        name: type(one) for name, one in params.items()
    }


def test_a_result_has_no_headline_where_nothing_was_scored() -> None:
    single: Result = result(accuracy={"clean_gibbs": ACCURACY})
    with pytest.raises(KeyError):
        _ = single.headline


def test_results_are_read_by_name_like_their_json() -> None:
    found = result()
    robust = found.accuracy["robust"]
    assert (robust["mean"], found.data["n"]) == (robust.mean, found.data.n)
    assert found.attack is not None
    assert found.attack["params"]["eps"] == found.attack.params["eps"]
    with pytest.raises(KeyError, match="median"):
        robust["median"]
