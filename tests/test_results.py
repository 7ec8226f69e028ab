"""Results: the JSON's schema, the journal, the numbers that come from it, and the tables."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from made_results import ACCURACY, PGD, result
from rlskit.errors import RequestError, RunError, UntrustedError
from rlskit.report import accuracy_table, comparison_table, diversity_table
from rlskit.results import (
    Journal,
    Result,
    claim,
    digest,
    dump,
    free_folder,
    refuse_finished,
    summary,
)
from rlskit.results.result import Extent, Measure, Timing
from rlskit.results.words import seen
from rlskit.storage.files import Pieces, fingerprint, write_tensors
from rlskit.storage.locks import only_writer

DESIGN = (
    "command checkpoint model defense data attack protocol n_attacked n_samples repeats seed "
    "batch_size device versions accuracy perturbation timing per_image"
)
"""Keys that readers of the JSON rely on."""

UNSURE = replace(ACCURACY, mean=0.5, std=0.01)
STATED = replace(PGD, stated={"eps": 0.1, "c": None}, pixel_range="-1:1")


def text(table: Table) -> str:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_the_json_has_the_keys_of_the_design() -> None:
    (found,) = [json.loads(dump([result()]))]
    assert found["schema"] == "rlskit.result/1"
    ours = {"agreement", "gate", "transfer", "per_example", "warnings"}
    assert set(found) == {"schema", *DESIGN.split()} | ours


def test_one_result_is_an_object_and_several_are_a_list() -> None:
    assert isinstance(json.loads(dump([result()])), dict)
    assert [one["seed"] for one in json.loads(dump([result(seed=1), result(seed=2)]))] == [1, 2]


def test_nan_becomes_null() -> None:
    agreement = {"kappa": Measure(mean=math.nan, std=math.inf, ci95=(0.5, 1.5))}
    found = json.loads(dump([result(agreement=agreement)]))
    assert found["agreement"] == {"kappa": {"mean": None, "std": None, "ci95": [0.5, 1.5]}}


def test_the_headline_is_robust_where_there_is_one() -> None:
    assert result(accuracy={"clean": ACCURACY, "robust": UNSURE}).headline.mean == 0.5
    assert result(accuracy={"clean": ACCURACY}).headline.mean == 0.75


def block(first: int, labels: list[int], clean: list[int], robust: list[int]) -> dict[str, Any]:
    """A block of one N whose Gibbs shares are 0.5, with l2 norms 1, 2, ..."""
    n = len(labels)
    norms = {norm: torch.arange(n) + first + 1.0 for norm in summary.NORMS}
    return {
        "index": torch.arange(first, first + n),
        "label": torch.tensor(labels),
        "clean": torch.tensor(clean)[:, None],
        "clean_gibbs": torch.full((n, 1), 0.5, dtype=torch.float64),
        "robust": torch.tensor(robust)[:, None],
        "robust_gibbs": torch.full((n, 1), 0.5, dtype=torch.float64),
        **norms,
        "forwards": torch.tensor([10]),
        "backwards": torch.tensor([5]),
        "seconds": torch.tensor([0.5], dtype=torch.float64),
    }


def journal(folder: Path | None = None, request: dict[str, Any] | None = None) -> Journal:
    """Two blocks of two images: three are right, and the attack turns one of them."""
    found = Journal(folder, request or {"seed": 0})
    found.put(0, 2, block(2, [2, 3], [2, 0], [2, 3]))  # order does not matter
    found.put(0, 0, block(0, [0, 1], [0, 1], [5, 1]))
    return found


def test_accuracies_by_hand() -> None:
    found = summary.accuracies([journal()], 1, 0)
    assert {name: (value.mean, value.n) for name, value in found.items()} == {
        "clean": (0.75, 4),
        "clean_gibbs": (0.5, 4),
        "robust": (0.75, 4),
        "robust_gibbs": (0.5, 4),
        "attack_success": (1 / 3, 3),
    }
    assert all(value.std is None for value in found.values())


def test_repeats_spread_and_success_has_the_least_denominator() -> None:
    found = journal()
    found.put(1, 0, block(0, [0, 1], [9, 9], [9, 9]))
    found.put(1, 2, block(2, [2, 3], [9, 3], [9, 9]))
    accuracies = summary.accuracies([found], 2, 0)
    assert accuracies["clean"].mean == 0.5
    assert accuracies["clean"].std == pytest.approx(math.sqrt(0.125))  # of 0.75 and 0.25
    assert accuracies["clean"].n == 4  # images, not images x repeats
    assert accuracies["attack_success"].mean == pytest.approx((1 / 3 + 1) / 2)
    assert accuracies["attack_success"].n == 1


def test_attack_success_without_a_right_answer_is_missing() -> None:
    found = Journal(None, {})
    found.put(0, 0, block(0, [0, 1], [9, 9], [0, 9]))
    assert "attack_success" not in summary.accuracies([found], 1, 0)


def test_images_of_the_target_class_withstand_nothing() -> None:
    """Labels 0 to 3, clean answers 0 1 2 0, attacked ones 5 1 2 3; the targets 5 1 1 1."""
    targeted = {0: torch.tensor([5, 1]), 2: torch.tensor([1, 1])}
    found = journal()
    for first, target in targeted.items():
        blocks = found.get(0, first)
        assert blocks is not None
        found.put(0, first, blocks | {"target": target})
    of = {
        name: (value.mean, value.n)
        for name, value in summary.accuracies([found], 1, 0).items()
        if not name.endswith("_gibbs")
    }
    assert of == {
        "clean": (0.75, 4),
        "robust": (0.75, 4),
        "attack_success": (0.5, 2),  # of images 0 and 2; image 1 is of the target class
        "target_reached": (pytest.approx(1 / 3), 3),  # image 0
        "withstood": (pytest.approx(2 / 3), 3),  # images 2 and 3; 3 was wrong before
    }
    least = replace(ACCURACY, mean=0.1)
    shown = result(accuracy={"clean": ACCURACY, "robust": ACCURACY, "withstood": least})
    assert shown.headline == least
    untargeted = summary.accuracies([found, journal()], 1, 0)  # whose worst case moves any image
    assert untargeted["attack_success"].n == 3
    assert "withstood" not in untargeted
    for first in targeted:
        blocks = found.get(0, first)
        assert blocks is not None
        found.put(0, first, blocks | {"target": blocks["label"]})
    with pytest.raises(UntrustedError, match="all images are of the target class"):
        summary.accuracies([found], 1, 0)


def test_the_worst_case_is_right_where_every_attack_left_it_right() -> None:
    other = Journal(None, {})
    other.put(0, 0, block(0, [0, 1], [0, 1], [0, 9]))  # turns image 1, and not image 0
    other.put(0, 2, block(2, [2, 3], [2, 0], [2, 9]) | {"robust_gibbs": torch.tensor([[0.1], [1]])})
    found = summary.accuracies([journal(), other], 1, 0)
    assert {name: (value.mean, value.n) for name, value in found.items()} == {
        "clean": (0.75, 4),
        "clean_gibbs": (0.5, 4),
        "robust": (0.25, 4),
        "robust_gibbs": (pytest.approx((0.5 + 0.5 + 0.1 + 0.5) / 4), 4),
        "attack_success": (2 / 3, 3),
    }
    cost = summary.timing([journal(), other])
    assert (cost.forwards, cost.backwards, cost.seconds) == (40, 20, 2)
    assert cost.images_per_second == 2


def test_perturbation_and_timing_by_hand() -> None:
    found = journal()
    assert summary.perturbation(found, 1) == {
        norm: Extent(median=2.5, max=4.0) for norm in summary.NORMS
    }
    assert summary.timing([found]) == Timing(
        seconds=1.0, images_per_second=4.0, forwards=20.0, backwards=10.0
    )


def test_per_image_table(tmp_path: Path) -> None:
    found = journal(tmp_path)
    images: dict[str, Sequence[Any]] = {
        "index": [5, 7, 8, 9],
        "path": ["a, b", "c\ud800", "d\n", "é"],
    }
    assert found.write_per_image(summary.per_image(found, 1, images)) == "per_image.csv"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "per_image.csv").read_text())))
    assert [(r["repeat"], r["index"], r["label"], r["clean"], r["robust"]) for r in rows] == [
        ("0", "5", "0", "0", "5"),
        ("0", "7", "1", "1", "1"),
        ("0", "8", "2", "2", "2"),
        ("0", "9", "3", "0", "3"),
    ]
    assert [row["path"] for row in rows] == ["a, b", "c\\ud800", "d\n", "é"]
    assert [row["l2"] for row in rows] == ["1.0", "2.0", "3.0", "4.0"]


def test_a_journal_takes_over_the_blocks_of_the_same_request(tmp_path: Path) -> None:
    first = journal(tmp_path, {"seed": 0, "n_samples": (1, 2)})
    again = Journal(tmp_path, {"n_samples": (1, 2), "seed": 0})
    for start in (0, 2):
        found, wanted = again.get(0, start), first.get(0, start)
        assert found is not None
        assert wanted is not None
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert again.get(0, 4) is None
    assert again.get(1, 0) is None


def test_of_a_run_on_disk_no_image_is_held(tmp_path: Path) -> None:
    """Written and read block by block: at most one block's images are in memory."""
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    on_disk, in_memory = Journal(tmp_path, {}), Journal(None, {})
    for first in (4, 0, 2):
        some = images[first : first + 2].clone()
        for one in (on_disk, in_memory):
            one.put(0, first, block(first, [0, 1], [0, 1], [0, 1]) | {"adversarial": some})
    held = weakref.ref(some)
    again = Journal(tmp_path, {})
    assert all(again.get(0, first) for first in (0, 2, 4))
    del one, in_memory, some
    assert held() is None
    for found in (on_disk, again):
        numbers = 0
        for name in found.names:
            numbers += found.column(name, 0).nbytes
        assert numbers / 6 < 120  # bytes of an image, whose pixels would be 256 more
        whole = Pieces(images.dtype, tuple(images.shape), partial(found.pieces, "adversarial", 0))
        assert fingerprint({"x": whole}) == fingerprint({"x": images})
        write_tensors(tmp_path / "pieces", {"b": torch.ones(2), "x": whole}, {}, force=True)
        write_tensors(tmp_path / "one", {"b": torch.ones(2), "x": images}, {}, force=True)
        assert (tmp_path / "pieces").read_bytes() == (tmp_path / "one").read_bytes()
        alive = []
        for piece in found.pieces("adversarial", 0):
            alive.append(weakref.ref(piece))
            assert sum(one() is not None for one in alive) <= 2  # the last one, and this
    (tmp_path / "blocks" / "0-2.safetensors").unlink()
    with pytest.raises(RequestError, match=r"0-2\.safetensors is not a readable"):
        list(on_disk.pieces("adversarial", 0))


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_torn_block_is_not_finished(tmp_path: Path, length: int) -> None:
    journal(tmp_path)
    file = tmp_path / "blocks" / "0-2.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    again = Journal(tmp_path, {"seed": 0})
    assert again.get(0, 2) is None
    assert again.get(0, 0) is not None


