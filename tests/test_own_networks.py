"""Networks of one's own: each is used as its author meant it, or refused in a sentence."""

import importlib
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import rlskit
from rlskit.cli import run
from rlskit.data import Data
from rlskit.defenses import draws
from rlskit.errors import RequestError, RunError, UntrustedError
from rlskit.models.architecture import resolve
from rlskit.models.building import build_on_meta, configure
from rlskit.models.layout import layout_of
from rlskit.models.trial import check_rebuilt
from rlskit.threat.view import attackers_view

NETS = """
import random
import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

print("imported")
HERE = __HERE__


class Net(nn.Module):
    def __init__(self, num_classes=10, in_chans=1):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_chans, 4, 5, 2), nn.Linear(4, num_classes)
        self.prepare()

    def prepare(self):
        pass

    def features(self, x):
        return self.conv(x).relu()

    def mix(self, h):
        return h

    def forward(self, x):
        return self.fc(self.mix(self.features(x)).mean((2, 3)))


class Keyed(Net):
    def prepare(self):
        self.key = torch.randperm(4)

    def mix(self, h):
        return h[:, self.key] * torch.arange(4.0)[:, None, None]


class KeyedBeforeZeros(Keyed):
    def prepare(self):
        super().prepare()
        nn.init.zeros_(self.fc.weight)


class Nested(Net):
    def prepare(self):
        self.keys = {"noise": [np.random.rand(4).astype(np.float32)]}

    def mix(self, h):
        return h * torch.from_numpy(self.keys["noise"][0])[:, None, None]


class Listed(Net):
    def prepare(self):
        self.more = [nn.Conv2d(4, 4, 1)]

    def mix(self, h):
        return self.more[0](h)


class Closed(Net):
    def prepare(self):
        gain = torch.rand(4, 1, 1)
        self.scale = lambda h: h * gain

    def mix(self, h):
        return self.scale(h)


class Unsaved(Net):
    def prepare(self):
        self.register_buffer("gain", torch.rand(4, 1, 1), persistent=False)

    def mix(self, h):
        return h * self.gain


class Noisy(Net):
    def mix(self, h):
        return h + torch.randn_like(h)


class Kept(Net):
    kernel = None

    def features(self, x):
        if self.kernel is None:
            self.kernel = self.conv.weight * 1
        return F.conv2d(x, self.kernel, stride=2)


class Stale(Net):
    def prepare(self):
        nn.utils.weight_norm(self.conv)

    def features(self, x):  # without the module, and so without the hook that computes the weight
        return F.conv2d(x, self.conv.weight, stride=2)


class Pairs(Net):
    def mix(self, h):
        if len(h) % 2:
            raise KeyError("an odd batch")
        return h


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.sign()


class Torn(Net):
    def mix(self, h):
        return OneWay.apply(h)


class Locked(Net):
    def prepare(self):
        self.lock = threading.Lock()


class NoGrad(Net):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Squeezed(Net):
    def forward(self, x):
        h = F.adaptive_avg_pool2d(self.features(x), 1).squeeze()
        return F.log_softmax(self.fc(h), dim=1)


class Scaled(Net):
    def prepare(self):
        self.scale = nn.Parameter(torch.from_numpy(np.array(1.5)))

    def forward(self, x):
        return super().forward(x) * self.scale


class Dividing(Net):
    def prepare(self):
        self.register_buffer("size", torch.ones(()))

    def mix(self, h):
        self.size.mul_(0.5).add_(h.detach().mean())
        return h / self.size


class Compiled(Net):
    def prepare(self):
        self.forward = torch.compile(self.forward, backend="eager")
        self.mix = torch.compile(self.mix, backend="eager")


class Complex(Net):
    def prepare(self):
        self.filter = nn.Parameter(torch.randn(4, 1, 1, dtype=torch.complex64))

    def mix(self, h):
        return torch.fft.ifft2(torch.fft.fft2(h) * self.filter).real


class Gray(nn.Module):  # the convolution that reads colours comes second, and is no stem
    def __init__(self, num_classes=10):
        super().__init__()
        self.last, self.conv = nn.Conv2d(5, num_classes, 1), nn.Conv2d(1, 4, 5, 2)
        self.tint = nn.Conv2d(3, 1, 5, 2)

    def forward(self, x):
        gray = self.conv(x.mean(1, keepdim=True))
        return self.last(torch.cat([gray, self.tint(x)], 1).relu()).mean((2, 3))


class Talkative(Net):
    def forward(self, x):
        print("forward")
        return super().forward(x)

    def train(self, mode=True):
        print("moded")
        return super().train(mode)

    def __del__(self):
        print("deleted")


class Viewing(Net):
    def forward(self, x):
        return self.fc(self.features(x).view(x.size(0), -1)[:, :4])


class ViewingInTraining(Net):
    def forward(self, x):
        h = self.features(x)
        return self.fc((h.view(x.size(0), -1) if self.training else h.flatten(1))[:, :4])


class Lone(Net):
    def prepare(self):
        self.fc = nn.Linear(4, 1)


class Ranged(Net):
    def features(self, x):
        if x.min() < 0 or x.max() > 1:
            raise ValueError("images must be in [0, 1]")
        return super().features(x)


made = Net()


def talkative(num_classes=10, in_chans=1):
    print("built")
    return Talkative(num_classes, in_chans)


def frozen(num_classes=10, in_chans=1):
    return Net(num_classes, in_chans).requires_grad_(False)


def weight_norm(num_classes=10, in_chans=1):
    net = Net(num_classes, in_chans)
    nn.utils.weight_norm(net.conv)
    return net


def scripted(num_classes=10, in_chans=1):
    net = Net(num_classes, in_chans)
    return torch.jit.trace(net, torch.rand(2, in_chans, 32, 32))


def exported(num_classes=10, in_chans=1):
    net = Net(num_classes, in_chans)
    return torch.export.export(net, (torch.rand(2, in_chans, 32, 32),)).module()


def seeded(num_classes=10, in_chans=1):
    torch.manual_seed(0)
    return Net(num_classes, in_chans)


def trained():
    net = Net(10, 3)
    net.load_state_dict(torch.load(HERE + "/trained.pth"))
    return net


def warm():  # a body from a file, and a random head
    net = Net(10, 3)
    net.conv.load_state_dict(torch.load(HERE + "/body.pth"))
    return net
"""

