"""Every parameter and persistent buffer of every kind of network is in exactly one layer."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlskit.errors import RequestError
from rlskit.models import Layer, Partition, resolve
from rlskit.models.architecture import Architecture
from rlskit.models.building import build_on_meta, configure
from rlskit.models.listing import library_names
from rlskit.models.outputs import HeadlessError
from rlskit.models.partition import NESTED, partition
from rlskit.models.published import library_pixels
from rlskit.models.trace import Trace, tensor_names, trace
from rlskit.torchvision_ops import declare_missing_operators
from small_models import Recurrent

declare_missing_operators()
import timm  # noqa: E402

_SMALL_FIRST = (
    "test_", "atto", "nano", "xxs", "xx", "tiny", "_s0", "_b0", "_m0", "_s", "small", "18", "_050",
)  # fmt: skip


def smallest(family: str) -> str:
    """A model of a timm family that costs little, by its name."""
    names: list[str] = [n for n in timm.list_models(module=family) if not n.endswith("_enc")]
    for sign in _SMALL_FIRST:
        fitting = [name for name in names if sign in name]
        if fitting:
            return fitting[0]
    return names[0]


def traced(architecture: Architecture, side: int | None = None) -> tuple[nn.Module, Trace]:
    pixels = library_pixels(architecture)
    size = (side or pixels["height"], side or pixels["width"])
    fitted = configure(architecture, classes=None, channels=None, image_size=size)
    network = build_on_meta(fitted)
    return network, trace(network, (pixels["channels"], *size))


def check_everything(network: nn.Module, shown: Trace) -> None:
    """Check what must hold for any network, without the partition's own check."""
    names = list(network.state_dict())
    tensors = tensor_names(network)
    assert sorted(tensors) == sorted(names)
    parameters = dict(network.named_parameters())
    used = [name for name in shown.uses if name in parameters]
    sizes = []
    for granularity in NESTED:
        layers = partition(network, shown, granularity).layers
        placed = Counter(name for layer in layers for name in layer.tensors)
        assert placed == Counter(names), granularity
        home = {name: i for i, layer in enumerate(layers) for name in layer.tensors}
        homes: dict[int, set[int]] = {}
        for name, tensor in tensors.items():
            homes.setdefault(id(tensor), set()).add(home[name])
        assert all(len(found) == 1 for found in homes.values()), f"{granularity}: a tie is torn"
        assert home[used[0]] == 0, f"{granularity}: what comes first is not in layer 0"
        assert len({layer.name for layer in layers}) == len(layers)
        sizes.append(len(layers))
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        partition(network, shown, "norm").check_covers(network)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1
    assert sizes[-1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", timm.list_modules())
def test_every_timm_family(family: str) -> None:
    side = 56 if family == "sequencer" else None  # an LSTM is traced step by step
    network, shown = traced(resolve(f"timm:{smallest(family)}"), side)
    check_everything(network, shown)


@pytest.mark.slow
@pytest.mark.parametrize("name", library_names("torchvision"))
def test_every_torchvision_model(name: str) -> None:
    network, shown = traced(resolve(f"torchvision:{name}"))
    check_everything(network, shown)
    assert shown.output[1] == 1000


@pytest.mark.parametrize("name", ["regnet_y_400mf", "regnet_x_32gf"])
def test_a_factory_that_reads_values_is_built_without_its_weights(name: str) -> None:
    architecture = configure(resolve(name), classes=7, channels=3, image_size=(224, 224))
    network = build_on_meta(architecture)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert trace(network, (3, 224, 224)).output == (2, 7)


@pytest.mark.parametrize(
    ("name", "layers", "blocks", "stages"),
    [
        ("resnet50", 54, 18, "conv1 layer1 layer2 layer3 layer4 fc"),
        ("test_resnet", 16, 8, "conv1 layer1 layer2 layer3 layer4 fc"),  # its third block is odd
        ("vit_tiny_patch16_224", 50, 14, "patch_embed blocks head"),
        ("swin_tiny_patch4_window7_224", 53, 17, "patch_embed layers.0 layers.1 layers.2 "
         "layers.3 head"),
        ("convnext_atto", 41, 17, "stem stages.0 stages.1 stages.2 stages.3 head"),
        ("densenet121", 121, 63, "features features.denseblock1 features.denseblock2 "
         "features.denseblock3 features.denseblock4 classifier"),
        ("regnety_002", 71, 15, "stem s1 s2 s3 s4 head"),
        ("torchvision:vgg11_bn", 11, 11, "features classifier"),
        ("torchvision:vit_b_16", 50, 14, "conv_proj encoder heads"),
    ],
)  # fmt: skip
def test_counts_of_known_networks(name: str, layers: int, blocks: int, stages: str) -> None:
    # 54 = 1 + 16 blocks of 3 + 4 downsamplings + 1; 50 = 1 + 12 blocks of 4 + 1; 121 is its name.
    network, shown = traced(resolve(name))
    assert len(partition(network, shown).layers) == layers
    assert len(partition(network, shown, "block").layers) == blocks
    assert [layer.name for layer in partition(network, shown, "stage").layers] == stages.split()


def names_of(name: str, granularity: str) -> list[str]:
    network, shown = traced(resolve(name))
    return [layer.name for layer in partition(network, shown, granularity).layers]


def test_layers_of_resnet18() -> None:
    assert names_of("resnet18", "layer") == [
        "conv1",
        "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2",
        "layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0",
        "layer2.1.conv1", "layer2.1.conv2",
        "layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0",
        "layer3.1.conv1", "layer3.1.conv2",
        "layer4.0.conv1", "layer4.0.conv2", "layer4.0.downsample.0",
        "layer4.1.conv1", "layer4.1.conv2",
        "fc",
    ]  # fmt: skip


def test_a_batch_norm_is_in_the_layer_of_its_convolution() -> None:
    network, shown = traced(resolve("resnet18"))
    first = partition(network, shown).layers[0]
    assert sorted(first.tensors) == [
        "bn1.bias", "bn1.num_batches_tracked", "bn1.running_mean", "bn1.running_var", "bn1.weight",
        "conv1.weight",
    ]  # fmt: skip


def test_tokens_join_the_first_layer_of_a_vit() -> None:
    network, shown = traced(resolve("vit_tiny_patch16_224"))
    layers = partition(network, shown).layers
    assert set(layers[0].tensors) == {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "blocks.0.norm1.weight", "blocks.0.norm1.bias",
    }  # fmt: skip
    assert [layer.name for layer in layers[:5]] == [
        "patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj",
        "blocks.0.mlp.fc1", "blocks.0.mlp.fc2",
    ]  # fmt: skip
    blocks = partition(network, shown, "block").layers
    assert {name.split(".")[1] for name in blocks[1].tensors} == {"0"}
    assert {"blocks.0.norm1.weight", "blocks.0.mlp.fc2.bias"} <= set(blocks[1].tensors)


def test_a_bias_table_joins_the_attention_that_reads_it() -> None:
    network, shown = traced(resolve("swin_tiny_patch4_window7_224"))
    home = {n: layer.name for layer in partition(network, shown).layers for n in layer.tensors}
    table = "layers.2.blocks.3.attn.relative_position_bias_table"
    assert home[table] == "layers.2.blocks.3.attn.qkv"


def test_blocks_of_an_efficientnet_and_a_densenet() -> None:
    assert names_of("efficientnet_b0", "block") == [
        "conv_stem", "blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1",
        "blocks.3.0", "blocks.3.1", "blocks.3.2", "blocks.4.0", "blocks.4.1", "blocks.4.2",
        "blocks.5.0", "blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6.0",
        "conv_head", "classifier",
    ]  # fmt: skip
    dense = names_of("torchvision:densenet121", "block")
    assert dense[:3] == ["features.conv0"] + [f"features.denseblock1.denselayer{n}" for n in (1, 2)]
    assert [name for name in dense if "denselayer" not in name] == [
        "features.conv0", *(f"features.transition{n}.conv" for n in (1, 2, 3)), "classifier",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nasnetalarge", "pnasnet5large"])
def test_a_stage_is_never_a_part_of_a_block(name: str) -> None:
    network, shown = traced(resolve(name))
    block_of = {n: b.name for b in partition(network, shown, "block").layers for n in b.tensors}
    stage_of = {n: s.name for s in partition(network, shown, "stage").layers for n in s.tensors}
    stages: dict[str, set[str]] = {}
    for tensor, block in block_of.items():
        stages.setdefault(block, set()).add(stage_of[tensor])
    assert {block: found for block, found in stages.items() if len(found) > 1} == {}


class Odd(nn.Module):
    """What wrapping `Conv2d` and `Linear` would miss: `[B, 3, 8, 8]` to `[B, 5]`."""

    shift: Tensor
    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(4, 5)  # an auxiliary head, used in training alone
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.table = nn.Parameter(torch.zeros(17))
        self.stem = nn.Conv2d(3, 6, 4, stride=4, bias=False)
        self.gain = nn.Parameter(torch.ones(6, 1, 1, 1))
        self.mix = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.mix.weight
        self.project = nn.Parameter(torch.zeros(6, 5))
        self.register_buffer("shift", torch.zeros(5))
        self.register_buffer("index", torch.arange(5), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.stem.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) * self.gain
        tokens = F.conv2d(images, weight, stride=4).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], 1)
        tokens = self.mix(tokens) + self.table[self.index][None, :, None]
        tokens = self.again(tokens).relu()
        logits: Tensor = tokens.mean(1) @ self.project + self.shift
        return logits


