"""What registries get of a model: each format's own reader takes it, and no number flatters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1.statement import Statement

import made_reports
import made_results
import rlskit
import small_models
from made_reports import cell, eval_result, recipe, result, verdict, write
from rlskit.cli import run as command
from rlskit.errors import RequestError, UntrustedError
from rlskit.models.checkpoint import digest_of
from rlskit.report.cards import BILL, CARD, STATEMENT
from rlskit.results import Result
from rlskit.results.result import CheckpointFacts, ModelFacts
from rlskit.results.verdict import Verdict
from rlskit.storage.sums import sha256_of

OPTIMISTIC = "OPTIMISTIC: the attacker could see more; see /work/secret/rls.safetensors"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's file."""
    path = tmp_path_factory.mktemp("model") / "rls.safetensors"
    rlskit.save(small_models.model(1, "none"), path)
    return path


@pytest.fixture(scope="module")
def facts(file: Path) -> dict[str, Any]:
    digest = digest_of(small_models.model(1, "none"))
    return {
        "checkpoint": CheckpointFacts(path=str(file), sha256=digest),
        "versions": {"rlskit": "9"},
    }


def run_of(folder: Path, results: dict[str, Result], gates: list[Verdict]) -> Path:
    """A recipe's run of one row, `rls`."""
    cells = [
        cell(name, one, show="robust" if one.attack else "clean") for name, one in results.items()
    ]
    return write(folder, recipe([{"name": "rls", "label": "RLS", "cells": cells}], gates))


@pytest.fixture
def whole(tmp_path: Path, facts: dict[str, Any]) -> Path:
    """A run with a number of each kind, and two gates that passed, one with a warning."""
    robust = {"protocol": "adaptive", "n_attacked": 10, **facts}
    adaptive = result(36, 24, 40, **robust)
    assert adaptive.attack is not None
    params: dict[str, Any] = {"norm": "linf", "eps": made_reports.EPS}
    adaptive = replace(adaptive, attack=replace(adaptive.attack, method="adaptive", params=params))
    folder = str(tmp_path / "secret" / "photos")
    photos = replace(made_results.images(50), name=f"folder:{folder}", sha256="z")
    results = {
        "clean": eval_result(45, 50, **facts, data=photos),
        "transfer": result(36, 30, 40, protocol="transfer", n_attacked=1, **facts,
                           warnings=(f"{OPTIMISTIC} {facts['checkpoint'].path}",)),
        "linf": adaptive,
    }  # fmt: skip
    gates = [
        verdict("pass", column="linf"), verdict("pass", column="transfer"),
    ]  # fmt: skip
    return run_of(tmp_path / "run", results, gates)


