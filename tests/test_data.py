from __future__ import annotations

import hashlib
import os
import pickle
import threading
import zipfile
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rlskit.conversion import convert
from rlskit.data import (
    AUGMENTATIONS,
    DATASETS,
    Data,
    DataFacts,
    batches,
    blocks,
    default_data_dir,
    describe,
    load,
    read_classes,
    runs,
)
from rlskit.data.arrays import ArrayImages, as_pixels
from rlskit.data.decode import decode, header
from rlskit.data.fit import fit
from rlskit.data.in_memory import from_memory
from rlskit.data.named import load_digits
from rlskit.data.sources import measure
from rlskit.errors import RequestError, RunError
from rlskit.models.published import library_classes
from rlskit.pixels import Pixels
from rlskit.seeds import Purpose, generator
from rlskit.torchvision_ops import declare_missing_operators

SHARED = Path(__file__).parents[2] / "shared" / "data"


def needs(folder: str) -> pytest.MarkDecorator:
    where = SHARED / folder
    return pytest.mark.skipif(not where.is_dir(), reason=f"no {where}")


def pixels(channels: int, height: int, width: int) -> Pixels:
    return Pixels(channels, height, width, (0.0,) * channels, (1.0,) * channels)


def noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save_npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "data.npz", **arrays)
    return f"npz:{folder / 'data.npz'}"


def save_image(path: Path, array: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)
    return path


def photos(root: Path, n: int = 3) -> Path:
    """A flat folder of the classes cat and dog, n 8x6 colour images each."""
    for c, name in enumerate(("cat", "dog")):
        for i in range(n):
            save_image(root / name / f"{i}.png", np.roll(noise(8, 6, 3), 10 * c + i))
    return root


def refusal(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert ". " not in message
    return message


# Named data sets


def test_digits_are_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits as sklearn_digits

    train, test = load("digits", "train"), load("digits")
    assert (len(train), len(test), test.split) == (1437, 360, "test")
    assert test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    images = torch.cat([d.images(range(len(d))) for d in (train, test)])
    assert images.shape == (1797, 1, 8, 8)
    # Every image of scikit-learn's is there once, in sixteenths.
    ours = sorted((images * 16).flatten(1).int().tolist())
    assert ours == sorted(sklearn_digits().data.astype(int).tolist())
    assert test.sha256 == load_digits("test").sha256
    assert test.sha256 != train.sha256


def test_the_constants_of_digits_are_measured() -> None:
    facts = describe("digits")
    measured = measure(load("digits", "train"))
    assert facts == DATASETS["digits"]
    assert facts.pixels.mean == pytest.approx(measured.mean, abs=5e-5)
    assert facts.pixels.std == pytest.approx(measured.std, abs=5e-5)
    assert facts.pixels.shape == measured.shape == (1, 8, 8)


@needs("MNIST")
def test_mnist_is_the_file_and_its_labels() -> None:
    test = load("mnist", data_dir=SHARED)
    raw = (SHARED / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    third = np.frombuffer(raw, np.uint8, 784, offset=16 + 2 * 784).reshape(1, 1, 28, 28)
    assert torch.equal(test.images([2]), torch.tensor(third) / 255)
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert (len(test), test.classes, test.class_names[7]) == (10000, 10, "7 - seven")


@needs("MNIST")
def test_a_limited_mnist_keeps_both_kinds_of_writers() -> None:
    # Every sixth image has the mean 0.1229 and every image 0.1307.
    some = measure(load("mnist", "train", data_dir=SHARED, limit=10_000))
    assert some.mean == pytest.approx((0.1307,), abs=5e-4)
    assert some.std == pytest.approx((0.3081,), abs=5e-4)


def test_cifar10_is_read_plane_by_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_missing_operators()
    from torchvision import datasets

    folder, rows = tmp_path / "cifar-10-batches-py", noise(2, 3072)
    folder.mkdir()
    names = [f"class{i}" for i in range(10)]
    (folder / "test_batch").write_bytes(pickle.dumps({"data": rows, "labels": [3, 9]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", None)
    data = load("cifar10", data_dir=tmp_path)
    assert torch.equal(data.images([1, 0])[1], torch.tensor(rows[0]).view(3, 32, 32) / 255)
    assert (data.labels.tolist(), data.class_names) == ([3, 9], tuple(names))


def test_svhn_counts_ten_as_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare_missing_operators()
    from scipy.io import savemat
    from torchvision import datasets

    images = noise(32, 32, 3, 2)
    savemat(tmp_path / "test_32x32.mat", {"X": images, "y": np.array([[10], [4]], np.uint8)})
    monkeypatch.setitem(datasets.SVHN.split_list, "test", ["", "test_32x32.mat", None])
    data = load("svhn", data_dir=tmp_path)
    assert (data.labels.tolist(), data.classes, data.class_names[9]) == ([0, 4], 10, "9")
    assert data.images([1])[0, 2, 5, 7] == images[5, 7, 2, 1] / np.float32(255)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_a_missing_data_set_is_told_with_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        load(name, data_dir=tmp_path)
    assert f"{name} is missing or damaged in {tmp_path}" in refusal(error)
    assert "`download`" in str(error.value)
    assert "`data_dir`" in str(error.value)


def test_a_truncated_data_set_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9]))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9]))
    with pytest.raises(RequestError, match="mnist is missing or damaged"):
        load("mnist", data_dir=tmp_path)


