"""A number that carries its proof: what was changed by a byte does not hold."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rlskit
import small_models
from rlskit.cli import run as command
from rlskit.data.adversarial_file import read_adversarial, write_adversarial
from rlskit.documents import to_json
from rlskit.errors import RequestError
from rlskit.models.banks import BankedModel
from rlskit.results import ADVERSARIAL, PROOF, RESULTS
from rlskit.results.journal import PER_IMAGE
from rlskit.storage.sums import SUMS

DATA = small_models.digits(30)
PGD: dict[str, Any] = {"method": "pgd", "eps": 0.15, "steps": 4, "step_size": 0.05}


@pytest.fixture(scope="module")
def rls() -> BankedModel:
    return small_models.trained("rls", 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, rls: BankedModel) -> Path:
    """A folder with a run, and its model's file beside it."""
    folder = tmp_path_factory.mktemp("verified")
    rlskit.attack(
        rls, DATA, **PGD, n_samples=3, batch_size=12, out=folder / "run", save_adversarial=True
    )
    rlskit.save(rls, folder / "rls.safetensors")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def broken(run: Path, model: BankedModel, data: Any = DATA) -> str:
    """The step that does not hold, the last that was looked at."""
    found = rlskit.verify(run, model, data)
    assert not found.holds
    assert [step.holds for step in found.steps[:-1]] == [True] * (len(found.steps) - 1)
    return found.steps[-1].name


def unseal(run: Path) -> Path:
    """Take away what tells changed bytes, as one would who edits a number."""
    (run / SUMS).unlink()
    return run


def test_what_holds_is_counted_by_hand(finished: Path, rls: BankedModel) -> None:
    found = rlskit.verify(finished / "run", rls, DATA)
    assert found.holds
    saved = read_adversarial(finished / "run" / ADVERSARIAL).data
    members = rlskit.draws(rls, 3, seed=0, purpose="defender")
    probabilities = sum(draw(saved.images(range(30))).softmax(-1) for draw in members)
    wrong = int((probabilities.argmax(-1) != DATA.labels).sum())
    assert 0 < wrong < 30
    assert (found.images, found.wrong) == (30, wrong)
    assert f"at most {100 * (30 - wrong) / 30:.2f} % ({wrong} of 30 images" in found.sentence
    assert "within linf 0.15 of the clean ones" in found.sentence
    assert "the very 3 draws" in found.sentence  # a random defense's: no more is confirmed
    names = ["files", "weights", "attack", "images", "budget", "answers", "count"]
    assert [step.name for step in found.steps] == names


@pytest.mark.parametrize("name", [*PROOF, SUMS])
def test_a_changed_byte_of_the_run_does_not_hold(run: Path, rls: BankedModel, name: str) -> None:
    file = run / name
    whole = file.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 25).astype(int):
        flip(file, place)
        assert broken(run, rls) == "files"
        file.write_bytes(whole)
    assert rlskit.verify(run, rls, DATA).holds
    file.unlink()
    if name == ADVERSARIAL:
        with pytest.raises(RequestError, match="no adversarial"):
            rlskit.verify(run, rls, DATA)
    elif name != SUMS:
        assert broken(run, rls) == "files"


def test_a_changed_byte_of_the_weights_does_not_hold(
    finished: Path,
    run: Path,
    rls: BankedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file refuses itself; a model with another weight and its own checksum is another one."""
    file = Path(shutil.copy(finished / "rls.safetensors", tmp_path))
    size = file.stat().st_size
    flip(file, size - 1)
    given = ["verify", str(run), "--checkpoint", str(file), "--json", "-"]
    assert command(given) == 2
    assert "is damaged" in capsys.readouterr().err
    other = copy.deepcopy(rls)
    assert rlskit.verify(run, other, DATA).holds
    small_models.tensor(other, 1, "6.bias")[3] += 1e-3
    assert broken(run, other) == "weights"


def test_other_clean_images_do_not_hold(run: Path, rls: BankedModel) -> None:
    images = DATA.images(range(30))
    images[7, 0, 3, 3] = 1 - images[7, 0, 3, 3]
    assert broken(run, rls, (images, DATA.labels)) == "images"
    with pytest.raises(RequestError, match="no_such"):
        rlskit.verify(run, rls, "npz:no_such.npz")


def change_result(**fields: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        file = run / RESULTS
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return change


def better(run: Path) -> None:
    """A number that flatters, with the interval that belongs to it."""
    file = run / RESULTS
    document = json.loads(file.read_text())
    document["accuracy"]["robust"] = document["accuracy"]["clean"]
    file.write_text(json.dumps(document))


def better_table(run: Path) -> None:
    better(run)
    lines = (run / PER_IMAGE).read_text().splitlines()
    names = lines[0].split(",")
    cells = [line.split(",") for line in lines[1:]]
    for line in cells:
        line[names.index("robust")] = line[names.index("clean")]
    (run / PER_IMAGE).write_text("\n".join([lines[0], *map(",".join, cells)]) + "\n")


def narrower(run: Path) -> None:
    file = run / RESULTS
    document = json.loads(file.read_text())
    document["accuracy"]["robust"]["lower_bound"] += 0.01
    file.write_text(json.dumps(document))


def resealed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Write the images again, changed, with a seal that fits."""

    def rewrite(run: Path) -> None:
        saved = read_adversarial(run / ADVERSARIAL)
        images = change(saved.data.images(range(30)))
        tensors = images, saved.data.labels, saved.data.index
        write_adversarial(run / ADVERSARIAL, *tensors, to_json(saved.about))

    return rewrite


def too_far(images: Any) -> Any:
    images[4] = (images[4] - 0.4).abs()
    return images


def clean_again(images: Any) -> Any:
    return DATA.images(range(30))


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (change_result(seed=1), "attack"),
        (change_result(protocol="eot"), "attack"),
        (change_result(checkpoint={"path": None, "sha256": "x"}), "weights"),
        (better_table, "answers"),
        (narrower, "count"),
        (resealed(too_far), "budget"),
        (resealed(clean_again), "answers"),
    ],
)
def test_who_edits_a_number_and_all_seals_is_found_by_scoring_again(
    run: Path, rls: BankedModel, change: Callable[[Path], None], step: str
) -> None:
    change(unseal(run))
    assert broken(run, rls) == step