def test_a_block_counts_only_as_it_was_written_where_and_for_whom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal(tmp_path)
    journal(tmp_path / "other", {"seed": 1})
    file = tmp_path / "blocks" / "0-2.safetensors"
    whole = file.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    for place in range(0, len(whole), 97):  # one bit anywhere
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert Journal(tmp_path, {"seed": 0}).get(0, 2) is None, place
    save_file(tensors | {"robust": tensors["clean"].clone()}, file, metadata)
    assert Journal(tmp_path, {"seed": 0}).get(0, 2) is None
    save_file(tensors, file)  # without a checksum, as of an older version
    assert Journal(tmp_path, {"seed": 0}).get(0, 2) is None
    caplog.clear()
    for foreign in (tmp_path / "other/blocks/0-2.safetensors", file.with_name("0-0.safetensors")):
        shutil.copy(foreign, file)
        assert Journal(tmp_path, {"seed": 0}).get(0, 2) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} is a block of another run, or of other images; it is computed again"
    ] * 2
    file.write_bytes(whole)
    assert Journal(tmp_path, {"seed": 0}).get(0, 2) is not None


def test_files_heed_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        journal(tmp_path)
    finally:
        os.umask(before)
    for file in (tmp_path / "run.json", tmp_path / "blocks" / "0-0.safetensors"):
        assert file.stat().st_mode & 0o777 == 0o640


