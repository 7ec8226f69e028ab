"""Weight files as people have them: prefixes, keys, members, and what else a training leaves."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pathlib
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rlskit.conversion import convert
from rlskit.conversion.weights import Weights, find_weights
from rlskit.errors import RequestError
from rlskit.models import checkpoint
from rlskit.torchvision_ops import declare_missing_operators

declare_missing_operators()
import timm  # noqa: E402
import torchvision  # noqa: E402

State = dict[str, Tensor]


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10)
        )


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = net()


RAW, OTHER, THIRD = (dict(net(seed).state_dict()) for seed in range(3))


def below(prefix: str, state: State = RAW) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def found(path: Path, content: Any, network: nn.Module | None = None, **options: Any) -> Weights:
    torch.save(content, path / "w.pth")
    return find_weights(network or net(), [path / "w.pth"], **options)


def same(member: Any, state: State) -> bool:
    return member.keys() == state.keys() and all(torch.equal(member[n], state[n]) for n in state)


def refusal(path: Path, content: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as error:
        found(path, content, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        below("_orig_mod."),
        below("module._orig_mod."),
        {name.replace(".", "._orig_mod."): tensor for name, tensor in RAW.items()},  # parts of it
        {f"module.{n}".replace("1.", "1.module._orig_mod."): t for n, t in RAW.items()},
        {n.replace("3.", "3._fsdp_wrapped_module."): t for n, t in RAW.items()},
        {"state_dict": below("model."), "epoch": 1},
        {"params": below("net.")},
        {"a": {"weights": below("backbone.")}},
        {"state_dict": {**below("model."), "criterion.weight": torch.ones(10)}},
        AveragedModel(net()).state_dict(),
        {**RAW, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
        {"model_ema": RAW},
        {"model": RAW, "best": RAW},  # twice the same leaves no choice
    ],
)
def test_a_prefix_or_key_is_taken_off_where_the_names_fit_then(
    tmp_path: Path, content: Any
) -> None:
    (member,) = found(tmp_path, content).members
    assert same(member, RAW)


def test_a_network_may_have_the_prefix_and_the_file_none(tmp_path: Path) -> None:
    for content in (RAW, below("module."), below("model."), below("module.model.")):
        (member,) = found(tmp_path, content, Wrapped()).members
        assert same(member, below("model."))


def test_names_of_published_densenets(tmp_path: Path) -> None:
    network = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=10)
    state = dict(network.state_dict())
    published = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): t for name, t in state.items()}
    assert published.keys() != state.keys()
    assert same(found(tmp_path, published, network).members[0], state)


def test_what_a_training_script_saves_beside_its_weights(tmp_path: Path) -> None:
    network = net()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    content = {
        "model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3,
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")), "best": np.float32(0.5),
        "history": collections.defaultdict(list, {"loss": [np.float64(1.5), 2.0]}),
        "rng": np.random.RandomState(0), "other": np.random.default_rng(0),
        "last": collections.deque([1, 2], maxlen=3),
    }  # fmt: skip
    for new in (True, False):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        (member,) = find_weights(net(), [tmp_path / "w.pth"]).members
        assert same(member, dict(network.state_dict()))


def test_numpy_arrays_are_tensors_and_nothing_of_numpy_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {name: tensor.numpy() for name, tensor in RAW.items()}
    arrays["3.weight"] = np.asfortranarray(arrays["3.weight"]).astype(">f8")
    torch.save(arrays, tmp_path / "w.pth")
    monkeypatch.setattr("numpy._core.multiarray._reconstruct", None)
    (member,) = find_weights(net(), [tmp_path / "w.pth"]).members
    assert all(torch.equal(member[name].float(), RAW[name].float()) for name in RAW)


def test_raw_and_averaged_weights_are_a_choice_of_the_users(tmp_path: Path) -> None:
    for raw, ema in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "swa")):
        both = {raw: RAW, ema: below("module.", OTHER)}
        message = refusal(tmp_path, both)
        assert f"{raw}, {ema}" in message
        assert f"{ema}.module: EMA" in message
        assert "`weights_key=" in message
        assert refusal(tmp_path, both, banks=2) == message  # they are no members of an ensemble
        assert same(found(tmp_path, both, key=raw).members[0], RAW)
        assert same(found(tmp_path, both, key=ema).members[0], OTHER)
    assert "names no weights in" in refusal(tmp_path, {"model": RAW}, key="modle")
    one = {"state_dict": {**below("student."), **below("teacher.", OTHER)}}
    assert "state_dict.student, state_dict.teacher" in refusal(tmp_path, one)
    assert same(found(tmp_path, one, key="teacher").members[0], OTHER)


def test_averaged_weights_that_cannot_be_taken_are_said(tmp_path: Path) -> None:
    shadow = {"decay": 0.9, "shadow_params": list(OTHER.values())}
    taken = found(tmp_path, {"model": RAW, "ema": shadow})
    assert same(taken.members[0], RAW)
    assert taken.notes == ("w.pth: its averaged (EMA) weights ema are not used.",)
    assert found(tmp_path, {"ema": RAW}).notes == ("w.pth: the weights are an average (EMA), ema.",)


def test_more_than_the_network_is_refused_unless_asked_for(tmp_path: Path) -> None:
    more = {**below("backbone."), "head.weight": torch.ones(3, 10)}
    assert re.search(r"also head\.weight; `weights_key='backbone'` takes", refusal(tmp_path, more))
    asked = found(tmp_path, more, key="backbone")
    assert same(asked.members[0], RAW)
    assert "head.weight are left out" in asked.notes[0]
    normalised = {**below("model."), "mu": torch.tensor([0.25])}
    assert "mu [0.25] belong into `mean` and `std`" in refusal(tmp_path, normalised)


@pytest.mark.parametrize(
    "content",
    [
        [RAW, OTHER, THIRD],
        {"model_0": RAW, "model_1": OTHER, "model_2": THIRD},
        {2: THIRD, 1: OTHER, 0: RAW},
        {"ensemble": {"state_dict": {**below("m.0."), **below("m.1.", OTHER),
                                     **below("m.2.", THIRD)}}},
    ],
    ids=["list", "dict", "numbered backwards", "module list"],
)  # fmt: skip
def test_each_bank_gets_its_member(tmp_path: Path, content: Any) -> None:
    for banks in (None, 3):
        members = found(tmp_path, content, banks=banks).members
        assert [same(m, s) for m, s in zip(members, (RAW, OTHER, THIRD), strict=True)] == [True] * 3
    assert "holds 3 members" in refusal(tmp_path, content, banks=2)


def test_ten_members_are_counted_and_not_spelled(tmp_path: Path) -> None:
    states = {f"net{n}": dict(net(n).state_dict()) for n in range(11)}
    members = found(tmp_path, states).members
    assert all(same(member, states[f"net{n}"]) for n, member in enumerate(members))


def test_each_bank_gets_its_file(tmp_path: Path) -> None:
    torch.save(RAW, tmp_path / "a.pth")
    save_file(below("module.", OTHER), tmp_path / "b.safetensors")
    files = [tmp_path / "a.pth", tmp_path / "b.safetensors"]
    members = find_weights(net(), files).members
    assert [same(m, s) for m, s in zip(members, (RAW, OTHER), strict=True)] == [True, True]
    with pytest.raises(RequestError, match="names 2 files for 3 banks"):
        find_weights(net(), files, banks=3)


OWN = """
import torch.nn as nn
def net(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, num_classes)
    )
