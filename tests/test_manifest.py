"""Images that a table names, and classes under the names that a model has for them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rlskit
from rlskit.cli import run
from rlskit.conversion import convert
from rlskit.data import Data, load
from rlskit.errors import RequestError
from rlskit.pixels import Pixels
from small_models import digits

PIXELS = Pixels(1, 4, 4, (0.0,), (1.0,))


def table(file: Path, *rows: Sequence[object], head: Sequence[str] = ("path", "label")) -> str:
    """Write a manifest, and beside it each image, gray of ten times its row."""
    (file.parent / "im").mkdir(exist_ok=True)
    with file.open("w", newline="") as text:
        csv.writer(text, delimiter="\t" if file.suffix == ".tsv" else ",").writerows([head, *rows])
    for number, row in enumerate(rows):
        Image.new("L", (4, 4), 10 * number).save(file.parent / str(row[0]))
    return f"manifest:{file}"


def lines(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def shades(data: Data) -> list[int]:
    return (255 * data.images(range(len(data)))[:, 0, 0, 0]).round().int().tolist()


@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
def test_a_row_is_an_image_and_its_label(name: str, tmp_path: Path) -> None:
    spec = table(tmp_path / name, ("im/b.png", 2), ("im/a.png", 0), ("im/c.png", 11))
    data = load(spec)
    assert (data.split, data.labels.tolist(), shades(data)) == ("all", [2, 0, 11], [0, 10, 20])
    assert data.class_names == tuple(map(str, range(12)))
    assert data.paths == ("im/b.png", "im/a.png", "im/c.png")


def test_names_are_numbered_in_sorted_order_over_all_splits(tmp_path: Path) -> None:
    rows = [("im/1.png", "dog", "val"), ("im/2.png", "ape", "train"), ("im/3.png", "cat", "val")]
    spec = table(tmp_path / "m.csv", *rows, head=("path", "label", "split"))
    data = load(spec, "test")
    assert (data.split, data.class_names) == ("val", ("ape", "cat", "dog"))
    assert (data.labels.tolist(), shades(data)) == ([2, 1], [0, 20])
    assert load(spec, "train").labels.tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("im/a.png", "0.0")], "the label '0.0'; a label is a name, or a whole number from 0 on"),
        ([("im/a.png", "-1")], "the label '-1'"),
        ([("im/a.png", "")], "the label ''"),
        ([("im/a.png", 10**9)], "the label 1000000000, beyond reason"),
        ([("im/a.png", 0), ("im/a.png", 1)], "names im/a.png more than once"),
        ([("im/a.png", 0, 3)], "line 2 has 3 fields, not 2"),
    ],
)
def test_rows_that_mean_nothing_are_refused(
    rows: list[tuple[object, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        load(table(tmp_path / "m.csv", *rows))


def test_tables_that_are_none_say_what_they_have(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="lacks the column path; it has file, label"):
        load(table(tmp_path / "m.csv", ("im/a.png", 0), head=("file", "label")))
    with pytest.raises(RequestError, match=r"did you mean manifest:.*m\.csv\?"):
        load(str(tmp_path / "m.csv"))
    (tmp_path / "m.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(RequestError, match="cannot be read as a table"):
        load(f"manifest:{tmp_path}/m.csv")


def test_a_missing_image_is_named_or_counted(tmp_path: Path) -> None:
    spec = table(tmp_path / "m.csv", ("im/a.png", 0), ("im/b.png", 1))
    (tmp_path / "im/a.png").unlink()
    with pytest.raises(RequestError, match=r"1 of 2 images.*im/a\.png is not there"):
        load(spec)
    left = load(spec, skip_bad=True)
    assert (left.skipped, left.labels.tolist(), left.index.tolist()) == (1, [1], [1])


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    expected = load(table(tmp_path / "m.csv", ("im/a.png", 3), ("im/b.png", 1)))
    columns = {"path": ["im/a.png", "im/b.png"], "label": [3, 1], "weight": [0.5, 1.0]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    assert load(f"manifest:{tmp_path}/m.parquet").sha256 == expected.sha256


def named(*names: str, labels: Sequence[int]) -> Data:
    from rlskit.data.arrays import ArrayImages

    images = torch.zeros(len(labels), 1, 4, 4)
    return Data("d", "test", names, torch.tensor(labels), ArrayImages("d", images))


def test_classes_are_those_that_the_model_calls_so() -> None:
    data = named("cats", "dogs", "kittens", labels=[0, 1, 2, 1])
    head = ("fish", "dog", "cat")
    own = {"cats": "cat", "dogs": "Dog", "kittens": "cat", "unseen": "fish"}
    assert data.called(own).adapted(PIXELS, 3, head).labels.tolist() == [2, 1, 2, 1]
    numbers = named("0", "1", labels=[1, 0])
    assert numbers.called(("dog", "cat", "cow")[:2]).adapted(PIXELS, 3, head).labels.tolist() == [
        2, 1,
    ]  # fmt: skip
    ten = tuple(map(str, range(10)))
    assert numbers.called(ten).adapted(PIXELS, 10).labels.tolist() == [1, 0]


def test_no_class_is_guessed(tmp_path: Path) -> None:
    data = named("cats", "dogs", labels=[0, 1])
    with pytest.raises(RequestError, match="says nothing of 'dogs'"):
        data.called({"cats": "cat"})
    with pytest.raises(RequestError, match="a line such as cats = NAME each"):
        data.called(("cat", "dog"))
    known = data.called({"cats": "cat", "dogs": "dog"})
    with pytest.raises(RequestError, match="knows none of them; convert it with `classes`"):
        known.adapted(PIXELS, 2)
    with pytest.raises(RequestError, match="'dog' is none of its 2"):
        known.adapted(PIXELS, 2, ("cat", "cow"))
    numbers = named("0", "1", "2", labels=[1, 2])
    with pytest.raises(RequestError, match="has 2 names, but d has labels up to 2"):
        numbers.called(("cat", "dog"))
    file = tmp_path / "classes.txt"
    file.write_text("cats = cat\ncats = dog\n")
    with pytest.raises(RequestError, match="one line OWN = NAME for each class"):
        load("digits", classes=file)


def test_labels_counted_from_one_are_noticed(tmp_path: Path) -> None:
    data = load(table(tmp_path / "m.csv", ("im/a.png", 1), ("im/b.png", 2)))
    with pytest.raises(RequestError, match=r"has 3 classes .*counted from 1"):
        data.adapted(PIXELS, 2)


def test_digits_in_a_table_are_the_digits(tmp_path: Path) -> None:
    """Some of the digits, called by words: a model is shown what it would be shown of them all."""
    data = digits(30)
    few = [i for i in range(30) if data.labels[i] != 7]
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    rows = [(f"im/{i}.png", words[int(data.labels[i])]) for i in few]
    spec = table(tmp_path / "m.csv", *rows)
    for i, (path, _) in zip(few, rows, strict=True):
        pixels = (255 * data.images([i])[0, 0]).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / path)
    (tmp_path / "names.txt").write_text("".join(f"{w} = {i}\n" for i, w in enumerate(words)))
    shown = load(spec, classes=tmp_path / "names.txt").adapted(
        Pixels(1, 8, 8, (0.0,), (1.0,)), 10, tuple(map(str, range(10)))
    )
    assert torch.equal(shown.labels, data.labels[few])
    torch.testing.assert_close(shown.images(range(len(few))), data.images(few), atol=2e-3, rtol=0)


@pytest.mark.parametrize("methods", [("fgsm",), ("fgsm", "pgd")])
def test_the_table_of_a_run_goes_where_it_is_wanted(methods: Any, tmp_path: Path) -> None:
    checkpoint, out, to = (str(tmp_path / n) for n in ("m.safetensors", "run", "t.csv"))
    model = convert("test_resnet", defense="none", data="digits")
    model.card.pretrained = "a test"
    rlskit.save(model, checkpoint)
    command = ["attack", checkpoint, "--method", ",".join(methods), "--limit", "4", "-q"]
    assert run([*command, "--eps", "0.1", "-o", out, "--per-image", to]) == 0
    own = sorted(Path(out).rglob("per_image.csv"))
    rows = [row for file in own for row in lines(file)]
    found = lines(Path(to))
    assert len(found) == 4 * len(methods)
    assert [row.pop("attack", "fgsm-0.1").partition("-")[0] for row in found] == [
        one for one in methods for _ in range(4)
    ]
    assert sorted(map(str, found)) == sorted(map(str, rows))


def test_a_table_that_cannot_be_is_refused_before_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["attack", "none.safetensors", "--per-image", str(tmp_path / "t.txt")]) == 2
    assert "t.txt must end in .csv or .parquet" in capfd.readouterr().err
