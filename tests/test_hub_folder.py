"""Folders of transformers: constants and classes are the folder's, the network is transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rlskit
from rlskit.errors import RequestError
from rlskit.models.hub_folder import read_folder
from rlskit.torchvision_ops import declare_missing_operators


def folder(path: Path, images: dict[str, Any] | None, **config: Any) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if images is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(images))
    return f"hf:{path}"


@pytest.mark.parametrize(
    ("images", "size"),
    [
        ({"size": {"height": 24, "width": 32}}, (24, 32)),
        ({"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": True}, (32, 32)),
        ({"size": {"shortest_edge": 40}}, (40, 40)),
        ({"size": 48, "crop_size": {"height": 32, "width": 32}}, (48, 48)),
        ({"do_resize": False}, (16, 16)),
    ],
)
def test_the_size_is_what_the_network_is_shown(
    images: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3, **images}
    found = read_folder(folder(tmp_path, given, image_size=16, num_channels=3))
    assert (found.size, found.channels) == (size, 3)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


def test_classes_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    labels = {str(n): f"class {n}" for n in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    found = read_folder(folder(tmp_path, None, id2label=labels))
    assert found.class_names == tuple(f"class {n}" for n in range(11))
    assert (found.mean, found.std, found.size) == (None, None, None)
    unsaid = folder(tmp_path, None, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert read_folder(unsaid).class_names == ()
    with pytest.raises(RequestError, match="have gaps"):
        read_folder(folder(tmp_path, None, id2label={"0": "a", "2": "b"}))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"do_flip_channel_order": True}, "wants blue before red"),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, r"other pixels than \[0, 1\]"),
        ({"do_rescale": False}, r"other pixels than \[0, 1\]"),
    ],
)
def test_images_that_rlskit_does_not_give_are_refused(
    images: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        read_folder(folder(tmp_path, images))


def test_pixels_that_are_not_normalised_stay_as_they_are(tmp_path: Path) -> None:
    found = read_folder(folder(tmp_path, {"do_normalize": False}))
    assert (found.mean, found.std) == ((0.0,), (1.0,))
    with pytest.raises(RequestError, match=r"is no folder with a config\.json.*hf download"):
        rlskit.convert("hf:google/vit")


def test_a_folder_answers_as_transformers_does(tmp_path: Path) -> None:
    declare_missing_operators()
    transformers = pytest.importorskip("transformers", reason="no transformers")
    labels = {0: "cat", 1: "dog", 2: "cow"}
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=4, id2label=labels,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    constants = {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7], "size": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(constants))
    model = rlskit.convert(f"hf:{tmp_path}", banks=2)
    assert (model.card.names, model.card.assumed) == (("cat", "dog", "cow"), ())
    rlskit.save(model, tmp_path / "m.safetensors")
    loaded = rlskit.load(tmp_path / "m.safetensors")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(constants[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))
    with torch.no_grad():
        expected = network((images - mean) / std).logits
    for one in (model, loaded):
        assert one.num_layers > 5
        plan = torch.tensor([0, 1] * one.num_layers)[: one.num_layers]
        torch.testing.assert_close(one.sampled(plan)(images), expected)
    transformers.ViTModel(config).save_pretrained(tmp_path / "headless")
    with pytest.raises(RequestError, match=r"lack classifier\.bias, classifier\.weight"):
        rlskit.convert(f"hf:{tmp_path}/headless", image_size=16, mean=(0.5,), std=(0.5,))