"""


def test_members_make_an_ensemble(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    torch.save([RAW, OTHER], tmp_path / "w.pth")
    torch.save(RAW, tmp_path / "a.pth")
    options: Any = {"data": "digits", "image_size": 8, "mean": (0.3,), "std": (0.4,)}
    own = f"{tmp_path / 'own.py'}:net"
    for weights in (tmp_path / "w.pth", f"{tmp_path / 'a.pth'},{tmp_path / 'w.pth'}"):
        key = None if isinstance(weights, Path) else "1"
        if key:
            torch.save([RAW, OTHER], tmp_path / "a.pth")
            torch.save([OTHER, OTHER], tmp_path / "w.pth")
            with pytest.raises(RequestError, match="names 2 files for 1 bank;"):
                convert(own, defense="none", weights=weights, **options)
        model = convert(own, defense="ensemble", weights=weights, weights_key=key, **options)
        first, second = model.bank_tensors()
        assert torch.equal(second["3.weight"], OTHER["3.weight"])
        assert torch.equal(first["3.weight"], (OTHER if key else RAW)["3.weight"])
        assert model.card.assumed == ()


def test_what_convert_takes_for_granted_is_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    torch.save(RAW, tmp_path / "w.pth")
    own, weights = f"{tmp_path / 'own.py'}:net", tmp_path / "w.pth"
    model = convert(own, banks=1, weights=weights, data="digits", image_size=8, std=(0.4,))
    (said,) = model.card.assumed
    assert "the weights expect mean 0.3054, as of digits" in said
    assert said.endswith("state `mean`.")
    checkpoint.save(model, tmp_path / "m.safetensors")
    assert checkpoint.load(tmp_path / "m.safetensors").card.assumed == (said,)
    resnet = tmp_path / "r.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), resnet)
    (said,) = convert("test_resnet", banks=1, weights=resnet).card.assumed
    assert "160x160 pixels and mean 0.5,0.5,0.5 and std 0.5,0.5,0.5, as timm has it" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, r"255: `mean=\(0\.4851, 0\.4561, 0\.4059\)`"),
        ({"std": (58.4, 57.1, 57.4)}, r"255: `std=\(0\.229, 0\.2239, 0\.2251\)`"),
        ({"mean": (-0.5,)}, r"`mean=\(-0\.5,\)` is not of pixels in \[0, 1\]$"),
    ],
)
def test_constants_of_other_pixels_are_refused(options: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        convert("test_resnet", **options)


def test_a_refusal_names_the_option_that_fits(tmp_path: Path) -> None:
    def advice(name: str, state: State, **options: Any) -> str:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(RequestError) as error:
            convert(name, defense="none", weights=tmp_path / "w.pth", **options)
        return str(error.value).rpartition("; it would fit with ")[2]

    test = dict(timm.create_model("test_resnet", num_classes=7).state_dict())
    assert advice("test_resnet", test) == "`num_classes=7`"
    resnet = dict(torchvision.models.resnet18(num_classes=10).state_dict())
    resnet["conv1.weight"] = resnet["conv1.weight"][:, :, 2:5, 2:5].clone()
    assert advice("resnet18", resnet) == "`num_classes=10, small_images=True`"
    vit = dict(timm.create_model("test_vit", img_size=96).state_dict())
    assert advice("test_vit", vit) == "`image_size=96`"
    dense = dict(torchvision.models.efficientnet_b0(num_classes=10).state_dict())
    assert advice("efficientnet_b0", dense, num_classes=10) == "torchvision:efficientnet_b0"


def test_auxiliary_heads_may_be_absent_or_left_over(tmp_path: Path) -> None:
    full = torchvision.models.googlenet(num_classes=10, init_weights=False, aux_logits=True)
    body = {n: t for n, t in full.state_dict().items() if not n.startswith("aux")}
    torch.save(body, tmp_path / "w.pth")
    name: Any = {"name": "torchvision:googlenet", "num_classes": 10, "defense": "none"}
    model = convert(**name, weights=tmp_path / "w.pth")
    assert "lacks aux1.conv" in model.card.notes[0]
    torch.save({n: t for n, t in body.items() if not n.startswith("fc")}, tmp_path / "w.pth")
    with pytest.raises(RequestError, match=r"lacks fc\.weight, fc\.bias$"):
        convert(**name, weights=tmp_path / "w.pth")
    left = {**RAW, "aux_head.weight": torch.zeros(3)}
    assert found(tmp_path, left).notes == (
        "w.pth: aux_head.weight have no place and are left out.",
    )


def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(64_000_000))
    return stream.getvalue()


def _archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, weight=np.zeros(3))
    return stream.getvalue()


def _of_version_64(archive: bytes) -> bytes:
    """Return an archive that says that only a reader of zip 6.4 can unpack it."""
    at = archive.index(b"PK\x01\x02") + 6
    return archive[:at] + bytes([64, 0]) + archive[at + 2 :]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", r"a web page \(HTML\)"),
        (b'{"weight_map": {}}', "a JSON text"),
        (b"\x1f\x8b\x08rest", "compressed with gzip"),
        (b"\x08\x07\x12\x07pytorch", "an ONNX graph"),
        (b"", "is empty"),
        (b"weights", "neither safetensors nor a PyTorch file"),
        (_bomb(), "would unpack from [0-9,]+ to 64,000,000 bytes"),
        (_archive(), "a zip archive, but not one of torch.save's"),
        (_of_version_64(_archive()), "cannot be read as plain weights .zip file version 6.4"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_is_called_what_it_is(tmp_path: Path, content: bytes, what: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (lambda path: find_weights(net(), [path]), checkpoint.load):
        zipped = content.startswith(b"PK") and read is checkpoint.load
        with pytest.raises(RequestError, match=r"convert\(name, weights=" if zipped else what):
            read(tmp_path / name)


def test_the_ending_of_a_name_does_not_matter(tmp_path: Path) -> None:
    torch.save(RAW, tmp_path / "torch.safetensors")
    save_file(RAW, tmp_path / "safe.pth")
    for name in ("torch.safetensors", "safe.pth"):
        assert same(find_weights(net(), [tmp_path / name]).members[0], RAW)
        with pytest.raises(RequestError, match=rf"rlskit.convert\(name, weights=.*{name}"):
            checkpoint.load(tmp_path / name)


def test_modules_and_pipes_are_not_read(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pth")
    with pytest.raises(RequestError, match=r"holds more than tensors: torch\.nn\.modules"):
        find_weights(net(), [tmp_path / "w.pth"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="is no regular file"):
        find_weights(net(), [tmp_path / "pipe"])
