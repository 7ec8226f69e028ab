"""`convert`: from a name and options to a model that fits its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlskit.conversion.to_banks import JITTER, convert
from rlskit.errors import RequestError, RlskitError
from rlskit.models import BankedModel, list_models, resolve
from rlskit.models.building import build_on_meta, configure
from rlskit.models.stem import set_input_channels
from rlskit.models.trace import tensor_names

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.rates = torch.linspace(0, 0.1, 3).tolist()  # values: not on the meta device
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))


def net(num_classes=10):
    return Net(4, num_classes)


def stubborn():
    return Net(4, 10)


def mlp(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))


def demanding(width):
    return Net(width, 10)


def broken():
    return {}[0]


def no_module():
    return 7


constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one's own code in it."""
    (tmp_path / "net.py").write_text(NET)
    package = tmp_path / "mine_for_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NET)
    (tmp_path / "fails.py").write_text("1 / 0")
    broken = tmp_path / "broken_package_for_tests"
    broken.mkdir()
    (broken / "__init__.py").write_text("1 / 0")
    (broken / "nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def values(model: BankedModel, bank: int) -> dict[str, Tensor]:
    return model.bank_tensors()[bank]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def answer(model: BankedModel) -> Tensor:
    images = torch.rand(2, *model.card.pixels.shape)
    with torch.no_grad():
        logits: Tensor = model.sampled(torch.zeros(model.num_layers, dtype=torch.long))(images)
    return logits


def test_the_defaults_are_for_digits() -> None:
    model = convert("test_resnet")
    card = model.card
    assert (model.num_banks, card.defense, card.data, card.classes) == (2, "rls", "digits", 10)
    assert card.pixels.shape == (1, 32, 32)  # 8x8 is enlarged
    assert (card.pixels.mean, card.pixels.std) == ((0.3054,), (0.3761,))  # as the data set's test
    assert (card.trained, card.pretrained, card.training) == (False, "", [])
    assert answer(model).shape == (2, 10)


def test_each_defense_has_its_own_defaults() -> None:
    ensemble = convert("test_resnet", defense="ensemble")
    assert (ensemble.num_banks, ensemble.num_layers) == (3, 1)
    alone = convert("test_resnet", defense="none")
    assert (alone.num_banks, alone.partition.granularity) == (1, "model")


def test_independent_banks_differ_and_are_reproducible() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    model = convert("test_resnet", banks=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # the global stream is left as it was
    torch.manual_seed(2)
    again = convert("test_resnet", banks=3, seed=5)
    assert all(equal(values(model, m), values(again, m)) for m in range(3))
    weights = [bank[_first(bank)] for bank in model.bank_tensors()]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert not equal(values(model, 0), values(convert("test_resnet", banks=1, seed=6), 0))
    assert equal(values(model, 0), values(convert("test_resnet", banks=1, seed=5), 0))


def _first(bank: dict[str, Tensor]) -> str:
    return next(name for name in bank if bank[name].ndim == 4)


def test_copied_banks_are_equal_and_apart() -> None:
    model = convert("test_resnet", banks=2, init="copy")
    first, second = model.bank_tensors()
    assert equal(first, second)
    assert not {t.data_ptr() for t in first.values()} & {t.data_ptr() for t in second.values()}


def test_jittered_banks_are_copies_with_a_little_noise() -> None:
    copies, model = (convert("test_resnet", init=init, seed=3) for init in ("copy", "jitter"))
    name = _first(values(copies, 0))
    source = values(copies, 0)[name]
    for m in range(2):
        noise = (values(model, m)[name] - source).detach()
        assert noise.std().item() == pytest.approx(JITTER * source.std().item(), rel=0.2)
    assert not torch.equal(values(model, 0)[name], values(model, 1)[name])
    again = convert("test_resnet", init="jitter", seed=3)
    assert all(equal(values(model, m), values(again, m)) for m in range(2))


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_small_images_give_resnets_the_stem_of_the_cifar_literature(name: str) -> None:
    model = convert(name, banks=1, data="cifar10", small_images=True)
    network = model.banks[0]
    stem = network.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(network.get_submodule("maxpool"), nn.Identity)
    seen: list[Any] = []
    network.get_submodule("layer1").register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    with torch.no_grad():
        assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 64, 32, 32)]  # 7x7 and pooled it would be 8 x 8


def test_a_factory_may_import_what_lies_beside_it(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "beside.py").write_text(NET)
    (folder / "sub" / "mine.py").write_text("from beside import net\n")
    assert convert("sub/mine.py:net").card.architecture.name == "mine.py:net"


@pytest.mark.parametrize(
    ("name", "pools"),
    [
        ("densenet121", 0),
        ("dpn68", 0),
        ("legacy_seresnet18", 0),
        ("ese_vovnet19b_slim", 3),  # between its stages
        ("seresnext26ts", 0),
        ("inception_resnet_v2", 3),  # one between its stages, two in them
        ("torchvision:alexnet", 2),
        ("torchvision:googlenet", 12),  # three between stages, nine in them
        ("torchvision:shufflenet_v2_x0_5", 0),
        ("torchvision:squeezenet1_1", 2),
    ],
)
def test_small_images_drop_the_max_pool_of_the_stem_and_no_other(name: str, pools: int) -> None:
    task: dict[str, Any] = {"classes": 10, "channels": 3, "image_size": (32, 32)}
    network = build_on_meta(configure(resolve(name), **task, small_images=True))
    assert sum(isinstance(m, nn.MaxPool2d) for m in network.modules()) == pools