def layers_of(network: nn.Module, shape: tuple[int, int, int] = (3, 8, 8)) -> dict[str, set[str]]:
    found = partition(network, trace(network, shape)).layers
    return {layer.name: set(layer.tensors) for layer in found}


def test_a_network_with_everything_odd() -> None:
    network = Odd()
    check_everything(network, trace(network, (3, 8, 8)))
    assert layers_of(network) == {
        "stem": {"stem.weight", "gain", "token"},  # the token is read after the convolution
        "mix": {"mix.weight", "mix.bias", "table", "again.weight"},
        # what is never used goes where its elder sibling, the last tensor of the network itself, is
        "project": {"project", "shift", "spare.weight", "spare.bias"},
    }


class Filtered(nn.Module):
    """A fixed filter, which is a buffer, and a masked weight."""

    edges: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.zeros(4, 3, 3, 3))
        self.register_buffer("mask", torch.ones(5, 144))
        self.weight = nn.Parameter(torch.zeros(5, 144))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(F.conv2d(images, self.edges).flatten(1), self.mask * self.weight)


def test_a_buffer_starts_no_layer() -> None:
    assert layers_of(Filtered()) == {"weight": {"edges", "mask", "weight"}}


def test_the_weights_of_an_lstm_are_layers() -> None:
    assert layers_of(Recurrent(3), (1, 4, 4)) == {
        "rows.weight_ih_l0": {"rows.weight_ih_l0"},
        "rows.weight_hh_l0": {"rows.weight_hh_l0", "rows.bias_ih_l0", "rows.bias_hh_l0"},
        "head": {"head.weight", "head.bias"},
    }


