"""Gates of recipes: verdicts by hand, the paired gate's errors, baselines, and the exit codes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_results
import small_models
from rlskit import recipes
from rlskit.cli import run as command
from rlskit.cli.show import gated
from rlskit.documents import to_json
from rlskit.errors import RequestError, UntrustedError
from rlskit.recipes.checking import prepared
from rlskit.results import compare, comparing, dump, read_results
from rlskit.results.result import AttackFacts, CheckpointFacts, Measure
from rlskit.results.verdict import drops, judged, undecidable
from rlskit.results.words import percents
from rlskit.stats import accuracy
from small_recipes import written
from test_comparison import edit, write

PLACE: dict[str, Any] = {"row": "release", "column": "linf", "show": "robust", "by": "bound"}


def asked(mean: float, n: int, **ask: float) -> Any:
    ((kind, threshold),) = ask.items()
    found = accuracy([mean], n)
    return judged(
        found, images=n, asked=kind.replace("_", "-"), threshold=threshold, **PLACE
    )  # fmt: skip


def test_the_bound_decides_and_says_how_many_images_more() -> None:
    """Of 1,000 images 43 % are right: Clopper-Pearson's one-sided bounds are 40.4 and 45.6 %."""
    assert asked(0.43, 1000, at_least=0.40).verdict == "pass"
    assert asked(0.43, 1000, at_least=0.46).verdict == "fail"
    found = asked(0.43, 1000, at_least=0.41)
    assert found.verdict == "undecided"
    # (0.43 - 0.4039) / (0.43 - 0.41) = 1.305, squared 1.70: 700 more
    assert found.more_images == pytest.approx(700, abs=25)
    assert asked(0.43, 1000 + found.more_images, at_least=0.41).verdict == "pass"
    assert "43.0 % (with 95 % confidence at least 40.4 %), asked at least 41.0 %" in found.sentence
    assert asked(0.43, 1000, at_most=0.46).verdict == "pass"
    assert asked(0.43, 1000, at_most=0.40).verdict == "fail"
    assert asked(0.43, 1000, at_most=0.45).verdict == "undecided"


def test_no_number_is_rounded_to_what_was_asked_or_to_all() -> None:
    said = asked(0.99997, 100_000, at_least=0.9999).sentence
    assert "is 99.997 % (with 95 % confidence at least 99.992 %), asked at least 99.990 %" in said
    said = asked(0.45, 1000, at_least=0.424).sentence  # the bound is 0.42376
    assert "at least 42.38 %), asked at least 42.40 %, 1,000 images: undecided" in said
    assert percents(0.1 + 0.2, 0.3, 1.0) == ["30.0", "30.0", "100.0"]


def test_a_value_at_the_threshold_is_never_decided_by_more_images() -> None:
    assert asked(0.4, 1000, at_least=0.4).more_images is None


def test_the_point_decides_where_it_is_asked_to() -> None:
    found = accuracy([0.43], 100)
    place = PLACE | {"by": "point"}
    for threshold, verdict in ((0.43, "pass"), (0.44, "fail")):
        one = judged(found, images=100, asked="at-least", threshold=threshold, **place)
        assert one.verdict == verdict


def test_an_undefined_measure_is_untrusted_and_one_without_interval_undecided() -> None:
    ask: dict[str, Any] = {"images": 10, "asked": "at-most", "threshold": 0.6, **PLACE}
    assert judged(Measure(mean=None, std=None, ci95=None), **ask).verdict == "untrusted"
    assert judged(Measure(mean=0.1, std=None, ci95=None), **ask).verdict == "undecided"
    assert judged(Measure(mean=0.5, std=None, ci95=(0.4, 0.59)), **ask).verdict == "pass"