def test_each_reader_takes_its_file(
    whole: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "card"
    given = [
        "card",
        str(whole),
        "-o",
        str(place),
        "--benchmark",
        "me/digits",
        "--name",
        "my: model",
    ]
    assert command(given) == 0
    card = ModelCard.load(place / CARD)
    name, entries = model_index_to_eval_results(card.data.to_dict()["model-index"])
    assert name == "my: model"
    found = {one.metric_type: one for one in entries}
    assert {kind: one.metric_value for kind, one in found.items()} == {
        "accuracy": 0.9, "transfer_accuracy": 0.75, "robust_accuracy": 0.6,
    }  # fmt: skip
    args = found["robust_accuracy"].metric_args
    assert args is not None
    told = ("protocol", "attack", "norm", "images", "attacked_draws", "answering_draws")
    assert [args[key] for key in told] == ["adaptive", "adaptive", "linf", 40, 10, 10]
    assert args["eps"] == pytest.approx(8 / 255)
    assert args["ci95"] == pytest.approx([0.446, 0.737], abs=1e-3)  # Wilson's, of 24 of 40
    assert "which is not robust accuracy (pgd, linf eps 8/255, transfer n=1" in (
        found["transfer_accuracy"].metric_name or ""
    )

    yamls = sorted((place / ".eval_results").glob("*.yaml"))
    read = [parse_eval_result_entries(yaml.safe_load(one.read_text()))[0] for one in yamls]
    assert {one.task_id: one.value for one in read} == {
        "clean": 90.0, "clean-no2": 90.0, "robust-linf-8-255": 60.0,
        "transfer-pgd-linf-8-255": 75.0,
    }  # fmt: skip
    assert {one.dataset_id for one in read} == {"me/digits"}

    text = (place / BILL).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    (component,) = json.loads(text)["components"]
    assert component["type"] == "machine-learning-model"
    assert component["hashes"] == [{"alg": "SHA-256", "content": sha256_of(file)}]
    metrics = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    interval = {one["type"]: one["confidenceInterval"] for one in metrics}["robust_accuracy"]
    low, high = args["ci95"]
    assert interval == {"lowerBound": f"{low:.6f}", "upperBound": f"{high:.6f}"}

    statement = json.loads((place / STATEMENT).read_text())
    Statement.copy_from_pb(
        json_format.ParseDict(statement, Statement([], "", {"_": 0}).pb)
    ).validate()
    predicate = json_format.ParseDict(statement["predicate"], test_result_pb2.TestResult())
    assert statement["subject"] == [
        {"name": "rls.safetensors", "digest": {"sha256": sha256_of(file)}}
    ]
    assert predicate.result == "WARNED"  # as one passed on a number with a warning
    assert list(predicate.passed_tests) == ["rls/linf at-least"]
    assert list(predicate.warned_tests) == ["rls/transfer at-least"]
    assert predicate.configuration[0].digest["sha256"] == sha256_of(whole / "results.json")
    assert str(place / CARD) in capsys.readouterr().out


def test_no_folder_of_this_machine_is_published(whole: Path, tmp_path: Path, file: Path) -> None:
    for one in rlskit.write_card([whole], tmp_path / "card", benchmark="me/digits").files:
        text = one.read_text()
        assert str(tmp_path) not in text
        assert str(file.parent) not in text
    assert "folder:photos" in (tmp_path / "card" / CARD).read_text()


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        (["pass", "pass"], "PASSED"),
        (["pass", "fail"], "FAILED"),
        (["undecided", "pass"], "FAILED"),
        ([], None),
    ],
)
def test_the_statement_says_what_became_of_the_gates(
    tmp_path: Path, facts: dict[str, Any], gates: list[str], said: str | None
) -> None:
    asked = [
        verdict(kind, asked=ask) for kind, ask in zip(gates, ("at-least", "at-most"), strict=False)
    ]
    run = run_of(tmp_path / "run", {"pgd": result(36, 24, 40, **facts)}, asked)
    written = rlskit.write_card([run], tmp_path)
    if said is None:
        assert not (tmp_path / STATEMENT).exists()
        assert any("no gate was set" in one for one in written.notes)
    else:
        assert json.loads((tmp_path / STATEMENT).read_text())["predicate"]["result"] == said


def kinds(run: Path, out: Path) -> list[str]:
    rlskit.write_card([run], out, force=True)
    metrics = json.loads((out / BILL).read_text())["components"][0]["modelCard"]
    return [one["type"] for one in metrics["quantitativeAnalysis"]["performanceMetrics"]]