class Attentive(nn.Module):
    """torch.nn's own transformer layer, whose fast path would hide its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images.flatten(2).transpose(1, 2))[:, 0])
        return logits


def test_a_transformer_of_torch_itself() -> None:
    assert list(layers_of(Attentive(), (8, 3, 3))) == [
        "encoder.self_attn.in_proj_weight",
        "encoder.self_attn.out_proj",
        "encoder.linear1",
        "encoder.linear2",
        "head",
    ]


def test_a_parametrized_weight_is_one_layer_with_its_norm() -> None:
    network = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(144, 5)
    )
    found = layers_of(network)
    prefix = "0.parametrizations.weight.original"
    assert found[f"{prefix}1"] == {f"{prefix}0", f"{prefix}1", "0.bias"}
    assert found["2"] == {"2.weight", "2.bias"}


class Contracting(nn.Module):
    """Products under other names than matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(12, 6))
        self.second = nn.Parameter(torch.zeros(6, 5))
        self.third = nn.Parameter(torch.zeros(4, 5))

    def forward(self, images: Tensor) -> Tensor:
        features = torch.tensordot(images.flatten(1), self.first, 1)
        features = torch.einsum("bi,ij->bj", features, self.second)
        return torch.inner(features, self.third)


def test_contractions_of_other_names_start_layers() -> None:
    assert list(layers_of(Contracting(), (3, 2, 2))) == ["first", "second", "third"]