def test_a_number_that_its_own_table_denies_is_unreadable(run: Path, rls: BankedModel) -> None:
    better(unseal(run))
    with pytest.raises(RequestError, match="not of the same run"):
        rlskit.verify(run, rls, DATA)


def test_draws_per_image_and_several_repeats_are_drawn_again(
    rls: BankedModel, tmp_path: Path
) -> None:
    own: dict[str, Any] = {"n_samples": 2, "repeats": 2, "per_example": True, "seed": 5}
    few = small_models.digits(6)
    rlskit.attack(rls, few, **PGD, **own, out=tmp_path / "own", save_adversarial=True)
    found = rlskit.verify(tmp_path / "own", rls, few)
    assert found.holds
    assert "the very 2 draws of each image" in found.sentence
    assert "the first of 2 repeats" in found.sentence


def test_images_in_random_order_are_taken_in_that_order(rls: BankedModel, tmp_path: Path) -> None:
    """Their intervals are wider ones, and the table is in another order than the images."""
    data = rlskit.load_data("digits", limit=12, order=3)
    rlskit.attack(rls, data, **PGD, n_samples=2, out=tmp_path / "run", save_adversarial=True)
    assert rlskit.verify(tmp_path / "run", rls).holds
    change_result(n_samples=10**12)(unseal(tmp_path / "run"))
    with pytest.raises(RequestError, match="beyond reason"):
        rlskit.verify(tmp_path / "run", rls)


def test_a_folder_is_named_again_and_skips_what_it_skipped(
    rls: BankedModel, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    for index in range(20):
        digit = int(DATA.labels[index])
        (photos / f"{digit}").mkdir(parents=True, exist_ok=True)
        pixels = (255 * DATA.images([index])[0, 0]).round().byte().numpy()
        Image.fromarray(pixels).save(photos / f"{digit}" / f"{index:02}.png")
    for digit in range(10):
        (photos / f"{digit}").mkdir(exist_ok=True)
        (photos / f"{digit}" / "30.png").write_bytes(b"no picture")
    spec = f"folder:{photos}"
    data = rlskit.load_data(spec, "all", limit=15, skip_bad=True)
    assert 0 < data.skipped < 15
    rlskit.attack(rls, data, **PGD, out=tmp_path / "run", save_adversarial=True)
    with pytest.raises(RequestError, match="no path of a run's files is followed"):
        rlskit.verify(tmp_path / "run", rls)
    assert rlskit.verify(tmp_path / "run", rls, spec).holds
    changed = next(photos.glob("*/0*.png"))
    Image.new("L", (8, 8)).save(changed)
    assert broken(tmp_path / "run", rls, f"{spec}") == "images"


def test_the_command_ends_with_1_where_a_number_does_not_hold(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rlskit_ = small_models.trained("none", 1)
    monkeypatch.setattr("rlskit.load", lambda *_, **__: rlskit_)
    rlskit.attack(rlskit_, DATA, **PGD, out=run.parent / "own", save_adversarial=True)
    capsys.readouterr()
    assert command(["verify", str(run.parent / "own")]) == 0
    shown = capsys.readouterr().out
    assert "which draws nothing at random" in shown
    assert shown.splitlines()[-1].startswith("confirmed: robust accuracy is at most")
    assert command(["verify", str(run), "--json", "-"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["holds"] is False
    assert "not confirmed" in captured.err
    with pytest.raises(RequestError, match="no adversarial"):
        rlskit.verify(run.parent, rlskit_, DATA)