def test_another_request_is_refused_and_named(tmp_path: Path) -> None:
    journal(tmp_path)
    with pytest.raises(RequestError, match=r"holds another run \(repeats, seed differ\)"):
        Journal(tmp_path, {"seed": 1, "repeats": 2})
    assert Journal(tmp_path, {"seed": 1}, force=True).get(0, 0) is None
    assert not list((tmp_path / "blocks").iterdir())


def test_blocks_of_nobody_knows_what_are_refused(tmp_path: Path) -> None:
    journal(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(RequestError, match=r"holds blocks but no run\.json"):
        Journal(tmp_path, {"seed": 0})
    assert Journal(tmp_path, {"seed": 0}, force=True).get(0, 0) is None
    (tmp_path / "run.json").write_text("{torn")
    for force in (False, True):
        with pytest.raises(RequestError, match=r"run\.json is no file of a run of rlskit's"):
            Journal(tmp_path, {"seed": 0}, force=force)


def test_a_finished_run_is_refused(tmp_path: Path) -> None:
    found = journal(tmp_path)
    refuse_finished(tmp_path, force=False)
    refuse_finished(tmp_path / "new", force=False)
    found.write_results(dump([result()]))
    with pytest.raises(RequestError, match="holds a finished run"):
        refuse_finished(tmp_path, force=False)
    refuse_finished(tmp_path, force=True)
    assert (tmp_path / "results.json").exists()  # until the new run begins
    with pytest.raises(RequestError, match="is a file, not the folder of a run"):
        refuse_finished(tmp_path / "results.json", force=True)


def several(folder: Path, **results: Result) -> None:
    """A finished run of several attacks, each below in its own folder."""
    for name, one in results.items():
        journal(folder / name, {"versions": {"rlskit": "0"}, "name": name}).write_results(
            dump([one])
        )
    (folder / "results.json").write_text(dump([*results.values(), result(seed=9)]))


def test_force_removes_the_run_and_its_parts_alone(tmp_path: Path) -> None:
    """A part is what the run's own results or request name, whatever its folder is called."""
    several(tmp_path, one=result(seed=1), two=result(seed=2))
    journal(tmp_path / "three", {"seed": 3}).write_results(dump([result(seed=3)]))  # another run
    (tmp_path / "two" / "notes.txt").write_text("mine")
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "weights.safetensors").write_text("mine, too")
    elsewhere = tmp_path.with_name("elsewhere")
    (tmp_path / "one").rename(elsewhere)
    (tmp_path / "link").symlink_to(elsewhere)  # leads to a run that is named
    claim(tmp_path, {"seed": 4}, force=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "run.json", "two/notes.txt", "blocks/weights.safetensors", "three/run.json",
        "three/results.json", "three/blocks/0-0.safetensors", "three/blocks/0-2.safetensors",
    }  # fmt: skip
    assert (elsewhere / "results.json").exists()