def two_releases(folder: Path, lost: int, won: int, n: int = 1000) -> Path:
    """Two runs that are right on the same images but for so many of each."""
    before = np.ones(n, dtype=int)
    before[: n // 2] = 0
    after = before.copy()
    after[n // 2 : n // 2 + lost] = 0
    after[:won] = 1
    for name, right in (("before", before), ("after", after)):
        write(folder / name, [right.tolist()], [right.tolist()])
    return folder


def test_the_paired_gate_sees_what_two_intervals_do_not(tmp_path: Path) -> None:
    """Three points of 1,000: 50.0 and 47.0 %, whose intervals of +- 3.1 points overlap."""
    two_releases(tmp_path, lost=35, won=5)
    found = compare(tmp_path / "before", tmp_path / "after")
    low, high = found.pairs[0].b.accuracy["robust"].ci95
    assert low < found.pairs[0].a.accuracy["robust"].ci95[0] < high
    (_, robust) = drops(found, 0.02)
    assert (robust.show, robust.verdict) == ("robust", "undecided")
    assert robust.measured == pytest.approx(-0.03)
    assert drops(found, 0.015)[1].verdict == "fail"
    assert drops(found, 0.05)[1].verdict == "pass"


def test_no_fallen_image_in_a_hundred_bears_out_three_points_and_no_less(tmp_path: Path) -> None:
    """Of 100 images none falls with a chance of 8 % where 2.5 % of all do: too often for 95 %."""
    two_releases(tmp_path, lost=0, won=0, n=100)
    found = compare(tmp_path / "before", tmp_path / "after")
    (low, high) = found.pairs[0].differences["robust"].bounds
    assert (low, high) == pytest.approx((0.05**0.01 - 1, 1 - 0.05**0.01))
    assert [one.verdict for one in drops(found, 0.025)] == ["undecided"] * 2
    assert [one.verdict for one in drops(found, 0.03)] == ["pass"] * 2


def test_no_change_passes_nineteen_times_in_twenty_and_three_points_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Releases that differ on 3 % of 1,000 images by chance; and that lose 3 points besides."""
    monkeypatch.setattr(comparing, "RESAMPLES", 1000)  # a tenth, for the time
    generator, dummy = np.random.default_rng(0), accuracy([0.5], 1000)
    passed = {0.0: 0, 0.03: 0}
    for drop in passed:
        for _ in range(40):
            before = generator.random(1000) < 0.5 + drop / 2
            change = generator.random(1000)
            flips = np.where(before, change < 0.03 + 2 * drop, change < 0.03)
            found = comparing._difference(before[None], (before ^ flips)[None], (dummy, dummy), 0)
            one = judged(found, images=1000, asked="max-drop", threshold=0.02, **PLACE)
            passed[drop] += one.verdict == "pass"
    assert passed[0.0] >= 38
    assert passed[0.03] <= 2


GATED = """
title = "the release"
[columns.linf]
attack = { method = "pgd", eps = 0.02, limit = 4 }
[rows.release]
checkpoint = "model.safetensors"
[gates]
linf = { at-least = 0.3 }
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return written(tmp_path, GATED, monkeypatch)


def written_by(done: recipes.Outcome) -> Any:
    return json.loads((done.folder / "results.json").read_text())


def go(recipe: Path, right: list[int], code: int = 0, *sets: str) -> recipes.Outcome:
    """Run the recipe with a command that is right on some images, or ends with a code."""

    def execute(arguments: list[str]) -> int:
        assert arguments[:2] == ["attack", "model.safetensors"]
        if code == 0:
            write(Path(arguments[arguments.index("--out") + 1]), [right])
        return code

    return recipes.run(recipe, execute=execute, sets=sets)


@pytest.mark.parametrize(
    ("right", "code", "verdict", "ends"),
    [
        ([1] * 4, 0, "pass", 0),
        ([0] * 30, 0, "fail", 1),
        ([1, 0, 1, 0], 0, "undecided", 1),
        ([], 4, "untrusted", 4),
    ],
)
def test_every_verdict_has_its_exit_code_and_stands_in_the_results(
    recipe: Path, right: list[int], code: int, verdict: str, ends: int
) -> None:
    done = go(recipe, right, code)
    assert done.code == ends
    assert [one.verdict for one in done.verdicts] == [verdict]
    document = json.loads((done.folder / "results.json").read_text())
    assert document["gates"][0]["verdict"] == verdict
    if code == 0:  # nothing is measured again, and the verdict is the same
        again = recipes.run(recipe, execute=lambda _: pytest.fail("up to date"))
        assert (again.code, again.verdicts) == (done.code, done.verdicts)


def test_another_checkpoint_is_measured_again(recipe: Path) -> None:
    assert go(recipe, [1] * 4).code == 0
    Path("model.safetensors").write_bytes(b"other")
    assert go(recipe, [0] * 30).code == 1


def test_a_baseline_is_a_folder_or_one_small_file(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = go(recipe, [1] * 90 + [0] * 10)
    first.folder.rename("before")
    assert command(["baseline", "before", "-o", "before.zip"]) == 0
    assert Path("before.zip").stat().st_size < 5000
    twice = Path("before.zip").read_bytes()
    assert command(["baseline", "before", "-o", "before.zip", "--force"]) == 0
    assert Path("before.zip").read_bytes() == twice
    for place in ("before", "before/results.json", "before.zip"):
        sets = ["gates.linf.max-drop=0.1", f"baseline.results={place}"]
        done = go(recipe, [1] * 60 + [0] * 40, 0, *sets)
        (dropped,) = (one for one in done.verdicts if one.asked == "max-drop")
        assert dropped.measured == pytest.approx(-0.3)
        assert dropped.verdict == "fail"
        ((cell,),) = (row["cells"] for row in written_by(done)["rows"])
        assert [one["index"] for one in cell["fallen"]] == list(range(60, 90))
    assert cell["fallen"][0] == {"index": 60, "label": 0, "answer": 99}
    summary = (done.folder / "summary.md").read_text()
    assert "<details><summary>release/linf (robust): 30 images newly fall</summary>" in summary
    assert "- image 60: label 0, answered 99" in summary
    page = (done.folder / "report.html").read_text()
    assert "release/linf (robust): 30 images newly fall against the baseline" in page
    with pytest.raises(RequestError, match="different images"):
        go(recipe, [1] * 50, 0, "gates.linf.max-drop=0.1", "baseline.results=before.zip",
           "columns.linf.attack.limit=50")  # fmt: skip
    Path("before.zip").write_bytes(twice[:200])
    with pytest.raises(RequestError, match=r"before\.zip cannot be read"):
        go(recipe, [1] * 100, 0, "gates.linf.max-drop=0.1", "baseline.results=before.zip")


def test_what_fell_is_told_without_a_gate_on_it_and_why_it_cannot_be(recipe: Path) -> None:
    write(Path("before/release/linf"), [[1] * 90], paths=[f"{i}.png" for i in range(90)])
    sets = ["columns.clean.eval.limit=4", "baseline.results=before"]

    def execute(arguments: list[str]) -> int:
        out, paths = arguments[arguments.index("--out") + 1], [f"{i}.png" for i in range(90)]
        write(Path(out), [[1] * 88 + [0] * 2], paths=paths)
        return 0

    done = recipes.run(recipe, execute=execute, sets=sets)
    assert [*done.beside.sentences] == [
        "release/linf: 2 images newly fall against the baseline, named in the report",
        "release/clean is not held against the baseline: the baseline has no release/clean; run "
        "the same columns for it, or name the row as it was called there",
    ]
    assert (done.code, len(done.verdicts)) == (0, 1)
    assert "- image 89 (89.png): label 9, answered 99" in (done.folder / "summary.md").read_text()
    with pytest.raises(RequestError, match="there is no nowhere"):
        recipes.load(recipe, ["baseline.results=nowhere"])


def test_a_baseline_that_does_not_fit_is_refused_before_anything_runs(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_models.model(1, "none")
    model.card.data = "folder:elsewhere"  # which is not followed: the recipe names the images
    monkeypatch.setattr("rlskit.models.checkpoint.load", lambda *_, **__: model)
    sets = ["gates.linf.max-drop=0.9", "baseline.results=before", "all.data=digits"]
    (attack,) = prepared(recipes.load(recipe).stages[0])
    mine = dataclasses.replace(made_results.PGD, params=attack.params)
    images = dataclasses.replace(made_results.images(4), sha256=small_models.digits(4).sha256)
    ran: list[list[str]] = []

    def go(**fields: Any) -> None:
        about: dict[str, Any] = {
            "data": images,
            "attack": mine,
            "protocol": "transfer",
            "defense": "none",
        }
        write(Path("before/release/linf"), [[1] * 4], **{**about, **fields})

        def execute(arguments: list[str]) -> int:
            ran.append(arguments)
            write(Path(arguments[arguments.index("--out") + 1]), [[1] * 4], **about)
            return 0

        recipes.run(recipe, execute=execute, sets=sets)

    other = dataclasses.replace(mine, params={**mine.params, "eps": 0.03})
    for fields, said in (
        ({"data": dataclasses.replace(images, sha256="z")}, "different images than the baseline"),
        ({"protocol": "eot"}, "measured under transfer, and what it is held against was under eot"),
        ({"attack": other}, "no result of the same attacks"),
    ):
        with pytest.raises(RequestError, match=said):
            go(**fields)
    Path("before/release/linf/per_image.csv").unlink()
    with pytest.raises(RequestError, match="there is no before/release/linf/per_image"):
        recipes.run(recipe, execute=lambda _: pytest.fail("it ran"), sets=sets)
    assert not ran
    go()
    assert len(ran) == 1


def test_a_number_that_its_table_does_not_confirm_is_untrusted(recipe: Path) -> None:
    """Somebody makes a red gate green by hand."""
    done = go(recipe, [1] * 20 + [0] * 80)
    assert done.code == 1
    better = to_json(accuracy([0.9], 100))
    for change in ({"robust": better}, {"robust": {"lower_bound": 0.9}}):
        file = done.folder / "release/linf/results.json"
        kept = file.read_text()
        edit(file.parent, accuracy=change)
        again = recipes.run(recipe, execute=lambda _: pytest.fail("up to date"))
        assert (again.code, again.verdicts[0].verdict) == (4, "untrusted")
        assert "per_image.csv" in again.verdicts[0].sentence
        file.write_text(kept)
    assert recipes.run(recipe, execute=lambda _: pytest.fail("up to date")).code == 1


def test_a_number_that_no_table_has_is_untrusted_where_its_file_was_changed(recipe: Path) -> None:
    sets = ["columns.linf.show=attack_success"]
    done = go(recipe, [1] * 100, 0, *sets)
    assert done.code == 1  # nothing was turned
    edit(done.folder / "release/linf", accuracy={"attack_success": to_json(accuracy([0.9], 100))})
    again = recipes.run(recipe, execute=lambda _: pytest.fail("up to date"), sets=sets)
    assert (again.code, again.verdicts[0].verdict) == (4, "untrusted")
    assert "results.json was changed since it was written" in again.verdicts[0].sentence


@pytest.mark.parametrize(
    "warning",
    ["NO BETTER THAN GUESSING: so.", "TOO FEW IMAGES: so.", "CLEAN ACCURACY UNKNOWN: so.",
     "MISLEADING GRADIENTS: so.", "STOOD STILL: so.", "FAILED SEARCHES: so."],
)  # fmt: skip
def test_what_may_mean_nothing_decides_no_gate(recipe: Path, warning: str) -> None:
    def execute(arguments: list[str]) -> int:
        place = Path(arguments[arguments.index("--out") + 1])
        write(place, [[1] * 4], warnings=(warning,), defense="none")
        return 0

    done = recipes.run(recipe, execute=execute)
    assert (done.code, done.verdicts[0].verdict) == (4, "untrusted")
    assert done.verdicts[0].reason == warning


def test_what_failed_is_told_from_what_one_of_several_draws_errs_on(tmp_path: Path) -> None:
    failed = made_results.result(warnings=("FAILED SEARCHES: 9 of 10.",), defense="none")
    with pytest.raises(UntrustedError, match=r"FAILED SEARCHES: 9 of 10\. No gate can decide"):
        gated([failed], 0.4, tmp_path)  # `--fail-under`
    assert undecidable(replace(failed, defense="rls")) == ""
    both = replace(made_results.PGD, method="worst-case", params={"of": (made_results.PGD,) * 2})
    assert undecidable(replace(failed, attack=both)) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("gates.l2.at-least=0.3", "gates.l2 is no column"),
        ("gates.linf.at-least=40", "at-least is a share such as 0.4"),
        ("gates.linf.at-lest=0.3", "'at-lest' is unknown"),
        ("gates.linf.by=mean", "by is bound or point"),
        ("gates.linf.at-least=nan", "at-least is a share such as 0.4"),
        ("gates.linf.at-least=-0.3", "at-least is a share such as 0.4"),
        ("gates.linf.at-most=1", "at-most = 1 is 100 %, and always holds"),
        ('gates.linf.rows=[["release"]]', "rows is a list of some of release"),
        ("gates.linf.max-drop=0.1", "needs .baseline. with results"),
        ("rows.release.checkpoint=none.safetensors", "there is no checkpoint none"),
        ("rows.release.train.epochs=3", "a row with a checkpoint has no train"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(
    recipe: Path, change: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        recipes.load(recipe, [change])


def test_results_of_one_release_and_a_model_that_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_releases(tmp_path, lost=35, won=5)
    paths = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert command(["compare", *paths, "--max-drop", "0.05"]) == 0
    assert command(["compare", *paths, "--max-drop", "0.01"]) == 1
    assert "asked max drop 1.0 points, 1,000 images: fail" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_gate_is_never_met_unseen(recipe: Path) -> None:
    """A cell that is not measured is undecided; where `only` left it out, it does not decide."""
    sets = ["columns.clean.eval.limit=4", "gates.clean.at-least=0.3"]

    def execute(arguments: list[str]) -> int:
        write(Path(arguments[arguments.index("--out") + 1]), [[1] * 4])
        return 0

    part = recipes.run(recipe, execute=execute, sets=sets, only="release/clean")
    assert {one.column: one.verdict for one in part.verdicts} == {
        "clean": "pass", "linf": "undecided",
    }  # fmt: skip
    assert part.code == 0
    assert [one.sentence for one in part.verdicts if one.column == "linf"] == [
        "release/linf at-least 30.0 %: undecided: not measured"
    ]

    def undermine(arguments: list[str]) -> int:
        """The images become others while the model is attacked."""
        Path("images.npz").write_bytes(b"other")
        return execute(arguments)

    Path("images.npz").write_bytes(b"any")
    both = recipes.run(
        recipe, execute=undermine, sets=[*sets, "columns.linf.attack.data=npz:images.npz"],
        out="other",
    )  # fmt: skip
    assert {one.column: one.verdict for one in both.verdicts}["linf"] == "undecided"
    assert both.code == 1


def test_a_number_that_the_run_lacks_is_untrusted(recipe: Path) -> None:
    done = go(recipe, [1] * 4, 0, "columns.linf.show=robust_8bit")
    assert (done.code, done.verdicts[0].verdict) == (4, "untrusted")
    assert "no number called robust_8bit" in done.verdicts[0].sentence


def test_the_run_is_no_baseline_of_itself_and_a_refused_one_leaves_no_verdict(
    recipe: Path,
) -> None:
    folder = go(recipe, [1] * 4).folder
    for place in (folder, folder / "results.json"):
        with pytest.raises(RequestError, match="against itself"):
            go(recipe, [1] * 4, 0, "gates.linf.max-drop=0.1", f"baseline.results={place}")
    assert (folder / "results.json").is_file()
    Path("empty").mkdir()
    with pytest.raises(RequestError, match="has no release/linf"):
        go(recipe, [1] * 4, 0, "gates.linf.max-drop=0.1", "baseline.results=empty")
    assert not (folder / "results.json").exists()


def test_only_a_baseline_of_one_row_may_call_it_otherwise(recipe: Path) -> None:
    sets = ["gates.linf.max-drop=0.9", "baseline.results=before"]
    write(Path("before/old/linf"), [[1] * 60])
    assert go(recipe, [1] * 60, 0, *sets).code == 0
    write(Path("before/other/clean"), [[1] * 60])  # so that which row it was cannot be told
    with pytest.raises(RequestError, match="has no release/linf"):
        go(recipe, [1] * 60, 0, *sets)


FGSM = dataclasses.replace(made_results.PGD, method="fgsm")


def several(folder: Path, *attacks: AttackFacts) -> Path:
    """A run of several attacks, right on all images under each and all of them."""
    for attack in attacks:
        write(folder / attack.method, [[1] * 60], attack=attack)
    found = [read_results(folder / one.method / "results.json")[0] for one in attacks]
    worst = dataclasses.replace(FGSM, method="worst-case", params={"of": attacks})
    found.append(dataclasses.replace(found[0], attack=worst))
    (folder / "results.json").write_text(dump(found))
    return folder


def test_a_drop_is_of_the_same_attacks(recipe: Path) -> None:
    """What two releases were both attacked with may be the least of it."""
    stronger = dataclasses.replace(made_results.PGD, params={"eps": 0.02, "steps": 99})
    several(Path("before/release/linf"), stronger, FGSM)
    sets = ["gates.linf.max-drop=0.9", "baseline.results=before"]

    def execute(arguments: list[str]) -> int:
        several(Path(arguments[arguments.index("--out") + 1]), made_results.PGD, FGSM)
        return 0

    with pytest.raises(RequestError, match="no result of the same attacks"):
        recipes.run(recipe, execute=execute, sets=sets)
    drop = ["--max-drop", "0.9"]
    here = str(next(Path("runs").glob("*/release/linf")))
    assert command(["compare", "before/release/linf", here, *drop]) == 2
    assert command(["compare", here, here, *drop]) == 0


def test_a_drop_is_of_the_same_protocol(tmp_path: Path) -> None:
    """Less is left under `known` than under another protocol, so that nothing seems lost."""
    for name, protocol in (("known", "known"), ("eot", "eot")):
        write(tmp_path / name, [[1] * 60], protocol=protocol)
    found = compare(tmp_path / "known", tmp_path / "eot")
    with pytest.raises(RequestError, match="the protocols', no drop"):
        drops(found, 0.9)


def test_a_drop_is_of_as_many_draws(recipe: Path) -> None:
    """More draws of a defense make up for a model that is worse."""
    sets = ["gates.linf.max-drop=0.9", "baseline.results=before"]
    write(Path("before/release/linf"), [[1] * 60], n_samples=1)
    with pytest.raises(RequestError, match="10 draws answered together, in the baseline's 1:"):
        go(recipe, [1] * 60, 0, *sets)
    write(Path("before/release/linf"), [[1] * 60], n_samples=1, defense="none")
    assert go(recipe, [1] * 60, 0, *sets).code == 0


def test_a_baseline_is_of_one_model_a_row(recipe: Path) -> None:
    """What a run of an earlier model left stands beside what the later one measured."""
    folder = go(recipe, [1] * 4).folder
    write(folder / ".rlskit-new/release/linf", [[1] * 4])  # a stage that was interrupted
    assert recipes.export_baseline(folder, "one.zip") == 1
    other = CheckpointFacts(path=None, sha256="z")
    write(folder / "release/clean", [[1] * 4], checkpoint=other)  # of a column that was removed
    assert recipes.export_baseline(folder, "same.zip") == 1
    assert Path("same.zip").read_bytes() == Path("one.zip").read_bytes()
    document = json.loads((folder / "results.json").read_text())
    document["rows"][0]["cells"].append({"column": "clean", "result": {}})
    (folder / "results.json").write_text(json.dumps(document))
    with pytest.raises(RequestError, match="measured on different models"):
        recipes.export_baseline(folder, "two.zip")
