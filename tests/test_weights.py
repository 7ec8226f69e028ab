"""Weights from elsewhere: files, and what timm and torchvision publish, here from a local cache."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cifar_resnet import resnet20
from rlskit.conversion import convert
from rlskit.conversion.weights import find_weights, load_weights
from rlskit.errors import RequestError, RunError
from rlskit.torchvision_ops import declare_missing_operators

declare_missing_operators()
import timm  # noqa: E402
import torchvision  # noqa: E402

State = dict[str, Tensor]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor + 3
        for name, tensor in net().state_dict().items()
    }


def loaded(path: Path, **options: Any) -> State:
    network = net()
    (member,) = find_weights(network, [path], **options).members
    load_weights(network, member)
    return dict(network.state_dict())


def same(first: State, second: State) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: OrderedDict(state),
        lambda state: {"state_dict": state, "epoch": 3, "arch": "net"},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
    ],
    ids=["plain", "ordered", "state_dict", "model", "module.", "state_dict and module."],
)  # fmt: skip
def test_a_pth_in_each_wrapping(tmp_path: Path, state: State, wrap: Any) -> None:
    torch.save(wrap(state), tmp_path / "w.pth")
    assert same(state, loaded(tmp_path / "w.pth"))


def test_a_safetensors_file(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "w.safetensors")
    assert same(state, loaded(tmp_path / "w.safetensors"))
    save_file({f"module.{n}": t for n, t in state.items()}, tmp_path / "m.safetensors")
    assert same(state, loaded(tmp_path / "m.safetensors"))


def test_old_files_have_no_num_batches_tracked(tmp_path: Path, state: State) -> None:
    counter = state.pop("1.num_batches_tracked")
    save_file(state, tmp_path / "w.safetensors")
    found = loaded(tmp_path / "w.safetensors")
    assert same(state, found)
    assert (int(counter), int(found["1.num_batches_tracked"])) == (3, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("3.weight"), r"it lacks 3\.weight$"),
        (lambda s: s.update(extra=torch.zeros(1)), "it has also extra$"),
        (lambda s: s.update({"fc.weight": s.pop("3.weight")}),
         r"it lacks 3\.weight; it has also fc\.weight$"),
        (lambda s: s.update({"3.weight": torch.zeros(10, 5)}),
         r"has another shape: 3\.weight is \[10, 5\], not \[10, 144\]$"),
        (lambda s: s.update({f"x{i}": torch.zeros(1) for i in range(9)}),
         "has also x0, x1, x2, x3, x4 and 4 more$"),
    ],
    ids=["missing", "unexpected", "another name", "reshaped", "many"],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, state: State, change: Any, reason: str) -> None:
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    before = net()
    untouched = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    with pytest.raises(RequestError, match=reason):
        find_weights(before, [tmp_path / "w.safetensors"])
    assert same(untouched, dict(before.state_dict()))


def test_one_name_of_a_tied_pair_is_enough(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    save_file({"0.weight": torch.eye(3)}, tmp_path / "w.safetensors")
    network = nn.Sequential(first, second)
    load_weights(network, find_weights(network, [tmp_path / "w.safetensors"]).members[0])
    assert torch.equal(second.weight, torch.eye(3))
    save_file({"0.weight": torch.eye(3), "1.weight": torch.ones(3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match=r"different values for 0\.weight and 1\.weight"):
        find_weights(network, [tmp_path / "w.safetensors"])


class Payload:
    """A pickle that creates a file when it is read by the unwary."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.sentinel),))


def test_integers_are_no_weights(tmp_path: Path, state: State) -> None:
    quantized = (state["0.weight"] * 100).to(torch.int64)
    save_file({**state, "0.weight": quantized}, tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match=r"is quantized, with integers in 0\.weight$"):
        loaded(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", ["sparse", "on the meta device"])
def test_tensors_without_all_their_values_are_no_weights(
    tmp_path: Path, state: State, kind: str
) -> None:
    weight = state["0.weight"]
    odd = weight.to_sparse() if kind == "sparse" else weight.to("meta")
    torch.save({**state, "0.weight": odd}, tmp_path / "w.pth")
    with pytest.raises(RequestError, match=rf"0\.weight of .*w\.pth is {kind}"):
        loaded(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_malicious_pickle_is_refused_and_not_executed(
    tmp_path: Path, state: State, kind: str, suffix: str
) -> None:
    sentinel, path = tmp_path / "executed", tmp_path / f"w{suffix}"
    content = {**state, "payload": Payload(sentinel)}
    if kind == "raw":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(RequestError, match=r"mkdir|cannot be read as plain weights") as e:
        loaded(path)
    assert "\n" not in str(e.value)
    assert not sentinel.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file(tmp_path: Path, state: State, suffix: str, keep: float) -> None:
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(RequestError, match=r"cannot be read as|not a readable|is empty|nor a") as e:
        loaded(path)
    assert ". " not in str(e.value)  # one sentence of ours, not the library's advice


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3), {1: torch.zeros(2)}])
def test_a_pth_that_holds_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(RequestError, match="holds no state dict"):
        loaded(tmp_path / "w.pth")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no weight file"):
        loaded(tmp_path / "w.pth")
    with pytest.raises(RequestError, match="is a folder; name the file"):
        loaded(tmp_path)