def test_a_failed_download_is_no_bad_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_missing_operators()
    from torchvision import datasets

    def fail(self: Any) -> None:
        raise RuntimeError("Error downloading x:\nTried a, got: no network")

    monkeypatch.setattr(datasets.MNIST, "download", fail)
    with pytest.raises(RunError, match="could not be downloaded to") as error:
        load("mnist", data_dir=tmp_path / "new", download=True)
    assert "(Error downloading x)" in refusal(error)


def test_the_default_folder_is_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_data_dir() == Path("/somewhere/rlskit/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_data_dir() == Path.home() / ".cache/rlskit/data"


@pytest.mark.parametrize("spec", ["", "cifar", "folder", "folder:", "npz:", "zip:x", "MNIST"])
def test_an_unknown_name_lists_the_known(spec: str) -> None:
    with pytest.raises(
        RequestError, match=r"digits, mnist, .*, svhn, folder:PATH, manifest:PATH, npz:PATH"
    ):
        load(spec)


@pytest.mark.parametrize("spec", ["digits", "mnist"])
def test_named_data_have_two_splits(spec: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"'val' is unknown; {spec} has train and test"):
        load(spec, "val", data_dir=tmp_path)


# Subsets


@given(n=st.integers(1, 300), limit=st.integers(1, 350))
def test_a_limit_takes_one_image_of_each_stretch(n: int, limit: int) -> None:
    source = ArrayImages("x", torch.zeros(n, 1, 1, 1, dtype=torch.uint8))
    kept = Data("x", "test", tuple(map(str, range(n))), torch.arange(n), source).limited(limit)
    assert len(kept) == len(kept.source) == min(n, limit)
    for i, index in enumerate(kept.labels.tolist() if limit < n else []):
        assert i * n // limit <= index < (i + 1) * n // limit


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(RequestError, match="`limit` 0 leaves no image"):
        load("digits", limit=0)


def test_a_subset_keeps_labels_and_images_together() -> None:
    data = load("digits")
    part = data.subset([7, 3])
    assert torch.equal(part.labels, data.labels[[7, 3]])
    assert torch.equal(part.images([1]), data.images([3]))
    assert part.sha256 != data.subset([3, 7]).sha256


# npz


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "float64", "big-endian", "fortran"])
def test_npz_layouts_mean_the_same(layout: str, tmp_path: Path) -> None:
    channels_first = noise(4, 3, 5, 6)
    stored: Any = {
        "NCHW": channels_first,
        "NHWC": channels_first.transpose(0, 2, 3, 1),
        "float64": channels_first / 255,
        "big-endian": (channels_first / 255).astype(">f4"),
        "fortran": np.asfortranarray(channels_first),
    }[layout]
    data = load(save_npz(tmp_path, x_test=stored, y_test=np.array([2, 0, 1, 0], ">i2")))
    assert torch.equal(data.images(range(4)), torch.tensor(channels_first) / 255)
    assert (data.labels.tolist(), data.classes) == ([2, 0, 1, 0], 3)


def test_an_array_is_taken_without_a_copy() -> None:
    """Whatever its layout: a second gigabyte may be too much."""
    last = noise(4, 5, 6, 3)
    for array in (last, last.transpose(0, 3, 1, 2), (last / 255).astype(np.float32)):
        pixels = as_pixels(array, "x")
        assert pixels.data_ptr() == array.ctypes.data
        source = ArrayImages("x", pixels)
        assert source.read(torch.arange(4)).is_contiguous()
        digests = [hashlib.sha256() for _ in range(2)]
        source.feed(digests[0])
        ArrayImages("x", pixels.contiguous()).feed(digests[1])
        assert digests[0].digest() == digests[1].digest()
    assert torch.equal(as_pixels(last[::-1], "x"), as_pixels(last, "x").flip(0))


def test_npz_gray_needs_no_channel_axis(tmp_path: Path) -> None:
    images = noise(2, 5, 6)
    data = load(save_npz(tmp_path, x_train=images, y_train=[0, 1]), "train")
    assert torch.equal(data.images([1]), torch.tensor(images[1:, None]) / 255)


