"""The reports of a run: what they say is what its files hold, and nothing of those is obeyed."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import made_reports
from made_reports import EPS, cell, recipe, result, verdict, write
from rlskit.cli import run as command
from rlskit.data import load
from rlskit.errors import RequestError
from rlskit.recipes import StageError
from rlskit.report import REPORTS, Origin, github_annotations, read_reported, report_runs
from rlskit.report.curves import attacked_panels, budget_panels, sample_panels
from rlskit.report.gallery import gallery
from rlskit.report.honesty import honest_numbers, said_budget, without_adaptive
from rlskit.report.job_summary import escaped, job_summary
from rlskit.report.junit import junit
from rlskit.report.outcome import headline, judgements, overall
from rlskit.report.per_class import class_tables, guessing
from rlskit.report.webpage import SECTIONS
from test_gates import GATED, go

HOSTILE = (
    "</script><script>alert(1)</script>\"'><img src=http://x.example/ onerror=alert(2)>\x00\u202e"
)


class Page(HTMLParser):
    """Elements, addresses and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.heads: list[str | None] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.lines: list[list[str]] = []
        self.data: dict[str, str] = {}
        self._into, self._cell = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        self.addresses += [found[key] or "" for key in ("src", "href", "action") if key in found]
        self.handlers += [name for name in found if name.startswith("on")]
        self._into = found.get("id") or "" if tag == "script" else ""
        if tag == "h2":
            self.heads.append(found.get("id"))
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.lines[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._into = ""
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._into:
            self.data[self._into] = self.data.get(self._into, "") + data
        elif self._cell:
            self.lines[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with something for every section, and its reports."""
    place = made_reports.whole(tmp_path_factory.mktemp("reports") / "run")
    report_runs([place], place, data=f"npz:{place.parent / 'images.npz'}")
    return place


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text("utf-8"))


def test_the_sections_answer_in_their_order(page: Page) -> None:
    assert page.heads == [name for name in SECTIONS if name != "audit"]


def test_the_page_shows_the_numbers_of_the_document(folder: Path, page: Page) -> None:
    document = json.loads((folder / "results.json").read_text())
    shown = {line[1]: line for line in page.lines if line[0] == "random layers" and len(line) == 9}
    for one in document["rows"][0]["cells"]:
        line = shown[one["label"]]
        if one["show"] == "kappa":
            assert line[2:4] == ["0.625", "0.500 – 0.750"]
            continue
        found = one["result"]["accuracy"][one["show"]]
        low, high = found["ci95"]
        interval = f"{100 * low:.1f} – {100 * high:.1f}"
        assert line[2:5] == [f"{100 * found['mean']:.1f} %", interval, str(found["n"])]
        assert line[8] == ("" if one["paper"] is None else "51.5")
    assert ["undefended", "pgd", "not measured"] in [x[:3] for x in page.lines]
    assert ["bank 0", "20", "50.0"] in page.lines
    assert ["by none", "8", "20.0"] in page.lines
    assert ["0", "1.00", "0.12"] in page.lines  # of the transfer matrix
    assert ["1", "0.38", "–"] in page.lines


def test_the_page_asks_nobody_for_anything(page: Page) -> None:
    inside = [one for one in page.addresses if one.startswith(("#", "data:"))]
    assert page.addresses == inside
    assert page.tags["script"] == 2
    assert page.tags["iframe"] + page.tags["object"] + page.tags["form"] == 0
    assert page.handlers == []


def test_texts_of_files_are_texts(tmp_path: Path) -> None:
    place = made_reports.whole(tmp_path / "run", names=HOSTILE, label=HOSTILE)
    document = json.loads((place / "results.json").read_text())
    document |= {"title": HOSTILE, "commands": [HOSTILE]}
    document["rows"][0]["cells"][1]["result"]["warnings"] = [HOSTILE]
    document["gates"][3]["reason"] = HOSTILE
    write(place, document)
    text = report_runs([place], place).read_text("utf-8")
    hostile = Page(text)
    assert (hostile.tags["script"], hostile.handlers) == (2, [])
    assert all(one.startswith(("#", "data:")) for one in hostile.addresses)
    assert "\x00" not in text
    assert "\u202e" not in text
    images = json.loads(hostile.data["pictures"])["images"]
    assert images[0]["path"].startswith("</script><script>alert(1)</script>")  # as it was, but text
    cases = ElementTree.fromstring((place / "junit.xml").read_text("utf-8"))
    assert (cases.get("name") or "").startswith("</script><script>")
    summary = (place / "summary.md").read_text("utf-8")
    assert not re.search(r"(?<!\\)[<|]script", summary)
    assert escaped("![x](http://y) | `a`\n- @me") == r"\!\[x\](http://y) \| \`a\`\\n- \@me"


def test_junit_counts_by_hand(folder: Path) -> None:
    """Ten cells and four gates of one row, one cell and one gate of the other."""
    root = ElementTree.fromstring((folder / "junit.xml").read_text("utf-8"))
    suites = {suite.get("name"): suite for suite in root}
    names = ("tests", "failures", "errors", "skipped")
    assert [suites["rls"].get(name) for name in names] == ["14", "3", "0", "0"]
    assert [suites["none"].get(name) for name in names] == ["2", "0", "1", "1"]
    assert [root.get(name) for name in names[:3]] == ["16", "3", "1"]
    failed = root.findall(".//failure")
    assert [one.get("type") for one in failed] == ["fail", "undecided", "fail"]
    assert failed[1].text == verdict("undecided").sentence
    assert "60.0 %" in verdict("undecided").sentence
    (error,) = root.findall(".//error")
    assert "it stood still" in (error.get("message") or "")


def test_junit_has_the_shape_that_jenkins_and_gitlab_read(folder: Path) -> None:
    """The rules of the schema of Jenkins' xUnit plugin, as far as it has any."""
    attributes = {
        "testsuites": {"name", "time", "tests", "failures", "disabled", "errors"},
        "testsuite": {"name", "tests", "failures", "errors", "time", "skipped", "disabled",
                      "timestamp", "hostname", "id", "package"},
        "testcase": {"name", "classname", "time", "assertions", "status"},
        "failure": {"message", "type"}, "error": {"message", "type"}, "skipped": {"message"},
        "system-out": set(),
    }  # fmt: skip
    inside = {
        "testsuites": {"testsuite"},
        "testsuite": {"properties", "testcase", "system-out", "system-err"},
        "testcase": {"skipped", "error", "failure", "system-out", "system-err"},
    }
    required = {"testsuite": {"name", "tests"}, "testcase": {"name", "classname"}}
    root = ElementTree.fromstring((folder / "junit.xml").read_text("utf-8"))
    assert root.tag == "testsuites"
    for element in root.iter():
        assert element.attrib.keys() <= attributes[element.tag]
        assert required.get(element.tag, set()) <= element.attrib.keys()
        assert {child.tag for child in element} <= inside.get(element.tag, set())
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(names) == len(set(names))


def test_the_summary_begins_with_the_verdicts_and_ends_with_every_number(folder: Path) -> None:
    text = (folder / "summary.md").read_text("utf-8")
    lines = text.splitlines()
    assert (
        lines[2] == "**The numbers cannot be trusted (1 untrusted, 2 fail, 1 undecided, 1 pass). "
        "Not measured: 1 of the table's cells.**"
    )
    heads = [line for line in lines if line.startswith("#")]
    assert heads == [
        "## two models",
        "### Against the baseline",
        "### The honest number",
        "### Measured",
    ]
    change = "| rls | eot (robust) | -5.0 points | -8.0 – -2.5 | at most 2.0 lost | 40 | ❌ fail |"
    assert change in lines
    high = "| random layers | high | multi n=5 | 10 | robust 50.0 % | 35.2 – 64.8 | 40 | 51.5 |"
    assert high in lines
    assert "| undefended | pgd |  |  | not measured |  |  |  |" in lines
    assert sum(line.startswith("| ✅ pass | ") for line in lines) == 1


def test_a_long_summary_is_cut_at_a_line_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlskit.report.job_summary.LARGEST", 500)
    text = job_summary(read_reported(folder))
    assert len(text.encode()) < 600
    assert text.endswith("see report.html.\n")


def test_the_honest_number_is_the_lowest_and_says_what_flatters(folder: Path) -> None:
    found = {one.threat: one for one in honest_numbers(read_reported(folder).rows)}
    one = found["linf eps 8/255, 40 images of digits"]
    assert [round(40 * r.accuracy["robust"].mean) for r in one.numbers] == [8, 12, 20, 24, 4]
    assert one.sentence == (
        "20.0 % is the lowest number that was measured (adaptive n=10). pgd, transfer n=1 left "
        "60.0 %: it flatters the model by 40.0 points. Of the 30.0 points that eot n=5 leaves, "
        "20.0 are hidden and 10.0 robust."
    )
    weak = found["linf eps 2/255, 40 images of digits"]
    assert (weak.sentence, weak.said) == (
        "75.0 % is the lowest number that was measured (pgd, multi n=5).",
        "",
    )
    note = without_adaptive(list(found.values()))
    assert "was not measured for random layers (linf eps 8/255, 12 images of npz:" in note
    assert "random layers (linf eps 2/255, 40 images of digits): what is" in note
    assert without_adaptive([one]) == ""
    assert "not measured: what is" in without_adaptive([weak])


def test_saved_images_of_an_adaptive_attack_are_no_adaptive_number(tmp_path: Path) -> None:
    own = result(4, 2, 4, protocol="adaptive")
    made = replace(own, data=replace(own.data, adversarial_sha256="maybe of another model"))
    row = {"name": "a", "label": "a", "cells": [cell("eval", made)]}
    (found,) = honest_numbers(read_reported(write(tmp_path, recipe([row], []))).rows)
    assert "adaptive n=5 on saved images)." in found.sentence
    assert (found.by_protocol, without_adaptive([found])[:12]) == ({}, "The adaptive")


def test_a_targeted_attack_gives_no_honest_number(tmp_path: Path) -> None:
    aimed = result(4, 2, 4)
    aimed = replace(aimed, accuracy={**aimed.accuracy, "target_reached": aimed.accuracy["robust"]})
    row = {"name": "a", "label": "a", "cells": [cell("pgd", aimed)]}
    rows = read_reported(write(tmp_path, recipe([row], []))).rows
    assert honest_numbers(rows) == ()


def test_lines_of_a_chart(folder: Path) -> None:
    rows = read_reported(folder).rows
    (budget,) = budget_panels(rows)
    (line,) = budget.lines
    assert [point.x for point in line.points] == [0, 2 / 255, EPS]
    assert [round(40 * point.accuracy.mean) for point in line.points] == [36, 30, 20]
    (attacked,) = attacked_panels(rows)  # transfer and multi; eot is another question
    (line,) = attacked.lines
    assert [(point.x, round(40 * point.accuracy.mean)) for point in line.points] == [
        (1, 24), (5, 20),
    ]  # fmt: skip
    (samples,) = sample_panels(rows)
    assert [(p.x, round(40 * p.accuracy.mean)) for p in samples.lines[0].points] == [
        (1, 32),
        (10, 36),
    ]
    assert [said_budget(eps) for eps in (EPS, 0.1, 1.0, 0.5 / 255)] == [
        "8/255",
        "0.1",
        "1",
        "0.001961",
    ]


def test_rows_of_one_model_make_one_line_of_attacked_draws(tmp_path: Path) -> None:
    found = {n: result(36, right, 40, n_attacked=n) for n, right in ((1, 30), (5, 20), (10, 10))}
    rows = [
        {"name": f"rls{n}", "label": f"n={n}", "cells": [cell("pgd", one)]}
        for n, one in found.items()
    ]
    (panel,) = attacked_panels(read_reported(write(tmp_path, recipe(rows, []))).rows)
    (line,) = panel.lines
    assert [(point.x, point.accuracy.mean) for point in line.points] == [
        (1, 0.75),
        (5, 0.5),
        (10, 0.25),
    ]


def test_classes_come_from_the_table_and_the_worst_stands_first(folder: Path) -> None:
    """Images 0, 3, 6, 9 of twelve are broken: labels 0, 3, 2 and 1."""
    rows = read_reported(folder).rows
    (table,) = class_tables(rows)
    assert sorted(share.label for share in table.shares) == [0, 1, 2, 3]
    for share in table.shares:
        assert (share.images, share.right["clean"]) == (3, 1.0)
        assert share.right["robust"] == pytest.approx(2 / 3)
    assert set(guessing(rows).values()) == {0.25}


def pixels(picture: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))


def test_pictures_are_the_images(folder: Path) -> None:
    found = gallery(read_reported(folder).rows, Origin(f"npz:{folder.parent / 'images.npz'}"))
    (sheet,) = found.sheets
    before = load(f"npz:{folder.parent / 'images.npz'}").images(range(12))
    stored = pixels(found.pictures[sheet["clean"]])
    attacked = pixels(found.pictures[sheet["adversarial"]]).astype(int)
    change = pixels(found.pictures[sheet["difference"]]).astype(int)
    for image in found.images:
        top = image["place"] // sheet["columns"] * 6
        left = image["place"] % sheet["columns"] * 5
        place = slice(top, top + 6), slice(left, left + 5)
        own = (before[image["index"], 0] * 255).round().int().numpy()
        assert (stored[place] == own).all()
        moved = attacked[place] - own
        assert set(np.unique(np.abs(moved[(own > 8) & (own < 247)]))) == {8}
        assert (np.sign(change[place] - 127.5)[moved != 0] == np.sign(moved)[moved != 0]).all()
        assert image["factor"] == pytest.approx(0.5 / EPS, abs=0.06)
        assert image["state"] == ("broken" if image["index"] % 3 == 0 else "held")
    assert found.notes == ()


def test_a_path_in_a_file_is_not_followed_and_other_images_are_not_believed(
    folder: Path, tmp_path: Path
) -> None:
    rows = read_reported(folder).rows
    np.savez(
        tmp_path / "other.npz", x_test=np.zeros((12, 1, 6, 5), np.uint8), y_test=np.arange(12) % 4
    )
    for origin in (Origin(), Origin(f"npz:{tmp_path / 'other.npz'}")):
        found = gallery(rows, origin)
        assert found.sheets[0]["clean"] is None
        assert "not at hand" in found.notes[0]
    assert gallery(rows, Origin(follow=True)).sheets[0]["clean"] is not None


def test_a_thousand_images_stay_under_fifteen_megabytes(tmp_path: Path) -> None:
    saved = made_reports.attacked_images(
        tmp_path / "run" / "a" / "pgd", tmp_path / "x.npz", 1000, (3, 32, 32)
    )
    row = {"name": "a", "label": "a", "cells": [cell("pgd", saved)]}
    place = write(tmp_path / "run", recipe([row], []))
    page = report_runs([place], tmp_path, data=f"npz:{tmp_path / 'x.npz'}")
    assert page.stat().st_size < 15e6
    found = json.loads(Page(page.read_text()).data["pictures"])
    assert (len(found["images"]), found["sheets"][0]["width"]) == (1000, 32)


def test_large_images_are_thumbnails_and_the_page_says_so(tmp_path: Path) -> None:
    saved = made_reports.attacked_images(
        tmp_path / "run" / "a" / "pgd", tmp_path / "x.npz", 3, (3, 200, 100)
    )
    row = {"name": "a", "label": "a", "cells": [cell("pgd", saved)]}
    found = gallery(read_reported(write(tmp_path / "run", recipe([row], []))).rows, Origin())
    assert (found.sheets[0]["width"], found.sheets[0]["height"]) == (48, 96)
    assert found.notes[0] == "The pictures are thumbnails: the images have 200 x 100 pixels."


def test_names_of_rows_lead_nowhere_else(tmp_path: Path) -> None:
    saved = made_reports.attacked_images(
        tmp_path / "elsewhere" / "pgd", tmp_path / "x.npz", 4, (1, 4, 4)
    )
    row = {"name": "../elsewhere", "label": "a", "cells": [cell("pgd", saved)]}
    found = read_reported(write(tmp_path / "run", recipe([row], [])))
    assert found.rows[0].cells[0].folder is None


def test_no_gate_is_no_pass(tmp_path: Path) -> None:
    row = {"name": "a", "label": "a", "cells": [cell("pgd", result(4, 4, 4))]}
    reported = read_reported(write(tmp_path, recipe([row], [])))
    assert (judgements(reported), overall(judgements(reported))) == ((), None)
    assert headline(reported) == "No gate was set: nothing was asked of these numbers."
    row["cells"] = [cell("pgd", None)]
    reported = read_reported(write(tmp_path, recipe([row], [verdict("pass")])))
    assert headline(reported) == "It passed (1 pass). Not measured: 1 of the table's cells."


def test_plain_runs_and_several_of_them(folder: Path, tmp_path: Path) -> None:
    """A run of attack beside a recipe's: rows are led by their runs' names."""
    page = Page(report_runs([folder, folder / "rls" / "pgd"], tmp_path / "both").read_text("utf-8"))
    firsts = {line[0] for line in page.lines if len(line) == 9}
    assert firsts >= {"run: random layers", "run: undefended", "pgd: rls · own:tiny"}
    root = ElementTree.fromstring((tmp_path / "both" / "junit.xml").read_text("utf-8"))
    assert [suite.get("name") for suite in root] == ["run/rls", "run/none", "pgd/rls · own:tiny"]
    with pytest.raises(RequestError, match="exists already"):
        report_runs([folder], tmp_path / "both")


def test_annotations_are_one_line_each_and_nothing_in_them_is_a_command() -> None:
    passed, failed = verdict("pass"), verdict("untrusted", reason="50 %\n::error::x")
    first, second = github_annotations([passed, failed])
    said = passed.sentence.replace("%", "%25")
    assert first == f"::notice title=rlskit%3A pass%3A rls/pgd at-least::{said}"
    assert second.startswith("::error title=rlskit%3A untrusted%3A rls/pgd at-least::")
    assert "\n" not in second
    assert second.endswith(r"50 %25\n::error::x")


def test_a_run_leaves_its_reports_also_where_a_gate_is_not_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(b"any")
    Path("rlskit.toml").write_text(GATED)
    done = go(Path("rlskit.toml"), [1, 0, 1, 0])
    assert done.code == 1
    assert {file.name for file in done.folder.iterdir()} >= set(REPORTS)
    root = ElementTree.fromstring((done.folder / "junit.xml").read_text("utf-8"))
    assert [one.get("type") for one in root.iter("failure")] == ["undecided"]
    page = (done.folder / "report.html").read_text("utf-8")
    assert "rlskit attack model.safetensors --method pgd" in page

    assert command(["run", "rlskit.toml", "--output-format", "github"]) == 1
    captured = capsys.readouterr()
    assert "\n::error title=rlskit%3A undecided%3A release/linf at-least::" in captured.out
    assert captured.err.endswith(f"report: {done.folder / 'report.html'}\n")
    assert command(["run", "rlskit.toml", "--output-format", "gitlab"]) == 2
    assert "--output-format is text or github" in capsys.readouterr().err

    with pytest.raises(StageError):  # what is there would speak of another run
        go(Path("rlskit.toml"), [], 3, "columns.linf.attack.eps=0.03")
    assert not {file.name for file in done.folder.iterdir()} & set(REPORTS)


def test_the_command_writes_the_reports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["report", str(folder), "-o", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'again' / 'report.html'}\n"
    assert {file.name for file in (tmp_path / "again").iterdir()} == set(REPORTS)
    assert junit(read_reported(folder)) == (tmp_path / "again" / "junit.xml").read_text("utf-8")
    assert command(["report", str(folder), "-o", str(tmp_path / "again")]) == 2
    assert command(["report", str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    for name in ("report", "card"):
        for place in ("file", "file/below"):
            assert command([name, str(folder), "-o", str(tmp_path / place)]) == 2
            assert f"{place} is not a folder, nor can it become one" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