class ReadsValues(nn.Module):
    """Cannot run on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        assert images.sum().item() <= images.numel()
        logits: Tensor = self.body(images.flatten(1))
        return logits


def test_a_forward_pass_that_reads_values_is_traced_too() -> None:
    network = ReadsValues()
    before = torch.get_rng_state()
    assert trace(network, (3, 2, 2)).output == (2, 5)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RequestError, match="cannot process images of 3x4x4"):
        trace(network, (3, 4, 4))


def test_features_are_no_logits() -> None:
    with pytest.raises(HeadlessError, match=r"Conv2d has no classification head.*\[2, 4, 6, 6\]"):
        trace(nn.Conv2d(3, 4, 3), (3, 8, 8))
    with pytest.raises(HeadlessError, match="has no classification head"):
        traced(resolve("qwen3_vit_88m_enc"))


def test_bank_only_keeps_the_layers_that_match() -> None:
    network = Odd()
    parts = partition(network, trace(network, (3, 8, 8)), bank_only="m*")
    assert [layer.name for layer in parts.layers] == ["mix"]
    assert set(parts.shared) == set(tensor_names(network)) - set(parts.layers[0].tensors)
    parts.check_covers(network)
    with pytest.raises(RequestError, match=r"matches no layer; the layers are stem, mix, project"):
        partition(network, trace(network, (3, 8, 8)), bank_only="conv*")


def test_an_unknown_granularity_is_refused() -> None:
    network = Odd()
    with pytest.raises(RequestError, match=r"'layers' is unknown; did you mean layer\?"):
        partition(network, trace(network, (3, 8, 8)), "layers")


ODD = tuple(tensor_names(Odd()))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((Layer("a", ODD[1:]),), f"does not fit the network: {ODD[0]}"),
        ((Layer("a", (*ODD, "extra")),), "does not fit the network: extra"),
        ((Layer("a", ODD), Layer("b", ODD[:1])), f"does not fit the network: {ODD[0]}"),
        ((Layer("a", ODD), Layer("b", ())), "an empty layer"),
        # equal names of layers must not hide the torn tie
        (
            (
                Layer("a", tuple(n for n in ODD if n != "again.weight")),
                Layer("a", ("again.weight",)),
            ),
            "tears the tied tensors mix.weight and again.weight",
        ),
    ],
)
def test_a_partition_that_does_not_fit_is_refused(layers: tuple[Layer, ...], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        Partition("layer", layers).check_covers(Odd())


def test_json_and_back() -> None:
    network = Odd()
    parts = partition(network, trace(network, (3, 8, 8)), "layer", "m*")
    assert Partition.from_json(parts.to_json()) == parts


def test_norms_are_layers_and_all_else_is_shared() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 4), nn.LayerNorm(4)
    )
    parts = partition(network, trace(network, (1, 5, 5)), "norm")
    assert parts.layers == (
        Layer(
            "1", ("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
        ),
        Layer("4", ("4.weight", "4.bias")),
    )
    assert parts.shared == ("0.weight", "0.bias", "3.weight", "3.bias")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(25, 4))
    with pytest.raises(RequestError, match="has no normalisation with weights"):
        partition(plain, trace(plain, (1, 5, 5)), "norm")
