"""Which data a model was made for, and which it is scored on: by content and names, not by path."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import small_models
from rlskit import attack, compare, evaluate, load_data, train
from rlskit.data import spread
from rlskit.errors import RequestError
from rlskit.evaluation import subject_of
from rlskit.models.banks import BankedModel

NAMES = tuple(f"class {letter}" for letter in "abcdefghij")


def photos(root: Path, names: tuple[str, ...] = NAMES, each: int = 3) -> str:
    """Digits in folders of other names, as `folder:` data."""
    digits = small_models.digits(360)
    for name in names:
        number = NAMES.index(name)
        (root / name).mkdir(parents=True)
        chosen = (digits.labels == number).nonzero().flatten()[:each]
        for i, image in enumerate(digits.images(chosen)):
            Image.fromarray((image[0].numpy() * 255).astype(np.uint8)).save(
                root / name / f"{i}.png"
            )
    return f"folder:{root}"


@pytest.fixture(scope="module")
def model() -> BankedModel:
    return small_models.trained("none", 1)


def made_for(model: BankedModel, **fields: Any) -> BankedModel:
    card = dataclasses.replace(model.card, training=[], pretrained="x", **fields)
    return BankedModel([model.banks[0]], model.partition, card)


def test_a_moved_folder_is_the_same_data(model: BankedModel, tmp_path: Path) -> None:
    before, after = photos(tmp_path / "before"), photos(tmp_path / "after")
    own = made_for(model, data=before, class_names=NAMES)
    (first,), (second,) = evaluate(own, before), evaluate(own, after)
    assert first.warnings == second.warnings == ()
    assert first.accuracy == second.accuracy
    other = made_for(model, data=before, class_names=tuple("abcdefghij"))
    assert evaluate(other, after)[0].warnings == (
        f"The model was made for {before}, but this is {after}.",
    )
    unsaid = made_for(model, data="", class_names=tuple("abcdefghij"))
    assert (
        "(class a, class b, class c, ...) are called otherwise"
        in (evaluate(unsaid, after)[0].warnings[0])
    )


def test_a_moved_file_is_the_same_data(model: BankedModel, tmp_path: Path) -> None:
    digits = small_models.digits(40)
    for name in ("a/d.npz", "b/d.npz", "b/e.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / name, x_test=digits.images(range(40)).numpy(), y_test=digits.labels)
    own = made_for(model, data=f"npz:{tmp_path}/a/d.npz", class_names=tuple("0123456789"))
    assert evaluate(own, f"npz:{tmp_path}/b/d.npz")[0].warnings == ()
    assert "but this is" in evaluate(own, f"npz:{tmp_path}/b/e.npz")[0].warnings[0]


def test_some_of_the_classes_keep_their_numbers(model: BankedModel, tmp_path: Path) -> None:
    some = photos(tmp_path / "some", (NAMES[7], NAMES[2]))
    own = made_for(model, class_names=NAMES)
    data = load_data(some).adapted(own.card.pixels, 10, own.card.names)
    assert data.labels.tolist() == [2] * 3 + [7] * 3
    (result,) = evaluate(own, some)
    assert result.accuracy["clean"].mean > 0.6  # with the numbers 0 and 1 it would be 0
    with pytest.raises(RequestError, match="has 2 classes, but the checkpoint has 10"):
        evaluate(made_for(model), some)
    with pytest.raises(RequestError, match="'class h' is none of its 10"):
        evaluate(made_for(model, class_names=(*NAMES[:7], "x", "y", "z")), some)
    for trained_on in (some, "digits"):
        small = made_for(model, class_names=NAMES)
        train(small, trained_on, epochs=1, holdout=0, batch_size=6)
        named = NAMES if trained_on == some else tuple("0123456789")
        assert (small.card.class_names, small.card.assumed) == (named, ())


def test_removing_a_bad_file_keeps_the_blocks(model: BankedModel, tmp_path: Path) -> None:
    spec, out = photos(tmp_path / "photos"), tmp_path / "run"
    bad = tmp_path / "photos" / NAMES[1] / "0.png"
    bad.write_bytes(b"torn")
    own = made_for(model, class_names=NAMES)
    request: dict[str, Any] = {"method": "fgsm", "eps": 0.1, "batch_size": 10, "out": out}
    with pytest.raises(RequestError, match="1 of 30 images"):
        attack(own, spec, **request)

    class StopError(Exception):
        pass

    def stop(step: str, done: int, total: int, **facts: float) -> None:
        if done:
            raise StopError

    with pytest.raises(StopError):
        attack(own, load_data(spec, skip_bad=True), **request, progress=stop)
    block = out / "blocks" / "0-0.safetensors"
    written = block.stat().st_mtime_ns
    bad.unlink()
    result = attack(own, spec, **request)
    assert block.stat().st_mtime_ns == written
    assert (result.data.n, result.data.skipped) == (29, None)


def test_images_that_were_left_out_are_counted(model: BankedModel, tmp_path: Path) -> None:
    spec = photos(tmp_path / "photos")
    (tmp_path / "photos" / NAMES[1] / "0.png").write_bytes(b"torn")
    own = made_for(model, class_names=NAMES)
    (result,) = evaluate(own, load_data(spec, skip_bad=True))
    assert (result.data.n, result.data.skipped) == (29, 1)
    assert result.warnings == ("SKIPPED: 1 image could not be read and counts in no number.",)


def test_images_keep_their_index_and_path(model: BankedModel, tmp_path: Path) -> None:
    """Through what is left out, `--limit` and saving, although its position decides the draws."""
    spec = photos(tmp_path / "photos")
    (tmp_path / "photos" / NAMES[1] / "0.png").write_bytes(b"torn")
    own = made_for(model, class_names=NAMES)
    whole, some = load_data(spec, skip_bad=True), load_data(spec, skip_bad=True, limit=7)
    assert whole.index.tolist() == [*range(3), *range(4, 30)]
    assert (
        whole.limited(9).limited(4).index.tolist()
        == whole.index[spread(29, 9)][spread(9, 4)].tolist()
    )
    request: dict[str, Any] = {"method": "fgsm", "eps": 0.1, "save_adversarial": True}
    attack(own, some, **request, out=tmp_path / "run")
    file = tmp_path / "run" / "adversarial.safetensors"
    evaluate(own, adversarial=file, out=tmp_path / "again")
    for table in (tmp_path / name / "per_image.csv" for name in ("run", "again")):
        rows = list(csv.DictReader(table.read_text().splitlines()))
        assert [int(row["index"]) for row in rows] == some.index.tolist()
        assert [row["path"] for row in rows] == [
            f"{NAMES[i // 3]}/{i % 3}.png" for i in some.index.tolist()
        ]
    assert len(rows) == 7
    plain = dataclasses.replace(some, indices=None, paths=None)
    (first,), (second,) = (evaluate(own, one, per_example=True) for one in (some, plain))
    assert first.accuracy == second.accuracy


def test_runs_on_other_parts_of_the_data_are_told_apart(model: BankedModel, tmp_path: Path) -> None:
    zeros = np.zeros((8, 8, 8), np.float32)
    np.savez(tmp_path / "d.npz", x_test=zeros, y_test=np.arange(8) % 2, classes=10)
    whole = load_data(f"npz:{tmp_path / 'd.npz'}")
    own = made_for(model)
    parts = {
        "first": whole.subset(range(4)),
        "last": whole.subset(range(4, 8)),
        "middle": whole.subset(range(2, 6)),
    }
    for name, part in parts.items():  # images and labels are equal, and so are their digests
        evaluate(own, part, out=tmp_path / name)
    with pytest.raises(RequestError, match="do not list the same images"):
        compare(tmp_path / "last", tmp_path / "middle")
    compare(tmp_path / "last", tmp_path / "first")  # as older runs counted any part


def test_cropping_and_assumptions_are_said_with_every_result(
    model: BankedModel, tmp_path: Path
) -> None:
    images = np.zeros((20, 8, 12), np.float32)
    np.savez(tmp_path / "d.npz", x_test=images, y_test=np.arange(20) % 10)
    own = made_for(model, assumed=("ASSUMED: this.",))
    assert subject_of(own, f"npz:{tmp_path / 'd.npz'}").facts()["warnings"][1:] == (
        "ASSUMED: this.",
        "CROPPED: 20 of 20 images lose up to 33% of an axis to become 8x8; convert with "
        "`image_size=(8, 12)` of their shape to keep it.",
    )
