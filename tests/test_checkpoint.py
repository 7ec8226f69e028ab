"""A checkpoint comes back bit for bit, or is refused with the reason: it may come from anyone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlskit.conversion import convert
from rlskit.errors import RequestError
from rlskit.models import BankedModel, checkpoint
from rlskit.models.checkpoint import digest_of, export, fingerprint, inspect, load, save
from rlskit.models.trace import tensor_names
from rlskit.storage.files import replacing, write_tensors, write_text
from rlskit.torchvision_ops import declare_missing_operators

declare_missing_operators()
import timm  # noqa: E402
import torchvision  # noqa: E402

OWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Linear(1024, 8, bias=False)
        self.middle = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.middle.weight
        self.norm = nn.BatchNorm1d(8)
        self.turned = nn.Parameter(torch.randn(8, 4).t())  # not contiguous
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("halves", torch.randn(3).half())
        self.head = nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.again(self.middle(self.first(images.flatten(1))))
        return self.head(self.norm(features) @ self.turned.t() * self.scale)


def net(num_classes=10):
    return Net(num_classes)
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}:net"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small checkpoint of a timm model."""
    path = tmp_path_factory.mktemp("once") / "rls.safetensors"
    save(convert("test_vit2", banks=2, image_size=32), path)
    return path.read_bytes()


@pytest.fixture
def saved(tmp_path: Path, content: bytes) -> Path:
    """That checkpoint, to be read or spoilt."""
    path = tmp_path / "rls.safetensors"
    path.write_bytes(content)
    return path


def state(model: BankedModel) -> list[dict[str, Tensor]]:
    return model.bank_tensors()


def assert_equal(first: BankedModel, second: BankedModel) -> None:
    for one, two in zip(state(first), state(second), strict=True):
        assert list(one) == list(two)
        for name in one:
            assert one[name].dtype == two[name].dtype
            assert torch.equal(
                one[name].detach().contiguous().view(-1).view(torch.uint8),
                two[name].detach().contiguous().view(-1).view(torch.uint8),
            ), name
    for field in ("architecture", "pixels", "classes", "defense", "data", "training", "pretrained"):
        assert getattr(first.card, field) == getattr(second.card, field), field
    assert first.partition == second.partition


def metadata_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["rlskit"])
    return found