def test_small_images_leave_no_padding_where_the_pool_was() -> None:
    task: dict[str, Any] = {"classes": 10, "channels": 3, "image_size": (32, 32)}
    network = build_on_meta(configure(resolve("resnetv2_50x1_bit"), **task, small_images=True))
    images = torch.zeros(1, 3, 32, 32, device="meta")
    assert network.get_submodule("stem")(images).shape[2:] == (32, 32)


@pytest.mark.parametrize("name", ["timm:vgg16", "torchvision:vgg16"])
def test_small_images_give_vgg_one_linear_layer(name: str) -> None:
    model = convert(name, banks=1, data="cifar10", small_images=True)
    linears = [m for m in model.banks[0].modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(512, 10)]
    assert model.num_layers == 14
    assert answer(model).shape == (2, 10)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_small_images_are_for_stems_that_overlap(name: str) -> None:
    with pytest.raises(RequestError, match="knows convolutional stems and VGGs"):
        convert(name, data="cifar10", small_images=True)


def test_torchvision_models_take_other_channels() -> None:
    model = convert("torchvision:squeezenet1_1", banks=1, in_chans=2, image_size=64)
    assert model.card.pixels.shape == (2, 64, 64)
    assert len(set(model.card.pixels.mean)) == 1  # the gray mean of digits, for each channel
    stem = next(m for m in model.banks[0].modules() if isinstance(m, nn.Conv2d))
    assert stem.weight.shape[1] == stem.in_channels == 2
    assert answer(model).shape == (2, 10)


def test_channels_are_carried_over() -> None:
    conv = nn.Conv2d(2, 1, 1, bias=False)
    conv.weight = nn.Parameter(torch.tensor([3.0, 6.0]).view(1, 2, 1, 1))
    for channels, weights in ((3, [2.0, 4.0, 2.0]), (1, [8.0]), (2, [4.0, 4.0])):
        set_input_channels(nn.Sequential(conv), channels)
        assert conv.weight.flatten().tolist() == weights
        assert conv(torch.ones(1, channels, 1, 1)).item() == sum(weights)
    with pytest.raises(RequestError, match="the first convolution is grouped"):
        set_input_channels(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), 3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_image_size_reaches_networks_that_have_it_built_in(name: str) -> None:
    model = convert(name, banks=1, image_size=64)
    assert model.card.pixels.shape == (1, 64, 64)
    assert model.card.architecture.kwargs["img_size"] == (64, 64)
    assert answer(model).shape == (2, 10)


@pytest.mark.slow
def test_image_size_reaches_torchvisions_networks() -> None:
    vit = convert("torchvision:vit_b_16", banks=1, image_size=32)
    assert vit.card.architecture.kwargs == {"num_classes": 10, "image_size": 32}
    assert values(vit, 0)["encoder.pos_embedding"].shape == (1, 5, 768)
    maxvit = convert("maxvit_t", banks=1, image_size=448)
    assert maxvit.card.architecture.kwargs["input_size"] == (448, 448)


def test_mean_and_std() -> None:
    assert convert("test_resnet", mean=(0.1,), std=(0.2,)).card.pixels.mean == (0.1,)
    three = convert("test_resnet", data="cifar10", mean=(0.1,), std=(0.2, 0.3, 0.4)).card.pixels
    assert (three.mean, three.std) == ((0.1, 0.1, 0.1), (0.2, 0.3, 0.4))
    for mean, std in (((0.1, 0.2), None), (None, (0.0,)), ((float("nan"),), None)):
        with pytest.raises(RequestError, match=r"mean|std"):
            convert("test_resnet", mean=mean, std=std)