def test_force_knows_the_parts_of_an_unfinished_run(tmp_path: Path) -> None:
    requests = {name: {"name": name} for name in ("one", "two")}
    claim(tmp_path, {"parts": {name: digest(one) for name, one in requests.items()}}, force=False)
    for name in requests:
        journal(tmp_path / name, requests[name])
    journal(tmp_path / "own", {"name": "own"})
    with only_writer(tmp_path / "two"), pytest.raises(RunError, match="two is being written"):
        claim(tmp_path, {"seed": 0}, force=True)
    assert (tmp_path / "one" / "run.json").exists()
    claim(tmp_path, {"seed": 0}, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "run.json"]
    assert (tmp_path / "own" / "blocks" / "0-0.safetensors").exists()


@pytest.mark.parametrize(
    "name",
    ["run.json", "results.json", "per_image.csv", "adversarial.safetensors",
     "blocks/0-0.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("force", [False, True])
def test_files_of_others_under_a_runs_names_are_never_replaced(
    tmp_path: Path, name: str, force: bool
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"versions": "mine"}')
    for use in (refuse_finished, lambda path, force: Journal(path, {}, force=force)):
        with pytest.raises(RequestError, match="is no file of a run of rlskit's, and not replaced"):
            use(tmp_path, force=force)
    assert file.read_text() == '{"versions": "mine"}'
    assert len(list(tmp_path.rglob("*"))) == len(Path(name).parts)


def test_new_folders_are_numbered(tmp_path: Path) -> None:
    assert free_folder(tmp_path, "attack") == tmp_path / "attack-001"
    assert free_folder(tmp_path, "attack") == tmp_path / "attack-002"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack-001", "attack-002"]


def test_the_accuracy_table_shows_protocol_and_interval_beside_every_number() -> None:
    accuracy = {"clean": ACCURACY, "robust": UNSURE}
    lines = text(accuracy_table([result(accuracy=accuracy, attack=STATED)])).splitlines()
    (clean,) = [line for line in lines if "75.0" in line]
    (robust,) = [line for line in lines if "50.0" in line]
    assert [cell.strip() for cell in clean.split("│")[1:-1]] == [
        "pgd eps=0.1 in -1:1", "clean", "clean", "10", "75.0", "30.0 – 95.0", "4"
    ]  # fmt: skip
    assert [cell.strip() for cell in robust.split("│")[1:-1]] == [
        "", "robust", "multi n=5", "10", "50.0 ± 1.0", "30.0 – 95.0", "4"
    ]  # fmt: skip


def test_every_accuracy_has_a_row() -> None:
    names = ("clean", "clean_gibbs", "robust", "robust_gibbs", "robust_8bit", "attack_success")
    shown = text(accuracy_table([result(accuracy=dict.fromkeys(names, ACCURACY))]))
    assert shown.count("75.0") == 6
    assert shown.count("multi n=5") == 4
    (gibbs,) = [line for line in shown.splitlines() if "robust, one draw" in line]
    assert gibbs.split("│")[4].strip() == "1"


def test_no_row_repeats_another_and_a_white_box_attack_is_called_one() -> None:
    same = dict.fromkeys(("clean", "clean_gibbs", "robust", "robust_gibbs"), ACCURACY)
    undefended = {"defense": "none", "protocol": "transfer", "n_attacked": 1, "n_samples": 1}
    attacks = [STATED, replace(STATED, method="fgsm")]
    found = [result(**undefended, accuracy=same, attack=attack) for attack in attacks]
    lines = text(accuracy_table(found)).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in lines if "75.0" in line]
    assert cells == [
        ["pgd eps=0.1 in -1:1", "clean", "clean"],
        ["", "robust", "white-box n=1"],
        ["fgsm eps=0.1 in -1:1", "robust", "white-box n=1"],
    ]
    other = same | {"clean_gibbs": UNSURE}  # which no undefended model has, so it is shown
    assert "clean, one draw" in text(accuracy_table([result(**undefended, accuracy=other)]))
    assert "white-box" not in text(accuracy_table([result(accuracy=same, attack=STATED)]))
    made = replace(found[0], data=replace(found[0].data, adversarial_sha256="of another model"))
    assert seen(made) == "transfer n=1 on saved images"
    for draws, n_attacked, said in (
        (3, 3, "white-box n=3"),
        (3, 2, "multi n=2"),
        (None, 9, "multi n=9"),
    ):
        one = result(protocol="multi", n_attacked=n_attacked)
        assert seen(replace(one, model=replace(one.model, draws=draws))) == said


def test_the_diversity_table() -> None:
    agreement = {
        "kappa": Measure(mean=0.4321, std=0.01, ci95=None),
        "q_statistic": Measure(mean=None, std=None, ci95=None),
    }
    shown = text(diversity_table(result(agreement=agreement, repeats=10)))
    assert "10 draws, 10 repeats" in shown
    assert "0.432" in shown
    (q,) = [line for line in shown.splitlines() if "q statistic" in line]
    assert [cell.strip() for cell in q.split("│")[2:4]] == ["–", "–"]


def test_the_comparison_table() -> None:
    kappa = {"kappa": Measure(mean=0.5, std=0.25, ci95=None)}
    robust = result(accuracy={"clean": ACCURACY, "robust": UNSURE})
    rows: dict[str, Sequence[Result]] = {"RLS": [robust, result(agreement=kappa)]}
    shown = text(comparison_table(rows, "three defenses"))
    for figure in ("multi n=5", "75.0", "30.0 – 95.0", "50.0 ± 1.0", "0.500 ± 0.250", "10"):
        assert figure in shown
    rows["none"] = [result(protocol="transfer", n_attacked=1), result(agreement=kappa)]
    with pytest.raises(RequestError, match="same attacks and protocols in every row"):
        comparison_table(rows, "apples and pears")