def sign(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Let the checksum be of the tensors alone, as in files of before it covered the card."""
    metadata.pop("sha256_of", None)
    metadata["sha256"] = fingerprint(tensors)


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write the checkpoint again with other metadata, as someone would who means harm."""
    metadata, tensors = metadata_of(path), load_file(path)
    change(metadata)
    sign(metadata, tensors)
    forged = path.with_name("forged.safetensors")
    save_file(tensors, forged, metadata={"rlskit": json.dumps(metadata)})
    return forged


def refused(path: Path, reason: str = "") -> str:
    """Require that a file is refused in one sentence, by everything that reads it."""
    with pytest.raises(RequestError, match=reason) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit2", {"banks": 3}),
        ("test_resnet", {"granularity": "block"}),
        ("test_resnet", {"bank_only": "fc"}),
        ("torchvision:squeezenet1_1", {"in_chans": 2, "image_size": 64}),
        ("resnet10t", {"small_images": True, "defense": "none"}),
    ],
)
def test_round_trip(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    if name == "test_resnet" and "bank_only" in options:
        options = {"bank_only": convert(name).partition.layers[-1].name}
    model = convert(name, **options)
    model.card.training = [{"epochs": 1, "loss": 0.5}]
    digest = save(model, tmp_path / "m.safetensors")
    before = torch.get_rng_state()
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(model, again)
    assert again.path == str(tmp_path / "m.safetensors")
    assert digest == metadata_of(tmp_path / "m.safetensors")["sha256"]
    images, plan = torch.rand(2, *model.card.pixels.shape), torch.ones(model.num_layers).long()
    plan = plan * (model.num_banks - 1)
    with torch.no_grad():
        assert torch.equal(model.sampled(plan)(images), again.sampled(plan)(images))


@pytest.mark.parametrize("bank_only", [None, "head"])
def test_round_trip_of_tied_shared_and_odd_tensors(
    tmp_path: Path, own: str, bank_only: str | None
) -> None:
    model = convert(own, banks=2, bank_only=bank_only)
    with torch.no_grad():
        model.banks[1].get_parameter("head.weight")[0, 0] = float("nan")  # the preflight's matter
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert_equal(model, again)
    names = set(load_file(tmp_path / "m.safetensors"))
    assert "bank0.middle.weight" in names
    assert "bank0.again.weight" not in names  # tied
    for bank in again.banks:
        assert bank.get_parameter("again.weight") is bank.get_parameter("middle.weight")
    shared = again.banks[0].get_parameter("turned") is again.banks[1].get_parameter("turned")
    assert shared == (bank_only is not None) == ("bank1.turned" not in names)


def test_safetensors_reads_what_write_tensors_wrote(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5), "a": torch.randn(7).half(), "t": torch.randn(4, 6).t(),
        "bool": torch.tensor([True, False, True]), "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2), "bf": torch.randn(5).bfloat16(), "d": torch.randn(2).double(),
        "ü/../x": torch.arange(4, dtype=torch.uint8), "c": torch.randn(3, dtype=torch.complex64),
        **{f"u{bits}": torch.ones(3, dtype=getattr(torch, f"uint{bits}")) for bits in (16, 32, 64)},
    }  # fmt: skip
    path = tmp_path / "t.safetensors"
    write_tensors(path, tensors, {"note": 'line\n"ü"'}, force=False)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": 'line\n"ü"'}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found, tensor)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in tensors.items():  # aligned for whoever maps the file
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0
    with pytest.raises(RequestError, match=r"z is of torch\.complex128"):
        write_tensors(path, {"z": torch.zeros(1, dtype=torch.complex128)}, {}, force=True)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_saving_needs_no_second_copy(tmp_path: Path) -> None:
    script = f"""
import resource, torch
from pathlib import Path
from rlskit.storage.files import write_tensors
from rlskit.storage.files import fingerprint
tensors = {{str(i): torch.ones(1 << 20) for i in range(16)}}  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fingerprint(tensors)
write_tensors(Path({str(tmp_path / "t")!r}), tensors, {{}}, force=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=100
    )
    assert int(done.stdout) < 24 * 1024  # KiB; a copy would be 65,536


def test_the_fingerprint_covers_name_type_shape_and_bytes() -> None:
    base = {"a": torch.tensor([1.0, 2.0])}
    others: list[dict[str, Tensor]] = [
        {"b": base["a"]},
        {"a": base["a"].view(torch.int32)},
        {"a": base["a"].view(2, 1)},
        {"a": torch.tensor([1.0, -2.0])},
        {"a": torch.tensor([1.0, 2.0, 0.0])},
        {**base, "b": torch.zeros(0)},
    ]
    digests = {fingerprint(tensors) for tensors in [base, *others]}
    assert len(digests) == 1 + len(others)
    reordered = {"y": torch.ones(1), "x": torch.zeros(1)}
    assert fingerprint(reordered) == fingerprint(dict(reversed(reordered.items())))


@pytest.mark.parametrize("at", [0, 7, 8, 100, 5000, -20000, -1])
def test_a_truncated_checkpoint(saved: Path, at: int) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[:at])
    refused(
        saved, "is not a readable safetensors file" if at not in (0, 7, 8) else "is empty|is nei"
    )


def test_flipped_bytes(saved: Path) -> None:
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    generator = torch.Generator().manual_seed(0)
    body = torch.randint(8 + length, len(content), (20,), generator=generator).tolist()
    for place in [*body, len(content) - 1]:
        broken = bytearray(content)
        broken[place] ^= 0x10
        saved.write_bytes(broken)
        with pytest.raises(RequestError, match="its contents do not match their checksum"):
            load(saved)
        with pytest.raises(RequestError, match="its contents do not match their checksum"):
            inspect(saved)


def test_flipped_bytes_of_the_header_never_crash(saved: Path) -> None:
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    generator = torch.Generator().manual_seed(1)
    places = [*range(8), *torch.randint(8, 8 + length, (60,), generator=generator).tolist()]
    outcomes = []
    for place in places:
        broken = bytearray(content)
        broken[place] ^= 0x05
        saved.write_bytes(broken)
        with contextlib.suppress(RequestError):
            load(saved)
            outcomes.append(place)  # say a digit of a recorded version
    assert len(outcomes) < 10


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.safetensors", tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(1)}, plain)
    refused(plain, "holds plain weights; `rlskit.convert.name, weights=")
    for metadata, reason in (
        ("no json", "its metadata is no JSON"),
        ("[" * 100_000, "its metadata is no JSON"),
        ("[]", "is not of the format rlskit.checkpoint/1"),
        ('{"format": "rlskit.checkpoint/9"}', "is not of the format rlskit.checkpoint/1"),
        ('{"format": "rlskit.checkpoint/1"}', "its metadata is unreadable"),
    ):
        save_file({"w": torch.zeros(1)}, other, metadata={"rlskit": metadata})
        refused(other, reason)
    refused(tmp_path / "missing.safetensors", "there is no checkpoint .*`rlskit.convert` makes one")
    refused(tmp_path, "there is no checkpoint")


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], object]:
    """Return a change of one entry of the metadata."""

    def change(metadata: dict[str, Any]) -> None:
        place: Any = metadata
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("architecture", "name", value="hf-hub:x/y"), "timm has no model 'hf-hub:x/y'"),
        (put("architecture", "name", value="local-dir:/tmp"), "timm has no model 'local-dir:/tmp'"),
        (put("architecture", "name", value="../../etc/passwd"), "timm has no model"),
        (put("architecture", "name", value="test_resnet"), "test_resnet cannot be built"),
        (put("architecture", "name", value="test_vit"), "the partition does not fit the network"),
        (put("architecture", "name", value=["test_vit2"]), "timm has no model"),
        (put("architecture", "source", value="hub"), "no source is called 'hub'"),
        (put("architecture", "source", value="own"), "unknown on this machine; name it with `arch"),
        (put("architecture", "source", value=None), "no source is called None"),
        (put("architecture", "extra", value=1), "architecture is unreadable"),
        (put("architecture", value=[]), "architecture is unreadable"),
        (put("architecture", "kwargs", value={"checkpoint_path": "/tmp/x"}), "checkpoint_path"),
        (put("architecture", "kwargs", value={"pretrained": True}), "'pretrained'"),
        (put("architecture", "kwargs", value={"pretrained_cfg": {"file": "x"}}), "pretrained_cfg"),
        (put("architecture", "kwargs", value={"num_classes": "/tmp"}), "is unreadable"),
        (put("architecture", "kwargs", value={"num_classes": 1e999}), "is unreadable"),
        (put("architecture", "kwargs", "num_classes", value=10**12), "speaks of 10{12} classes"),
        (put("architecture", "in_chans", value=10**9), "speaks of 10{9} classes or channels"),
        (put("architecture", "kwargs", "img_size", value=[10**4] * 2), "images of 10000x10000"),
        (put("architecture", "kwargs", "num_classes", value=-1), "."),
        (put("architecture", "kwargs", "num_classes", value=11), "does not fit its arch"),
        (put("architecture", "kwargs", "img_size", value=[64, 64]), "does not fit its"),
        (put("architecture", "in_chans", value=3), "does not fit its architecture"),
        (put("architecture", "small_images", value=True), "`small_images` knows"),
        (put("banks", value=3), "it says 3 banks, but has tensors of 2"),
        (put("banks", value=10**18), "banks, but has tensors of 2"),
        (put("banks", value=0), "it says 0 banks"),
        (put("banks", value=-1), "it says -1 banks"),
        (put("banks", value="two"), "its metadata is unreadable"),
        (put("banks", value=float("inf")), "its metadata is unreadable"),
        (put("classes", value=10**9), "it speaks of 1000000000 classes"),
        (put("class_names", value=["a"]), "it names 1 classes of 10"),
        (put("class_names", value=5), "its metadata is unreadable"),
        (put("classes", value=9), "it names 10 classes of 9"),
        (put("classes", value=float("inf")), "its metadata is unreadable"),
        (put("pixels", "height", value=10**9), "wants images of 1000000000x32 pixels"),
        (put("pixels", "width", value=8), "cannot process images of 1x32x8"),
        (put("pixels", "height", value=0), "cannot have the shape"),
        (put("pixels", "mean", value=[0.1, 0.2]), "mean needs one finite number per channel"),
        (put("pixels", "std", value=[0.0]), "std must be positive"),
        (put("pixels", "std", value=[float("nan")]), "std needs one finite number"),
        (put("pixels", value=None), "unreadable"),
        (put("partition", "layers", value=[]), "counts the parameters of 34 layers"),
        (put("partition", "layers", 0, "tensors", 0, value="../../x"), "does not fit.*../../x"),
        (put("partition", "layers", 0, "tensors", value=5), "unreadable"),
        (put("partition", "layers", 0, "tensors", value=[]), "does not fit"),
        (put("partition", value="x"), "unreadable"),
        (put("parameters", value=[1]), "counts the parameters of 1 layers"),
        (put("defense", value="rls"), "its metadata is unreadable"),
        (put("training", value=3), "its metadata is unreadable"),
        (put("training", value=[3]), "its metadata is unreadable"),
        (put("versions", value=3), "its metadata is unreadable"),
        (lambda metadata: metadata.pop("classes"), "its metadata is unreadable"),
        (lambda metadata: metadata.pop("architecture"), "its metadata is unreadable"),
        (lambda metadata: metadata.pop("partition"), "its metadata is unreadable"),
    ],
)  # fmt: skip
def test_forged_metadata(saved: Path, change: Any, reason: str) -> None:
    refused(forge(saved, change), reason)


def test_the_checksum_covers_all_that_answers_come_from(saved: Path, tmp_path: Path) -> None:
    model, digests = load(saved), {inspect(saved)["sha256"]}
    assert digests == {digest_of(model)}
    pixels, card = model.card.pixels, model.card
    changes: list[dict[str, Any]] = [
        {"pixels": dataclasses.replace(pixels, mean=(0.31,))},
        {"pixels": dataclasses.replace(pixels, std=(0.31,))},
        {"defense": "ensemble"},
        {"settings": {"alpha": 1.0}},
        {"bank_probs": (0.25, 0.75)},
        {"class_names": tuple("abcdefghij")},
    ]
    for change in changes:
        model.card = dataclasses.replace(card, **change)
        digests.add(save(model, tmp_path / "other.safetensors", force=True))
        assert digest_of(load(tmp_path / "other.safetensors")) in digests
    assert len(digests) == 7
    model.card = dataclasses.replace(card, notes=("from elsewhere",), data="mnist")
    assert digest_of(model) in digests  # what a file is called changes no answer


def test_an_edited_card_is_damage_and_an_older_file_is_not(saved: Path) -> None:
    metadata, tensors = metadata_of(saved), load_file(saved)
    metadata["pixels"]["mean"] = [0.5]
    save_file(tensors, saved, metadata={"rlskit": json.dumps(metadata)})
    refused(saved, "its contents do not match their checksum")
    sign(metadata, tensors)
    for name in ("class_names", "assumed", "notes"):
        del metadata[name]
    save_file(tensors, saved, metadata={"rlskit": json.dumps(metadata)})
    assert load(saved).card.class_names == ()


@pytest.mark.parametrize("banks", [3, 20_000])
def test_more_banks_than_tensors(saved: Path, banks: int) -> None:
    tensors = {f"bank{m}.head.weight": torch.zeros(1) for m in range(banks)}
    metadata = {**metadata_of(saved), "banks": banks}
    sign(metadata, tensors)
    save_file(tensors, saved, metadata={"rlskit": json.dumps(metadata)})
    refused(saved, "does not fit its architecture|too few for 20000 banks")


def test_a_header_beyond_reason(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((2**30).to_bytes(8, "little") + b"{}")
    refused(path, "has a header of 1,073,741,824 bytes, beyond reason")


def test_a_layer_added_to_the_partition(saved: Path) -> None:
    forged = forge(saved, lambda m: (m["partition"]["layers"].append({"name": "x", "tensors": []}),
                                     m["parameters"].append(0)))  # fmt: skip
    refused(forged, "the partition has an empty layer")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "bank0.extra", "bank7.head.weight", ""]
)
def test_tensors_of_other_names(saved: Path, name: str) -> None:
    metadata, tensors = metadata_of(saved), load_file(saved)
    tensors[name] = torch.zeros(1)
    sign(metadata, tensors)
    save_file(tensors, saved, metadata={"rlskit": json.dumps(metadata)})
    refused(saved, "does not fit its architecture|but has tensors of 3")


def test_tensors_of_another_type_or_shape(saved: Path) -> None:
    metadata, tensors = metadata_of(saved), load_file(saved)
    name = next(name for name, tensor in tensors.items() if len(set(tensor.shape)) == 2)
    for changed in (tensors[name].double(), tensors[name].view(torch.int32), tensors[name].t()):
        odd = {**tensors, name: changed.contiguous()}
        sign(metadata, odd)
        save_file(odd, saved, metadata={"rlskit": json.dumps(metadata)})
        refused(saved, "does not fit its architecture timm:test_vit2: " + name)


def test_code_of_ones_own_is_never_taken_from_the_file(
    tmp_path: Path, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlskit.models import own as own_module

    path = tmp_path / "m.safetensors"
    model = convert(own)
    save(model, path)
    assert_equal(load(path), model)
    monkeypatch.setattr(own_module, "_introduced", {})
    assert_equal(load(path), model)  # this machine remembers
    remembered = own_module._memory_file()
    remembered.write_text("[1, 2]")
    refused(path, "code of its author's unknown on this machine; name it with `architecture`")
    assert_equal(load(path, architecture=own), model)
    assert inspect(path)["architecture"]["name"] == "own.py:net"
    (tmp_path / "own.py").write_text(OWN + "\n# changed\n")
    refused(path, "own.py has changed since the model was converted")
    renamed = load(path, architecture=own)
    assert_equal_tensors(renamed, model)
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})")
    evil = forge(path, put("architecture", "name", value=f"{tmp_path}/evil.py:net"))
    monkeypatch.setattr(own_module, "_introduced", {})
    remembered.unlink()
    refused(evil, "unknown on this machine")
    assert not (tmp_path / "executed").exists()


def assert_equal_tensors(first: BankedModel, second: BankedModel) -> None:
    for one, two in zip(state(first), state(second), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_factory_does_not_fit(tmp_path: Path, own: str) -> None:
    path = tmp_path / "m.safetensors"
    save(convert(own), path)
    (tmp_path / "other.py").write_text(OWN.replace("self.middle", "self.center"))
    with pytest.raises(RequestError, match="the partition does not fit the network"):
        load(path, architecture=f"{tmp_path / 'other.py'}:net")


def test_inspect_needs_no_code(saved: Path) -> None:
    about = inspect(saved)
    assert about["banks"] == 2
    model = load(saved)
    count = sum(parameter.numel() for parameter in model.banks[0].parameters())
    assert sum(about["parameters"]) == count
    assert len(about["parameters"]) == len(about["partition"]["layers"]) == model.num_layers
    for key in ("partition", "banks", "training", "parameters"):
        with pytest.raises(RequestError, match="its metadata is unreadable"):
            inspect(forge(saved, lambda metadata, key=key: metadata.pop(key)))  # type: ignore[misc]


def test_an_existing_file_is_kept(saved: Path) -> None:
    content = saved.read_bytes()
    model = load(saved)
    with pytest.raises(RequestError, match="exists already; `force` replaces it"):
        save(model, saved)
    assert saved.read_bytes() == content
    save(model, saved, force=True)
    assert saved.read_bytes() == content  # the same model is the same file
    with pytest.raises(RequestError, match="is a folder; name a file"):
        save(model, saved.parent, force=True)
    with pytest.raises(RequestError, match="there is no folder"):
        save(model, saved.parent / "nowhere" / "m.safetensors")


@pytest.mark.parametrize("where", ["fsync", "replace", "write"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    saved: Path, where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, model = saved.read_bytes(), load(saved)

    def fail(*_: object, **__: object) -> None:
        raise error

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif where == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        calls = iter(range(1000))
        real = sys.modules["rlskit.storage.files"].tensor_bytes

        def halfway(tensor: Tensor) -> memoryview:
            if next(calls) == 10:
                fail()
            return real(tensor)  # type: ignore[no-any-return]

        monkeypatch.setattr("rlskit.storage.files.tensor_bytes", halfway)
    with pytest.raises(type(error)):
        save(model, saved, force=True)
    monkeypatch.undo()
    assert saved.read_bytes() == content
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []
    assert_equal(load(saved), model)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk(saved: Path) -> None:
    content, model = saved.read_bytes(), load(saved)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save(model, saved, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert saved.read_bytes() == content
    assert len(list(saved.parent.glob(".*"))) == 0


def test_a_new_file_heeds_the_umask(tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            write_text(tmp_path / "text", "ü", force=True)
        finally:
            os.umask(before)
        assert (tmp_path / "text").stat().st_mode & 0o777 == mode
    assert (tmp_path / "text").read_text(encoding="utf-8") == "ü"


def test_replacing_is_seen_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path, force=True) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "fresh"),
    [
        ("timm:test_resnet", lambda: timm.create_model("test_resnet", num_classes=10, in_chans=1)),
        ("timm:test_vit2", lambda: timm.create_model(
            "test_vit2", num_classes=10, in_chans=1, img_size=32)),
        ("torchvision:shufflenet_v2_x0_5", lambda: torchvision.models.get_model(
            "shufflenet_v2_x0_5", num_classes=10)),
    ],
)  # fmt: skip
def test_an_exported_file_loads_strictly(
    tmp_path: Path, name: str, fresh: Callable[[], nn.Module]
) -> None:
    library = name.partition(":")[0]
    model = convert(name, banks=2, in_chans=1 if library == "timm" else 3)
    plan = torch.arange(model.num_layers) % 2
    export(model, plan, tmp_path / "x.safetensors")
    network = fresh()
    state_dict = load_file(tmp_path / "x.safetensors")
    network.load_state_dict(state_dict, strict=True)
    images = torch.rand(2, *model.card.pixels.shape)
    network.eval().requires_grad_(False)
    assert torch.equal(network(model.normalize(images)), model.sampled(plan)(images))
    with pytest.raises(RequestError, match="exists already"):
        export(model, plan, tmp_path / "x.safetensors")
    with pytest.raises(RequestError, match="a plan is"):
        export(model, [0, 1], tmp_path / "y.safetensors")


def test_an_exported_file_has_tied_tensors_under_each_name(tmp_path: Path, own: str) -> None:
    model = convert(own)
    export(model, [1] * model.num_layers, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(model.banks[1].state_dict())
    assert torch.equal(found["again.weight"], found["middle.weight"])
    expected = tensor_names(model.banks[1])
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_public_format_is_named() -> None:
    assert checkpoint.FORMAT == "rlskit.checkpoint/1"