def test_npz_classes_are_those_of_both_splits_or_as_stated(tmp_path: Path) -> None:
    x = noise(2, 5, 6)
    pairs = {"x_train": x, "y_train": [0, 6], "x_test": x, "y_test": [0, 1]}
    assert load(save_npz(tmp_path, **pairs)).classes == 7
    assert load(save_npz(tmp_path, **pairs, classes=9)).classes == 9
    assert describe(save_npz(tmp_path, x_test=x, y_test=[0, 3])).classes == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": [0, -1]}, "the label -1 at index 1"),
        ({"y_test": [0, 9], "classes": 5}, "the label 9 at index 1 .* classes are 0 to 4"),
        ({"y_test": [0.0, 1.0]}, "y_test of npz:.* must be one whole number per image"),
        ({"y_test": [[0], [1]]}, r"must be one whole number per image, not int64 \[2, 1\]"),
        ({"y_test": [0, 1, 1]}, "2 images in x_test but 3 labels in y_test"),
        ({"classes": 0}, "entry classes of npz:.* must be one positive whole number"),
        ({"x_test": noise(2, 5, 6).astype(np.int64)}, "is int64; it must be uint8, or float"),
        ({"x_test": noise(2, 5, 6).astype(float)}, "spans .* divide by 255"),
        ({"x_test": np.full((2, 5, 6), -0.1)}, r"must lie in \[0, 1\]"),
        ({"x_test": np.full((2, 5, 6), np.nan)}, "holds NaN or infinite pixels"),
        ({"x_test": np.full((2, 5, 6), np.inf)}, "holds NaN or infinite pixels"),
        ({"x_test": noise(2, 0, 5)}, r"its shape \[2, 0, 5\] is none of them"),
        ({"x_test": noise(2, 5)}, r"its shape \[2, 5\] is none of them"),
        ({"x_test": noise(2, 5, 6, 4)}, r"its shape \[2, 5, 6, 4\] is none of them"),
        ({"x_test": noise(2, 3, 6, 3)}, "leaves open which axis holds the channels"),
        ({"x_test": noise(0, 5, 6), "y_test": np.zeros(0, int)}, "holds no image"),
    ],
)
def test_npz_arrays_of_another_kind_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = {"x_test": noise(2, 5, 6), "y_test": [0, 1]}
    with pytest.raises(RequestError, match=message) as error:
        load(save_npz(tmp_path, **{**good, **change}))
    refusal(error)


@pytest.mark.parametrize(("kind", "full", "highest"), [(np.uint8, 1, 16), (np.float32, 255, 1)])
def test_pixels_on_another_scale_are_not_read_as_black(
    kind: Any, full: int, highest: int, tmp_path: Path
) -> None:
    """As of scikit-learn's digits, 0..16, or of what was divided by 255 twice."""
    x, y = (noise(1500, 5, 6) % (highest + 1) / full).astype(kind), np.arange(1500) % 3
    said = f"nearly black images: no pixel is above {highest / 255:.1%} of white; .*float32$"
    with pytest.raises(RequestError, match=said):
        load(save_npz(tmp_path, x_test=x, y_test=y))
    with pytest.raises(RequestError, match=said):
        from_memory(x[:, None], y, 3)
    assert len(load(save_npz(tmp_path, x_test=0 * x, y_test=y))) == 1500
    assert len(load(save_npz(tmp_path, x_test=x[:10], y_test=y[:10]))) == 10
    x[-1, 0, 0] = 17 / full
    assert len(load(save_npz(tmp_path, x_test=x, y_test=y))) == 1500


def test_npz_without_the_split_says_what_it_holds(tmp_path: Path) -> None:
    spec = save_npz(tmp_path, x_train=noise(2, 5, 6), y_train=[0, 1], other=1)
    with pytest.raises(
        RequestError, match=r"no x_test and y_test; it holds other, x_train, y_train$"
    ):
        load(spec)
    with pytest.raises(RequestError, match=r"'val' is unknown; npz:.* has train and test"):
        load(spec, "val")


class Payload:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.sentinel),))


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    objects = np.array([Payload(sentinel)] * 2, dtype=object)
    np.savez(tmp_path / "a.npz", x_test=noise(2, 5, 6), y_test=objects)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Payload(sentinel)))
    for name in ("a", "b"):
        with pytest.raises(RequestError, match=r"no readable \.npz file") as error:
            load(f"npz:{tmp_path / name}.npz")
        refusal(error)
    assert not sentinel.exists()


def test_npz_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    path = Path(save_npz(tmp_path, x_test=noise(2, 5, 6), y_test=[0, 1])[4:])
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(noise(2, 5, 6).tobytes()) + 7] ^= 1
    np.save(tmp_path / "array.npy", noise(2, 5, 6))
    one_array = (tmp_path / "array.npy").read_bytes()
    for damaged in (b"", b"text", whole[:100], whole[:-1], bytes(flipped), one_array):
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match=r"no readable \.npz file") as error:
            load(f"npz:{path}")
        refusal(error)
    with pytest.raises(RequestError, match="is no file"):
        load(f"npz:{tmp_path}/nothing.npz")


# Image files


def rgb(*values: float) -> list[list[list[float]]]:
    return [[[v]] for v in values]


@pytest.mark.parametrize(
    ("mode", "value", "ending", "expected"),
    [
        ("L", 51, "png", rgb(0.2)),
        ("1", 1, "png", rgb(1.0)),
        ("I;16", 40000, "png", rgb(40000 / 65535)),
        ("I;16", 40000, "tiff", rgb(40000 / 65535)),
        ("I;16", 40000, "pgm", rgb(40000 / 65535)),
        ("LA", (51, 0), "png", rgb(0.2)),
        ("RGB", (255, 51, 0), "png", rgb(1.0, 0.2, 0.0)),
        ("RGB", (255, 51, 0), "bmp", rgb(1.0, 0.2, 0.0)),
        ("RGBA", (255, 51, 0, 0), "png", rgb(1.0, 0.2, 0.0)),
        ("CMYK", (0, 204, 255, 0), "tif", rgb(1.0, 0.2, 0.0)),
    ],
)
def test_every_kind_of_image_has_its_golden_value(
    mode: str, value: Any, ending: str, expected: list[list[list[float]]], tmp_path: Path
) -> None:
    path = tmp_path / f"x.{ending}"
    Image.new(mode, (1, 1), value).save(path)
    assert torch.equal(decode(path), torch.tensor(expected))
    assert header(path) == (len(expected), 1, 1)