def test_only_what_the_adaptive_protocol_leaves_is_robust_accuracy(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    """Saved images carry the protocol of the attack on the model that they were made against."""
    saved = replace(made_results.images(40), adversarial_sha256="q")
    targeted = {"accuracy": {name: made_reports.share(30, 40) for name in
                             ("clean", "robust", "target_reached")}}  # fmt: skip
    cases: dict[str, tuple[dict[str, Any], list[str]]] = {
        "eot": ({"protocol": "eot"}, ["accuracy", "eot_accuracy"]),
        "multi": ({}, ["accuracy", "multi_accuracy"]),
        "alone": ({"protocol": "transfer", "defense": "none"}, ["accuracy", "white_box_accuracy"]),
        "saved": ({"protocol": "adaptive", "data": saved}, ["accuracy", "saved_images_accuracy"]),
        "targeted": (targeted, ["accuracy"]),
        "unknown": ({"protocol": "robust"}, ["accuracy"]),
        "trained on": (
            {"warnings": ("TRAINING IMAGES: it was.",)},
            ["doubtful_accuracy", "doubtful_multi_accuracy"],
        ),
        "masked": (
            {"protocol": "adaptive", "warnings": ("MASKED GRADIENTS: at 3.",)},
            ["accuracy", "doubtful_robust_accuracy"],
        ),
    }
    for name, (fields, types) in cases.items():
        run = run_of(tmp_path / name, {"pgd": result(36, 24, 40, **{**facts, **fields})}, [])
        assert kinds(run, tmp_path / "card") == types, name


def test_a_doubtful_number_is_on_no_leaderboard(tmp_path: Path, facts: dict[str, Any]) -> None:
    doubted = result(36, 24, 40, **facts, warnings=("FAILED SEARCHES: cw gave 9 back.",))
    run = run_of(tmp_path / "run", {"pgd": doubted}, [])
    rlskit.write_card([run], tmp_path, benchmark="me/digits")
    assert [one.name for one in (tmp_path / ".eval_results").iterdir()] == ["clean.yaml"]
    assert "FAILED SEARCHES: Accuracy under" in (tmp_path / CARD).read_text()


def test_what_cannot_be_trusted_is_not_published_nor_is_an_earlier_card(
    whole: Path, tmp_path: Path, facts: dict[str, Any]
) -> None:
    out = tmp_path / "card"
    rlskit.write_card([whole], out, benchmark="me/digits")
    (out / ".eval_results" / "mine.yaml").write_text("- mine")
    found = result(36, 24, 40, **facts)
    untrained = replace(found, model=ModelFacts(architecture="own:tiny", trained=False))
    none = write(tmp_path / "none", recipe(
        [{"name": "rls", "label": "RLS", "cells": [cell("pgd", None)]}], [verdict("untrusted")]
    ))  # fmt: skip
    for run, said in (
        (run_of(tmp_path / "a", {"pgd": found}, [verdict("untrusted")]), "it stood still"),
        (run_of(tmp_path / "b", {"pgd": untrained}, []), "untrained"),
        (none, "it stood still"),
    ):
        with pytest.raises(UntrustedError, match=said):
            rlskit.write_card([run], out, force=True)
    assert [one.name for one in out.rglob("*") if one.is_file()] == ["mine.yaml"]


def test_a_card_is_of_one_model_whose_file_is_there(
    whole: Path, tmp_path: Path, file: Path, facts: dict[str, Any]
) -> None:
    out, other = tmp_path / "card", CheckpointFacts(path="gone.safetensors", sha256="b")
    both = run_of(
        tmp_path / "both",
        {"pgd": result(36, 24, 40, **facts), "other": result(4, 4, 40, checkpoint=other)}, [],
    )  # fmt: skip
    with pytest.raises(RequestError, match="of one model, and the runs are of 2"):
        rlskit.write_card([both], out)
    rlskit.write_card([both], out, checkpoint=file)
    assert "0.1" not in [one for one in (out / BILL).read_text().split('"') if one == "0.100000"]
    gone = run_of(tmp_path / "gone", {"other": result(4, 4, 40, checkpoint=other)}, [])
    with pytest.raises(RequestError, match="not there or not the model any more"):
        rlskit.write_card([gone], out, force=True)
    with pytest.raises(RequestError, match=r"the runs are not of .*rls\.safetensors"):
        rlskit.write_card([gone], out, checkpoint=file, force=True)
    rlskit.write_card([whole], out)
    with pytest.raises(RequestError, match="exists already"):
        rlskit.write_card([whole], out)
    with pytest.raises(RequestError, match="OWNER/NAME"):
        rlskit.write_card([whole], out, benchmark="digits", force=True)