def test_facts_of_a_data_set_of_ones_own(folder: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", x_train=images, y_train=np.arange(12) % 4)
    card = convert("test_resnet", data=f"npz:{folder}/data.npz").card
    assert (card.classes, card.pixels.shape) == (4, (3, 40, 40))
    assert card.pixels.mean == pytest.approx(tuple(images.mean((0, 1, 2)) / 255), abs=1e-5)
    with pytest.raises(RequestError, match="a path from a checkpoint is not followed"):
        card.default_data()


@pytest.mark.parametrize("spec", ["net.py:net", "mine_for_tests.nets:net"])
def test_a_factory_of_ones_own(folder: Path, spec: str) -> None:
    model = convert(spec, data="cifar10", num_classes=7)
    assert model.card.architecture.label == spec
    assert [layer.name for layer in model.partition.layers] == ["conv", "head"]
    assert answer(model).shape == (2, 7)


def test_ones_own_network_without_convolutions(folder: Path) -> None:
    assert answer(convert("net.py:mlp")).shape == (2, 10)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("missing.py:net", "there is no file missing.py"),
        ("net.py:unknown", "has no factory called 'unknown'"),
        ("net.py:constant", "has no factory called 'constant'"),
        ("net.py", "needs the name of its factory: net.py:FACTORY"),
        ("net.py:demanding", "cannot be built .*missing 1 required positional argument: 'width'"),
        ("net.py:broken", "cannot be built"),
        ("net.py:no_module", r"gives a int, not a torch\.nn\.Module"),
        ("fails.py:net", "cannot be imported .ZeroDivisionError"),
        ("no_such_module:net", "there is no Python module 'no_such_module'"),
        ("broken_package_for_tests.nets:net", "there is no Python module|cannot be imported"),
        ("hf-hub:timm/resnet18", "there is no Python module 'hf-hub'"),
        ("local-dir:/tmp", "there is no Python module 'local-dir'"),
    ],
)
def test_own_code_that_does_not_work(folder: Path, spec: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        convert(spec, data="cifar10")


def test_own_code_must_take_the_number_of_classes(folder: Path) -> None:
    assert convert("net.py:stubborn", data="cifar10").card.classes == 10
    with pytest.raises(RequestError, match="10 classes, not 7; let its factory take num_classes"):
        convert("net.py:stubborn", data="cifar10", num_classes=7)


def test_names_of_both_libraries() -> None:
    assert resolve("resnet18").source == resolve("timm:resnet18").source == "timm"
    assert resolve("torchvision:resnet18").source == resolve("swin_t").source == "torchvision"
    assert resolve("resnet50.a1_in1k").name == "resnet50.a1_in1k"
    names = list_models()
    assert len(names) == len(set(names))
    assert {"resnet18", "torchvision:resnet18", "swin_t"} <= set(names)
    assert "torchvision:swin_t" not in names
    assert list_models("resnet1?") == ["resnet18"]
    assert {"resnet18", "resnet18d", "torchvision:resnet18"} <= set(list_models("resnet18"))
    assert list_models("no such model") == []


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet51", "resnet50"), ("ResNet50", "resnet50"), ("timm:resnet51", "timm:resnet50"),
        ("torchvision:vgg17", "torchvision:vgg16"), ("swin_u", "swin_t"),
        ("resnet50.a1_in2k", "resnet50.a1_in1k"), ("torchvision:resnet18.a1_in1k", "resnet18"),
    ],
)  # fmt: skip
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(RequestError, match=rf"no model is called .*did you mean .*\b{near}\b"):
        convert(name)


def test_a_name_like_no_other() -> None:
    with pytest.raises(RequestError, match=r"`rlskit.list_models.*` lists them"):
        convert("$$$")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"banks": 0}, "`banks` must be at least 1, not 0"),
        ({"banks": 2, "defense": "none"}, "`defense='none'` has 1 bank, not 2"),
        ({"defense": "rsl"}, "`defense` 'rsl' is unknown; did you mean rls or rse\\?"),
        ({"granularity": "layers"}, "`granularity` 'layers' is unknown"),
        ({"bank_only": "nothing*"}, "`bank_only` 'nothing\\*' matches no layer"),
        ({"data": "mnits"}, "`data` 'mnits' is unknown"),
        ({"num_classes": 0}, "`num_classes` must be at least 1, not 0"),
        ({"in_chans": 0}, "`in_chans` must be at least 1, not 0"),
        ({"image_size": 0}, "`image_size` must be at least 1, not 0"),
        ({"image_size": -5}, "`image_size` must be at least 1, not -5"),
        ({"init": "zeros"}, "`init` 'zeros' is unknown"),
        ({"weights": "missing.pth"}, "there is no weight file missing.pth"),
        ({"weights": "w.pth", "pretrained": True}, "`pretrained` and `weights` exclude each other"),
        ({"weights": "w.pth", "init": "independent"}, "would throw the weights away"),
        ({"pretrained": True, "init": "independent"}, "would throw the weights away"),
    ],
)
def test_wrong_options(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        convert("test_resnet", **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vgg11", {"image_size": 8}, "8x8"),
        ("vit_tiny_patch16_224", {"image_size": 8}, "."),
        ("torchvision:vit_b_16", {"image_size": 40}, "cannot be built"),
        ("qwen3_vit_88m_enc", {"data": "cifar10"}, "has no classification head"),
    ],
)
def test_networks_that_cannot_take_such_images(
    name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        convert(name, **options)
    assert "\n" not in str(caught.value)


def test_pretrained_code_of_ones_own_does_not_exist(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"no library has weights of net\.py:net"):
        convert("net.py:net", pretrained=True)


def test_published_encoders_need_a_number_of_classes() -> None:
    with pytest.raises(RequestError, match="have no classification head; `num_classes`"):
        convert("vit_base_patch14_dinov2", pretrained=True)


def test_every_error_is_one_of_ours(folder: Path) -> None:
    assert issubclass(RequestError, RlskitError)
    assert set(tensor_names(convert("net.py:net", data="cifar10").banks[0])) == {
        "conv.weight", "conv.bias", "head.weight", "head.bias",
    }  # fmt: skip