def test_a_palette_is_looked_up_even_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 51, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png", transparency=b"\x00\x80")
    expected = torch.tensor([[[1.0, 0.0]], [[0.2, 1.0]], [[0.0, 0.0]]])
    assert torch.equal(decode(tmp_path / "x.png"), expected)


def test_sixteen_bits_a_colour_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "x.ppm"
    path.write_bytes(b"P6 1 1 65535\n" + np.array([40000, 65535, 300], ">u2").tobytes())
    golden = torch.tensor([40000, 65535, 300]).view(3, 1, 1) / 65535
    assert (decode(path) - golden).abs().max() < 1 / 255


@pytest.mark.parametrize(("mode", "value"), [("I", 70000), ("F", 0.5)])
def test_pixels_of_no_known_range_are_refused(mode: str, value: float, tmp_path: Path) -> None:
    Image.new(mode, (1, 1), value).save(tmp_path / "x.tif")
    with pytest.raises(RequestError, match=f"stores pixels as {mode}, whose range") as error:
        decode(tmp_path / "x.tif")
    refusal(error)


def test_a_corrupt_image_is_refused_by_name(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", noise(40, 40, 3))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for damaged in (b"", b"text", whole[:50], whole[: len(whole) // 2], bytes(flipped), postscript):
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match=r"x\.png is no readable image") as error:
            decode(path)
        refusal(error)


def test_an_enormous_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    for size in (b"100000 100000", b"8000 7000"):
        path.write_bytes(b"P5 " + size + b" 255\n")
        with pytest.raises(RequestError, match=r"x\.pgm is no readable image .*limit"):
            decode(path)


# Folders