MODULE = """
import torch
from torch import nn

KEY = torch.rand(1024)


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1) * KEY)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the networks; the old functions of torch may say that they are old."""
    (tmp_path / "nets.py").write_text(NETS.replace("__HERE__", repr(str(tmp_path))))
    (tmp_path / "nets_of_a_package.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        yield tmp_path


def converted(factory: str, **options: Any) -> rlskit.BankedModel:
    return rlskit.convert(f"nets.py:{factory}", **{"data": "digits", **options})


def digits(limit: int, split: str = "test") -> Data:
    return rlskit.load_data("digits", split, limit=limit)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("Keyed", "nets.py:Keyed keeps random state in key, which no file of weights holds"),
        ("KeyedBeforeZeros", "keeps random state in key"),
        ("Nested", "keeps random state in keys"),
        ("Listed", "keeps random state in more.*nn.ModuleList"),
        ("Closed", "keeps random state in scale"),
        ("Unsaved", "the buffer gain is random"),
        ("Stale", "keeps random state in conv.weight"),
        ("Kept", "answers otherwise once other tensors are in the place of its own"),
        ("Locked", "Locked cannot be copied .*lock"),
        ("scripted", "nets.py:scripted gives a TorchScript module.*its file itself"),
        ("exported", "nets.py:exported gives a module of torch.export"),
        ("Lone", r"nets.py:Lone answers with one number per image; .*torch\.zeros_like\(z\), z"),
        ("Ranged", r"images must be in \[0, 1\]\).* other `mean` and `std`"),
        ("made", "nets.py:made is one network, and each bank is built by itself"),
    ],
)
@pytest.mark.parametrize("defense", ["none", "rls"])
def test_what_could_not_be_saved_or_exchanged_is_refused(
    factory: str, defense: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        converted(factory, defense=defense)


def test_a_network_with_noise_of_its_own_is_left_to_the_preflight() -> None:
    model = converted("Noisy", defense="none")
    with pytest.raises(UntrustedError, match="answers the same images differently each time"):
        rlskit.evaluate(model, digits(4))


def test_state_of_a_whole_module_shows_when_the_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rlskit.convert("nets_of_a_package:Net", data="digits")
    rlskit.save(model, "model.safetensors")
    loaded = rlskit.load("model.safetensors")
    images = torch.rand(3, 1, 32, 32)
    assert torch.equal(
        loaded.sampled(torch.tensor([1]))(images), model.sampled(torch.tensor([1]))(images)
    )
    module = importlib.import_module("nets_of_a_package")
    monkeypatch.setattr(module, "KEY", torch.rand(1024))  # as in another process
    with pytest.raises(RequestError, match="builds another network than the one that was saved"):
        rlskit.load("model.safetensors")


def test_a_checkpoint_from_before_is_tried_by_building_twice() -> None:
    honest = converted("Net", defense="none")
    check_rebuilt(honest.card, honest.partition)
    honest.card.architecture = resolve("nets.py:Keyed")
    with pytest.raises(RequestError, match="keeps random state in key"):
        check_rebuilt(honest.card, honest.partition)


@pytest.mark.parametrize(
    "factory", ["weight_norm", "Scaled", "Net", "frozen", "Compiled", "Complex"]
)
def test_draws_are_the_banks_after_training_too(factory: str) -> None:
    model = converted(factory)
    if factory != "frozen":
        rlskit.train(model, data=digits(8, "train"), epochs=1, batch_size=4, lr=0.1)
    images = torch.rand(3, 1, 32, 32)
    answers = [model.sampled(torch.full((model.num_layers,), m))(images) for m in range(2)]
    for answer, bank in zip(answers, model.banks, strict=True):
        assert torch.equal(answer, bank(model.normalize(images)))
    assert not torch.equal(answers[0], answers[1])
    mixed = model.sampled(torch.tensor([1, 0]))
    weights = {n: t for n, t in mixed.network.named_parameters() if n.startswith("conv")}
    assert weights
    assert all(torch.equal(t, model.bank_tensors()[1][n]) for n, t in weights.items())


def test_complex_weights_are_jittered_kept_and_looked_at() -> None:
    model = converted("Complex", init="jitter")
    filters = [bank["filter"].detach() for bank in model.bank_tensors()]
    assert 0 < float((filters[0] - filters[1]).abs().max()) < 1
    rlskit.save(model, "model.safetensors")
    loaded = rlskit.load("model.safetensors")
    assert torch.equal(loaded.bank_tensors()[1]["filter"], filters[1])
    loaded.bank_tensors()[1]["filter"].data.imag[0] = torch.nan
    with pytest.raises(UntrustedError, match="filter of bank 1 holds NaN or infinity"):
        rlskit.evaluate(loaded, digits(4))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("frozen", "nets.py:frozen freezes all its weights"),
        ("NoGrad", "logits do not depend differentiably on its weights.*no_grad"),
        ("Dividing", r"changes in place what its gradient needs.*`group_size=1`"),
    ],
)
def test_what_cannot_be_trained_says_so(factory: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        rlskit.train(converted(factory), data=digits(4, "train"), epochs=1)


def test_what_ones_own_code_raises_is_one_sentence() -> None:
    model = converted("Pairs", defense="none")
    said = r"the model's own code failed answering 3 images \(KeyError: 'an odd batch'\)"
    assert len(rlskit.evaluate(model, digits(4))) == 1
    with pytest.raises(RunError, match=said):
        rlskit.evaluate(model, digits(4), batch_size=3)
    with pytest.raises(RunError, match=said):
        rlskit.train(model, data=digits(6, "train"), epochs=1, batch_size=3)
    with pytest.raises(RunError, match="gradient of the network's weights cannot be computed"):
        rlskit.train(converted("Torn"), data=digits(4, "train"), epochs=1)


def test_a_frozen_network_can_be_attacked() -> None:
    result = rlskit.attack(converted("frozen", defense="none"), digits(4), method="fgsm", eps=0.1)
    assert result.perturbation is not None


def test_a_lone_image_of_a_squeezing_network_is_answered_as_among_others() -> None:
    model = converted("Squeezed", defense="none")
    plan = torch.zeros(model.num_layers, dtype=torch.long)
    draw = model.sampled(plan)
    images = torch.rand(3, 1, 32, 32, requires_grad=True)
    whole = draw(images)
    (slope,) = torch.autograd.grad(whole[:, 2].sum(), images)
    alone = images.detach()[:1].requires_grad_()
    for answer in (draw(alone), model(alone, plan)):
        torch.testing.assert_close(answer, whole[:1], rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(answer[0, 2], alone)
        torch.testing.assert_close(gradient, slope[:1], rtol=1e-4, atol=1e-7)
    assert not converted("Net", defense="none").lone_twice


def test_an_attack_may_lay_its_images_out_as_it_likes() -> None:
    model = converted("Viewing", defense="none")
    assert layout_of(model) == torch.contiguous_format
    assert layout_of(converted("Net", defense="none")) == torch.channels_last
    images = torch.rand(2, 32, 32, 1).permute(0, 3, 1, 2)  # contiguous, and channels last as well
    plain = torch.empty(2, 1, 32, 32).copy_(images)
    assert images.stride() != plain.stride()
    (draw,) = draws(model, 1, seed=0, purpose="attacker")
    for answers in (attackers_view(model, "transfer", 1, seed=0, repeat=0), draw):
        torch.testing.assert_close(answers(images), answers(plain))
    model = converted("Viewing", defense="none", in_chans=3)
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    view = attackers_view(model, "transfer", 1, seed=0, repeat=0)
    torch.testing.assert_close(view(images), view(images.contiguous()))


def test_training_needs_a_layout_that_trains() -> None:
    model = converted("ViewingInTraining")
    assert layout_of(model) == torch.channels_last
    assert layout_of(model, training=True) == torch.contiguous_format
    assert rlskit.train(model, data=digits(4, "train"), epochs=1, batch_size=2).steps == 2


def test_what_ones_own_code_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "nets.py:talkative", "--defense", "none", "-o", "m.safetensors"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    said = {"imported", "built", "forward", "moded", "deleted"}
    assert said <= set(shown.err.split())
    for command in (["eval"], ["attack", "--method", "fgsm"]):
        assert run([*command, "m.safetensors", "--limit", "2", "--json", "-", "-q"]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)
        assert said <= set(shown.err.split())


@pytest.fixture
def files(folder: Path) -> Callable[[str], Tensor]:
    """Weights beside the networks."""
    body, fc = nn.Conv2d(3, 4, 5, 2), nn.Linear(4, 10)
    torch.save(body.state_dict(), folder / "body.pth")
    state = {f"conv.{k}": v for k, v in body.state_dict().items()}
    state |= {f"fc.{k}": v for k, v in fc.state_dict().items()}
    torch.save(state, folder / "trained.pth")
    return state.__getitem__


def test_a_factory_that_brings_its_weights_is_trained(
    files: Callable[[str], Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", "nets.py:trained", "--defense", "none", "--in-chans", "3"]) == 0
    said = capsys.readouterr().err
    assert "ASSUMED: the weights expect 32x32 pixels and mean" in said.replace("\n", " ")
    assert "untrained" not in said
    model = rlskit.load("rls.safetensors")
    assert (model.card.pretrained, model.card.trained) == ("factory", True)
    assert torch.equal(model.bank_tensors()[0]["conv.weight"], files("conv.weight"))
    Path("trained.pth").unlink()
    with pytest.raises(RequestError, match=r"wants a file that cannot be read .*trained.pth"):
        rlskit.load("rls.safetensors")


@pytest.mark.parametrize(
    "read",
    [
        "torch.jit.load(HERE / 'w.jit').state_dict()",
        "pickle.loads((HERE / 'w.pickle').read_bytes())",
        "safetensors.torch.load((HERE / 'w.st').read_bytes())",
    ],
)
def test_weights_may_be_read_in_any_way(tmp_path: Path, read: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    torch.jit.save(torch.jit.script(net), tmp_path / "w.jit")
    (tmp_path / "w.pickle").write_bytes(pickle.dumps(dict(net.state_dict())))
    save_file(net.state_dict(), tmp_path / "w.st")
    (tmp_path / "own.py").write_text(
        f"""import pathlib, pickle, safetensors.torch, torch
HERE = pathlib.Path({str(tmp_path)!r})
def factory():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))
    net.load_state_dict({read})
    return net
"""
    )
    model = rlskit.convert(f"{tmp_path}/own.py:factory", defense="none", data="digits")
    assert model.card.trained
    assert torch.equal(model.bank_tensors()[0]["1.weight"], net.state_dict()["1.weight"])


def test_weights_that_a_factory_brings_are_not_changed_for_other_channels(
    files: Callable[[str], Tensor],
) -> None:
    with pytest.raises(RequestError, match="brings weights for images of 3 channels, not 1"):
        converted("trained")


def test_random_weights_stay_untrained_whatever_a_factory_does(
    files: Callable[[str], Tensor],
) -> None:
    for factory in ("seeded", "warm"):
        assert not converted(factory, in_chans=3, defense="none").card.trained, factory


def test_a_network_that_takes_the_images_keeps_its_first_convolution() -> None:
    model = converted("Gray", in_chans=3, defense="none")
    shapes = {name: list(t.shape) for name, t in model.bank_tensors()[0].items()}
    assert shapes["last.weight"] == [10, 5, 1, 1]
    assert shapes["conv.weight"] == [4, 1, 5, 5]
    assert model.card.architecture.in_chans is None


@pytest.mark.parametrize(
    ("name", "asked", "reason"),
    [
        ("test_resnet", True, "is for torchvision's googlenet and inception_v3"),
        ("torchvision:googlenet", True, "is for 3 channels, not 1"),
    ],
)
def test_transform_input_is_for_two_networks(name: str, asked: bool, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        rlskit.convert(name, transform_input=asked)


@pytest.mark.parametrize(("asked", "used"), [(None, True), (True, True), (False, False)])
def test_weights_of_ones_own_are_assumed_to_come_from_torchvisions(
    asked: bool | None, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rlskit.conversion.to_banks as module

    fitted: list[bool] = []

    def stop(architecture: Any, **task: Any) -> Any:
        fitted.append(task["transform_input"])
        return configure(architecture, **task)

    monkeypatch.setattr(module, "configure", stop)
    monkeypatch.setattr(
        module, "_banks", lambda *_, **__: [build_on_meta(resolve("torchvision:googlenet"))]
    )
    found = SimpleNamespace(source="mine.pth", notes=(), count=1)
    monkeypatch.setattr(module, "_found_weights", lambda *_: found)
    monkeypatch.setattr(module, "_shown_outputs", lambda _: "")  # its banks are on meta
    model = rlskit.convert(
        "torchvision:googlenet", weights="mine.pth", transform_input=asked, defense="none"
    )
    assert fitted == [used]
    assert model.card.architecture.kwargs.get("transform_input", False) == used
    said = [note for note in model.card.assumed if note.startswith("ASSUMED: mine.pth was")]
    assert len(said) == (asked is None)