def test_published_cifar_weights(shared: Path) -> None:
    weights = shared / "checkpoints" / "cifar10-resnet20.safetensors"
    own = f"{Path(__file__).parent / 'cifar_resnet.py'}:resnet20"
    model = convert(own, weights=weights, data="cifar10", mean=(0.485, 0.456, 0.406),
                    std=(0.229, 0.224, 0.225))  # fmt: skip
    expected = resnet20()
    load_weights(expected, find_weights(expected, [weights]).members[0])
    expected.eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits = expected(model.normalize(images))
        for m in range(2):  # every bank starts from them
            assert torch.equal(model(images, torch.full((model.num_layers,), m)), logits)
    assert (model.card.pretrained, model.card.trained) == ("cifar10-resnet20.safetensors", True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return folder


def publish(hub: Path, name: str, **kwargs: Any) -> State:
    """Put random weights into the cache, in torchvision's name, and return them."""
    torch.manual_seed(11)
    network = torchvision.models.get_model(name, **kwargs)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    torch.save(network.state_dict(), hub / url.rpartition("/")[2])
    return dict(network.state_dict())


def test_torchvisions_weights_with_their_own_head(hub: Path) -> None:
    published = publish(hub, "squeezenet1_1")
    model = convert("torchvision:squeezenet1_1", pretrained=True)
    card = model.card
    assert (card.classes, card.pixels.shape, card.data) == (1000, (3, 224, 224), "")
    assert card.pixels.mean == (0.485, 0.456, 0.406)
    assert all(same(published, bank) for bank in model.bank_tensors())


def test_torchvisions_weights_with_another_head_and_channels(hub: Path) -> None:
    published = publish(hub, "squeezenet1_1")
    model = convert("torchvision:squeezenet1_1", pretrained=True, data="digits", in_chans=1)
    first, second = model.bank_tensors()
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert first["classifier.1.weight"].shape == (10, 512, 1, 1)
    stem = published.pop("features.0.weight")
    assert torch.allclose(first["features.0.weight"], stem.sum(1, keepdim=True))
    assert same({n: t for n, t in published.items() if n not in head}, first)
    assert same(dict(first), second)  # the new head too: copy is the default


@pytest.mark.slow
@pytest.mark.parametrize("classes", [None, 10])
def test_googlenet_keeps_its_auxiliary_heads_and_normalises_twice(
    hub: Path, tmp_path: Path, classes: int | None
) -> None:
    from rlskit import load, save

    published = publish(hub, "googlenet", init_weights=False)
    model = convert("torchvision:googlenet", banks=1, pretrained=True, num_classes=classes)
    kept = [n for n in published if not n.startswith("aux") and not (classes and n[:3] == "fc.")]
    assert same({name: published[name] for name in kept}, model.bank_tensors()[0])
    assert {name for name in model.bank_tensors()[0] if name.startswith("aux")}
    images = torch.rand(1, 3, 224, 224)
    plan = torch.zeros(model.num_layers, dtype=torch.long)
    with torch.no_grad():
        logits = model.sampled(plan)(images)
        if classes is None:
            theirs = torchvision.models.get_model("googlenet", weights="DEFAULT").eval()
            assert torch.equal(theirs(model.normalize(images)), logits)
        save(model, tmp_path / "g.safetensors")
        assert torch.equal(load(tmp_path / "g.safetensors").sampled(plan)(images), logits)


def test_torchvisions_weights_for_another_image_size(hub: Path) -> None:
    publish(hub, "vit_b_32")
    with pytest.raises(RequestError, match=r"do not fit: encoder\.pos_embedding is \[1, 50, 768\]"):
        convert("vit_b_32", pretrained=True, image_size=64)


def test_the_pixels_of_torchvisions_weights() -> None:
    from rlskit.models import resolve
    from rlskit.models.published import library_pixels

    large = library_pixels(resolve("efficientnet_v2_l"))
    assert (large["height"], large["mean"], large["std"]) == (480, (0.5,) * 3, (0.5,) * 3)
    assert library_pixels(resolve("vit_h_14"))["width"] == 518


def test_torchvisions_weights_cannot_be_downloaded(hub: Path) -> None:
    with pytest.raises(RunError, match="weights of squeezenet1_1 are not here and cannot be down"):
        convert("torchvision:squeezenet1_1", pretrained=True)


ONE_TIMM = "test_resnet.r160_in1k"
SCRIPT = """
import json, sys
from rlskit.cli import run
code = run(["convert", {name!r}, "--pretrained", "--banks", "1", "--out", sys.argv[1], "--quiet"])
print(code)
"""


def run_offline(home: Path, out: Path, name: str = ONE_TIMM) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "TORCH_HOME"):
        environment.pop(variable, None)
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(name=name), str(out)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_timms_weights_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    from rlskit import load

    revision = "0" * 40
    repository = tmp_path / "hub" / f"models--timm--{ONE_TIMM}"
    for folder in (repository / "refs", repository / "snapshots" / revision):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    torch.manual_seed(5)
    published = timm.create_model("test_resnet").state_dict()
    save_file(published, repository / "snapshots" / revision / "model.safetensors")
    done = run_offline(tmp_path, tmp_path / "m.safetensors")
    assert done.stdout.strip() == "0", done.stderr
    model = load(tmp_path / "m.safetensors")
    assert (model.card.classes, model.card.pixels.shape) == (1000, (3, 160, 160))
    assert same(dict(published), model.bank_tensors()[0])


@pytest.mark.slow
def test_timms_weights_offline_and_not_in_the_cache(tmp_path: Path) -> None:
    done = run_offline(tmp_path, tmp_path / "m.safetensors")
    assert done.stdout.strip() == "3"
    assert not (tmp_path / "m.safetensors").exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("rlskit:")]
    assert f"the weights of {ONE_TIMM} are not here and cannot be downloaded" in line
    assert json.dumps(done.stderr).count("Traceback") == 0


@pytest.mark.slow
def test_timm_has_no_weights_for_every_model() -> None:
    name = next(name for name in timm.list_models("resnet*") if not timm.list_pretrained(name))
    with pytest.raises(RequestError, match="No pretrained weights exist"):
        convert(name, pretrained=True)