def test_folder_classes_are_sorted_over_all_splits(tmp_path: Path) -> None:
    for path in ("train/b/1.png", "train/a/2.png", "train/c/3.PNG", "test/c/5.png", "test/b/4.png"):
        save_image(tmp_path / path, np.full((2, 2), int(Path(path).stem) * 51, np.uint8))
    for ignored in ("test/.cache/x", "test/b/notes.txt", "test/b/.9.png"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_text("no image")
    test, train = (load(f"folder:{tmp_path}", s) for s in ("test", "train"))
    assert test.class_names == train.class_names == ("a", "b", "c")
    assert (test.labels.tolist(), train.labels.tolist()) == ([1, 2], [0, 1, 2])
    assert test.images([0, 1])[:, 0, 0, 0].tolist() == pytest.approx([0.8, 1.0])
    assert train.images([0, 1, 2])[:, 0, 0, 0].tolist() == pytest.approx([0.4, 0.2, 0.6])


def test_a_flat_folder_serves_either_split(tmp_path: Path) -> None:
    spec = f"folder:{photos(tmp_path)}"
    train, test = load(spec, "train"), load(spec)
    assert train.split == test.split == "all"
    assert train.sha256 == test.sha256
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_test_is_val_where_there_is_no_test(tmp_path: Path) -> None:
    photos(tmp_path / "val")
    photos(tmp_path / "train", 1)
    assert (load(f"folder:{tmp_path}").split, len(load(f"folder:{tmp_path}"))) == ("val", 6)
    photos(tmp_path / "test", 2)
    assert (load(f"folder:{tmp_path}").split, len(load(f"folder:{tmp_path}"))) == ("test", 4)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        save_image(tmp_path / name / "0.png", noise(2, 2))
    assert load(f"folder:{tmp_path}").class_names == ("bus", "train")


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    spec = f"folder:{tmp_path}"
    with pytest.raises(RequestError, match="is no folder"):
        load(f"{spec}/nothing")
    with pytest.raises(RequestError, match="holds no folders; it needs one per class"):
        load(spec)
    photos(tmp_path / "train")
    with pytest.raises(RequestError, match="has no folder test; it has train"):
        load(spec)
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(RequestError, match=r"class folder .*eel holds no image"):
        load(spec, "train")
    with pytest.raises(RequestError, match="'extra' is unknown"):
        load(spec, "extra")


def test_images_of_different_sizes_form_no_batch(tmp_path: Path) -> None:
    save_image(photos(tmp_path) / "cat" / "9.png", noise(5, 7, 3))
    data = load(f"folder:{tmp_path}")
    with pytest.raises(RequestError, match=r"0.png has 8x6 pixels, .*9.png 5x7") as error:
        data.images([0])
    refusal(error)
    assert data.adapted(pixels(3, 4, 4), 2).images(range(7)).shape == (7, 3, 4, 4)
    with pytest.raises(RequestError, match="different sizes"):
        describe(f"folder:{tmp_path}")
    facts = describe(f"folder:{tmp_path}", size=(4, 5))
    assert facts.pixels.shape == (3, 4, 5)
    every = data.resized(4, 5).images(range(7)).double()
    assert facts.pixels.mean == pytest.approx(every.mean((0, 2, 3)).tolist())
    assert facts.pixels.std == pytest.approx(every.std((0, 2, 3), correction=0).tolist())
    assert describe("digits", size=(16, 12)).pixels.shape == (1, 16, 12)


def test_gray_among_colour_is_colour(tmp_path: Path) -> None:
    gray = save_image(photos(tmp_path) / "ant" / "0.png", noise(8, 6))
    data = load(f"folder:{tmp_path}")
    assert data.shape == (3, 8, 6)
    assert torch.equal(data.images([0]), decode(gray).expand(1, 3, 8, 6))
    only_gray = data.subset([0])
    assert only_gray.shape == (1, 8, 6)
    assert only_gray.adapted(pixels(1, 8, 6), 3).shape == (1, 8, 6)
    with pytest.raises(RequestError, match=r"cat/0.png\) has images of 3 channels, but .* takes 1"):
        data.adapted(pixels(1, 8, 6), 3)


def test_the_digest_names_bytes_and_not_places(tmp_path: Path) -> None:
    first, second = (load(f"folder:{photos(tmp_path / name)}") for name in "ab")
    assert first.sha256 == second.sha256
    assert first.sha256 == first.adapted(pixels(3, 4, 4), 2).sha256
    assert first.sha256 != first.limited(5).sha256
    save_image(tmp_path / "b" / "dog" / "2.png", noise(8, 6, 3))
    assert load(f"folder:{tmp_path / 'b'}").sha256 != first.sha256


@pytest.mark.parametrize("small", [0, 1_000_000])
def test_a_folder_is_looked_at_once(
    small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlskit.data.folder._SMALL", small)  # by threads, and without
    files = [
        save_image(tmp_path / f"{i % 2}/{i:02}.png", noise(5, 4) // (i + 1)) for i in range(70)
    ]
    files.sort()  # as they are numbered; more than one thread is given at a time
    opened, plainly = [], Image.open

    def noted(path: Path, **options: Any) -> Image.Image:
        opened.append(path)
        return plainly(path, **options)

    monkeypatch.setattr(Image, "open", noted)
    data = load(f"folder:{tmp_path}").adapted(pixels(1, 5, 4), 2)
    expected = hashlib.sha256(data.labels.numpy().astype("<i8").tobytes())
    expected.update(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))
    assert (data.sha256, data.alterations) == (expected.hexdigest(), ())
    assert sorted(opened) == files
    files[5].write_bytes(files[6].read_bytes())  # the digest is that of what will be read
    changed = data.adapted(pixels(1, 5, 4), 2)
    assert changed.sha256 == load(f"folder:{tmp_path}").sha256 != data.sha256
    for file in files[40], files[33]:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(RequestError, match=f"2 of 70 .*{files[33].name} is.*{files[40].name} is"):
        load(f"folder:{tmp_path}")
    kept = load(f"folder:{tmp_path}", skip_bad=True)
    assert kept.indices is not None
    assert kept.indices.tolist() == [i for i in range(70) if i not in (33, 40)]


@needs("cifar10-subset")
def test_real_photos_are_read_as_torchvision_reads_them() -> None:
    declare_missing_operators()
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import to_tensor

    data = load(f"folder:{SHARED / 'cifar10-subset'}")
    peer = ImageFolder(str(SHARED / "cifar10-subset" / "test"), to_tensor)
    assert list(data.class_names) == peer.classes
    assert data.labels.tolist() == peer.targets
    assert len(data) == 846
    for i in (0, 400, 845):
        assert torch.equal(data.images([i])[0], peer[i][0])


# Adapting


def test_a_smaller_image_is_the_mean_of_what_it_covers() -> None:
    corners = torch.tensor([[0.0, 0.2], [0.4, 1.0]]).view(1, 1, 2, 2)
    assert fit(corners, (3, 1, 1)).flatten().tolist() == pytest.approx([0.4] * 3)
    assert torch.equal(fit(corners, (1, 2, 2)), corners)


def test_the_centre_is_cut_out() -> None:
    ramp = torch.arange(6.0).expand(1, 1, 4, 6) / 5
    assert torch.equal(fit(ramp, (1, 4, 4)), ramp[..., 1:5])
    assert torch.equal(fit(ramp.mT, (1, 4, 4)), ramp.mT[..., 1:5, :])


def test_half_of_an_image_is_never_cut_off() -> None:
    """The ends of a narrow image are still there when it becomes a square, in either direction."""
    for h, w in ((4, 8), (2, 128), (16, 64)):
        ends = torch.zeros(1, 1, h, w)
        ends[..., 0], ends[..., -1] = 0.25, 1.0
        square = fit(ends, (1, h, h))
        assert square.amax((0, 1, 2))[[0, -1]].min() > 0
        assert torch.equal(fit(ends.mT, (1, h, h)), square.mT)


@pytest.mark.parametrize("size", [(9, 13), (40, 31), (20, 20), (16, 31)])
def test_resizing_is_that_of_torchvision(size: tuple[int, int]) -> None:
    declare_missing_operators()
    from torchvision.transforms.v2 import functional as peer

    images = torch.rand(2, 3, *size, generator=generator(0, Purpose.ATTACK))
    resized = peer.resize(images, [16], antialias=True)
    top, left = (resized.shape[2] - 16) // 2, (resized.shape[3] - 16) // 2
    expected = resized[:, :, top : top + 16, left : left + 16]
    ours = fit(images, (3, 16, 16))
    assert torch.equal(ours, expected.clamp(0, 1))
    assert ours.is_contiguous()


@given(st.tuples(*[st.integers(1, 40)] * 4))
def test_any_size_becomes_any_size(sizes: tuple[int, int, int, int]) -> None:
    h, w, height, width = sizes
    fitted = fit(torch.ones(1, 1, h, w), (1, height, width))
    assert fitted.shape == (1, 1, height, width)
    assert fitted.min() > 0.999999
    assert fitted.max() <= 1


def test_what_would_change_the_question_is_refused(tmp_path: Path) -> None:
    digits = load("digits")
    with pytest.raises(RequestError, match="digits has 10 classes, but the checkpoint has 1000"):
        digits.adapted(pixels(1, 8, 8), 1000)
    colour = load(save_npz(tmp_path, x_test=noise(2, 3, 5, 5), y_test=[0, 1]))
    with pytest.raises(RequestError, match="3 channels, but the checkpoint takes 1") as error:
        colour.adapted(pixels(1, 5, 5), 2)
    refusal(error)
    with pytest.raises(RequestError, match=r"2 classes \(its entry 'classes' can state it"):
        colour.adapted(pixels(3, 5, 5), 3)
    with pytest.raises(RequestError, match="1 channel, but the checkpoint takes 4"):
        digits.adapted(pixels(4, 8, 8), 10)
    adapted = digits.adapted(pixels(3, 16, 12), 10)
    assert adapted.shape == (3, 16, 12)
    assert adapted.images([5]).shape == (1, 3, 16, 12)


# Facts


def test_facts_of_a_folder_are_those_of_its_training_images(tmp_path: Path) -> None:
    for split, value in (("train", 51), ("train", 153), ("test", 255)):
        save_image(tmp_path / split / "a" / f"{value}.png", np.full((2, 3), value, np.uint8))
    facts = describe(f"folder:{tmp_path}")
    assert (facts.classes, facts.pixels.shape) == (1, (1, 2, 3))
    assert facts.pixels.mean == pytest.approx((0.4,))
    assert facts.pixels.std == pytest.approx((0.2,))


def test_facts_do_not_pass_over_a_broken_training_split(tmp_path: Path) -> None:
    x = noise(2, 5, 6)
    spec = save_npz(tmp_path, x_train=x, y_train=[0, -1], x_test=x, y_test=[0, 1])
    with pytest.raises(RequestError, match="label -1"):
        describe(spec)


def test_facts_of_a_named_data_set_need_no_files(tmp_path: Path) -> None:
    assert describe("cifar100", data_dir=tmp_path) == DataFacts(
        "cifar100",
        100,
        Pixels(3, 32, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    )


# Blocks and batches


def test_runs_cover_the_indices_once() -> None:
    assert runs(7, 3) == [range(3), range(3, 6), range(6, 7)]
    assert runs(6, 3) == [range(3), range(3, 6)]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_blocks_are_the_data_in_order(num_workers: int) -> None:
    data = load("digits").limited(50)
    found = list(blocks(data, 16, num_workers))
    assert [run for run, _, _ in found] == runs(50, 16)
    assert torch.equal(torch.cat([x for _, x, _ in found]), data.images(range(50)))
    assert torch.equal(torch.cat([y for _, _, y in found]), data.labels)
    rest = list(blocks(data, 16, num_workers, done={0, 2}))
    assert [run for run, _, _ in rest] == [range(16, 32), range(48, 50)]
    assert torch.equal(rest[1][1], found[3][1])


def test_blocks_left_early_leave_no_threads() -> None:
    before = threading.active_count()
    reading = blocks(load("digits"), 2, num_workers=2)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_image_stops_the_reading_in_one_sentence(
    num_workers: int, tmp_path: Path
) -> None:
    data = load(f"folder:{photos(tmp_path)}").adapted(pixels(3, 4, 4), 2)
    (tmp_path / "dog" / "1.png").write_bytes(b"")  # after it was checked
    reading = blocks(data, 2, num_workers)
    assert next(reading)[0] == range(2)
    with pytest.raises(RequestError, match=r"dog/1.png is no readable image") as error:
        list(reading)
    refusal(error)


@pytest.mark.parametrize(("n", "seen"), [(10, 10), (9, 8), (11, 11)])
def test_a_last_batch_of_one_is_dropped(n: int, seen: int) -> None:
    source = ArrayImages("x", torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1))
    data = Data("x", "train", tuple(map(str, range(n))), torch.arange(n), source)
    found = list(batches(data, 4, generator(0, Purpose.ATTACK)))
    labels = torch.cat([y for _, y in found])
    assert len(labels) == len(set(labels.tolist())) == seen
    assert labels.tolist() != sorted(labels.tolist())
    assert torch.equal((torch.cat([x for x, _ in found]) * 255).flatten().long(), labels)
    assert len(list(batches(data, 1, generator(0, Purpose.ATTACK)))) == n


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_batches_depend_on_the_generator_alone(augment: str) -> None:
    data, state = load("digits"), torch.get_rng_state()

    def epoch(seed: int, num_workers: int) -> torch.Tensor:
        found = batches(data, 100, generator(seed, Purpose.ATTACK), augment, num_workers)
        return torch.cat([x for x, _ in found])

    assert torch.equal(epoch(0, 0), epoch(0, 2))
    assert not torch.equal(epoch(0, 0), epoch(1, 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_flip_is_a_padded_crop_and_a_flip_of_each_image() -> None:
    images = torch.rand(200, 3, 6, 5, generator=generator(0, Purpose.ATTACK))
    changed = AUGMENTATIONS["crop-flip"](images, generator(0, Purpose.ATTACK))
    seen = set()
    for before, after in zip(F.pad(images, [4] * 4), changed, strict=True):
        matches = [
            (top, left, flipped)
            for top, left, flipped in product(range(9), range(9), (False, True))
            if torch.equal(
                before[:, top : top + 6, left : left + 5], after.flip(2) if flipped else after
            )
        ]
        assert len(matches) == 1
        seen.update(matches)
    tops, lefts, flips = zip(*seen, strict=True)
    assert set(tops) == set(lefts) == set(range(9))
    assert set(flips) == {False, True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` 0 must be at least 1"),
        ({"batch_size": 2, "num_workers": -1}, "`num_workers` -1 must be at least 0"),
        ({"batch_size": 2, "augment": "mixup"}, "'mixup' is unknown; it is none or crop-flip"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        next(batches(load("digits"), generator=generator(0, Purpose.ATTACK), **options))


# Odd files


def test_every_file_that_is_no_image_is_named_before_anything_runs(tmp_path: Path) -> None:
    spec = f"folder:{photos(tmp_path)}"
    whole = load(spec)
    (tmp_path / "cat" / "7.png").write_bytes(b"torn")
    os.mkfifo(tmp_path / "cat" / "8.png")
    (tmp_path / "dog" / "8.jpg").symlink_to("/dev/zero")
    (tmp_path / "dog" / "9.jpg").symlink_to("nowhere")
    with pytest.raises(RequestError) as error:
        load(spec)
    message = refusal(error)
    assert message.startswith(f"4 of 10 images of {spec} cannot be read: ")
    for name in ("7.png is no readable", "8.png is no reg", "8.jpg is no reg", "9.jpg is a link"):
        assert name in message
    assert message.endswith("or leave them out with `skip_bad`")
    some = load(spec, skip_bad=True)
    assert (some.skipped, len(some), some.sha256) == (4, 6, whole.sha256)
    with pytest.raises(RequestError, match="4 of 10 images"):
        describe(spec)
    again = describe(f"folder:{photos(tmp_path.parent / 'again')}")
    assert describe(spec, skip_bad=True) == replace(again, name=spec)


def test_a_truncated_jpeg_is_found_at_an_eighth_of_its_size(tmp_path: Path) -> None:
    path = save_image(photos(tmp_path) / "cat" / "0.jpg", noise(200, 160, 3))
    assert len(load(f"folder:{tmp_path}")) == 7
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(RequestError, match=r"1 of 7 images .*cat/0.jpg is no readable image"):
        load(f"folder:{tmp_path}")


def test_links_that_lead_back_are_refused(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    assert load(f"folder:{tmp_path}").class_names == ("cat", "dog")
    (tmp_path / "all").symlink_to(tmp_path)
    with pytest.raises(RequestError, match="all is a link to a folder that it lies in"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("label", [2**32 - 1, 10**9, 2**63 - 1])
def test_a_label_that_is_no_class_costs_nothing(label: int, tmp_path: Path) -> None:
    spec = save_npz(tmp_path, x_test=noise(3, 4, 4), y_test=np.array([0, 1, label]))
    with pytest.raises(RequestError, match=f"y_test of {spec} has the label {label} at index 2"):
        load(spec)
    with pytest.raises(RequestError, match="positive whole number, at most 1000000"):
        load(save_npz(tmp_path, x_test=noise(2, 4, 4), y_test=[0, 1], classes=label))


def test_arrays_that_claim_or_unpack_to_too_much(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "data.npz", x_test=np.zeros((270_000, 32, 32), np.uint8), y_test=[0]
    )
    with pytest.raises(RequestError, match=r"would unpack from 2[0-9,]+ to 276,480,\d+ bytes"):
        load(f"npz:{tmp_path / 'data.npz'}")
    claim = BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(claim, about)
    save_npz(tmp_path, y_test=[0])
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        archive.writestr("x_test.npy", claim.getvalue())
    with pytest.raises(RequestError, match=r"x_test claims the shape \[1000000, 1000000\]"):
        load(f"npz:{tmp_path / 'data.npz'}")


@pytest.mark.parametrize(
    ("high", "advice"),
    [(16.0, "the largest value"), (1.0000001, "rounding: clip"), (255.0, "by 255"), (900.0, "la")],
)
def test_the_advice_depends_on_the_range(high: float, advice: str, tmp_path: Path) -> None:
    spec = save_npz(tmp_path, x_test=np.full((2, 4, 4), high, np.float32), y_test=[0, 1])
    with pytest.raises(RequestError, match=rf"spans \[{high:.8g}.*{advice}") as error:
        load(spec)
    assert ("255" in str(error.value).rpartition(";")[2]) == (high == 255)


def test_a_bare_path_is_answered_with_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"))
    Path("data.npz").touch()
    for spec, meant in (
        ("./photos", "folder:./photos"), ("photos", "folder:photos"), ("data.npz", "npz:data.npz"),
        ("CIFAR10", "cifar10"), ("fashion_mnist", "fashion-mnist"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=rf"did you mean {meant}\?"):
            load(spec)


# Sizes


def test_what_is_cut_off_is_said(tmp_path: Path) -> None:
    def said(*size: int) -> str:
        spec = save_npz(tmp_path, x_test=noise(2, *size), y_test=[0, 1])
        return " ".join(load(spec).adapted(pixels(1, 32, 32), 2).alterations)

    assert said(64, 64) == said(32, 36) == ""
    assert said(32, 48).startswith("CROPPED: 2 of 2 images lose up to 33% of an axis")
    assert "`image_size=(32, 48)` of their shape" in said(32, 48)
    assert said(16, 64).startswith("STRETCHED: 2 of 2 images are resized to 32x32")
    save_image(photos(tmp_path / "f") / "cat" / "9.png", noise(6, 12, 3))
    mixed = load(f"folder:{tmp_path / 'f'}").adapted(pixels(3, 8, 6), 2)
    assert mixed.alterations[0].startswith("STRETCHED: 1 of 7 images")


@pytest.mark.parametrize(
    ("size", "enlarged"),
    [((16, 64), (32, 128)), ((64, 16), (128, 32)), ((8, 8), (32, 32)), ((28, 84), (28, 84)),
     ((1, 900), (32, 900))],
)  # fmt: skip
def test_a_model_is_made_for_the_whole_of_narrow_images(
    size: tuple[int, int], enlarged: tuple[int, int], tmp_path: Path
) -> None:
    images = np.zeros((4, *size), np.float32)
    images[:, 0, 0] = images[:, -1, -1] = 1.0
    images[:, size[0] // 2, size[1] // 2] = 0.5
    spec = save_npz(tmp_path, x_train=images, y_train=range(4))
    model = convert("test_resnet", defense="none", data=spec)
    assert model.card.pixels.shape == (1, *enlarged)
    seen = load(spec, "train").adapted(model.card.pixels, 4).images([0])
    assert seen[0, 0, 0, 0] == seen[0, 0, -1, -1] == 1


# Classes


HEAD = ("dog", "cat", "polar_bear")


def named(*names: str) -> Data:
    labels = torch.arange(len(names))
    source = ArrayImages("x", torch.zeros(len(names), 1, 2, 2, dtype=torch.uint8))
    return Data("folder:x", "all", names, labels, source)


@pytest.mark.parametrize(
    ("names", "head", "labels"),
    [
        (("cat", "dog"), HEAD, [1, 0]),
        (("Polar Bear", "cat"), HEAD, [2, 1]),
        (("0", "1", "2"), HEAD, [0, 1, 2]),
        (("a", "b", "c"), HEAD, [0, 1, 2]),
        (("0", "1", "10", "2"), tuple(map(str, range(11))), [0, 1, 10, 2]),
    ],
    ids=["another order", "another spelling", "numbers", "nothing in common", "sorted as text"],
)
def test_classes_are_told_by_name(
    names: tuple[str, ...], head: tuple[str, ...], labels: list[int]
) -> None:
    found = named(*names).adapted(pixels(1, 2, 2), len(head), head)
    assert (found.labels.tolist(), found.classes) == (labels, len(head))


def test_classes_of_imagenet_by_either_name() -> None:
    head = library_classes(1000)
    found = named("n02123045", "goldfish").adapted(pixels(1, 2, 2), 1000, head)
    assert found.adapted(pixels(1, 2, 2), 1000, head).limited(1).among == 2
    assert found.labels.tolist() == [281, 1]
    with pytest.raises(RequestError, match="'crane' is none of its 1000"):  # a bird and a machine
        named("goldfish", "crane").adapted(pixels(1, 2, 2), 1000, head)


def test_classes_that_the_model_lacks_are_named() -> None:
    with pytest.raises(RequestError, match=r"'eel' is none of its 3 \(dog, cat, polar_bear\)"):
        named("cat", "dog", "eel").adapted(pixels(1, 2, 2), 3, HEAD)
    with pytest.raises(RequestError, match="3 classes, but the checkpoint has 4"):
        named("a", "b", "c").adapted(pixels(1, 2, 2), 4, (*HEAD, "eel"))


def test_names_of_classes_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\r\n cat \npolar_bear\n\n", encoding="utf-8-sig")
    assert read_classes(tmp_path / "names.txt") == read_classes(HEAD) == HEAD
    for content, message in (("a\n\nb", "no name"), ("a\nb\na", "'a' comes twice")):
        (tmp_path / "names.txt").write_text(content)
        with pytest.raises(RequestError, match=message):
            read_classes(tmp_path / "names.txt")
    with pytest.raises(RequestError, match="is no file with a name a line"):
        read_classes(tmp_path / "missing.txt")
