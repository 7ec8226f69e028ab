"""Files that hold code and weights together: torch.export's and TorchScript's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rlskit
from rlskit.cli import run
from rlskit.errors import RequestError
from rlskit.models import BankedModel
from rlskit.models.banks import Classifier
from rlskit.models.trace import tensor_names
from small_models import network

EXAMPLE = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ANY_BATCH = ({0: torch.export.Dim("batch")},)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Baked(nn.Module):
    """Answers with a dict, and has the size of its batches in its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(0)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.net(images) + torch.zeros(images.shape[0], 1)
        return {"features": images.flatten(1), "logits": logits}


def exported(module: nn.Module, file: Path, dynamic: Any = None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (EXAMPLE,), dynamic_shapes=dynamic), file)


FILES: dict[str, Callable[[Path], None]] = {
    "any.pt2": lambda file: exported(network(0).eval(), file, ANY_BATCH),
    "fixed.pt2": lambda file: exported(network(0).eval(), file),
    "baked.pt2": lambda file: exported(Baked().eval(), file),
    "scripted.pt": lambda file: torch.jit.save(torch.jit.script(network(0)), file),
    "traced.pt": lambda file: torch.jit.save(
        torch.jit.trace(network(0).eval(), EXAMPLE),  # type: ignore[no-untyped-call]
        file,
    ),
}


def converted(file: Path, **options: Any) -> BankedModel:
    given: dict[str, Any] = {"data": "digits", "image_size": 8, "mean": (0.0,), "std": (1.0,)}
    return rlskit.convert(str(file), **{**given, **options})


def draw_of(model: BankedModel) -> Classifier:
    return model.sampled(torch.zeros(model.num_layers, dtype=torch.long))


@pytest.mark.parametrize("name", FILES)
def test_a_program_answers_as_its_network_in_batches_of_any_size(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    plain, model = network(0).eval(), converted(tmp_path / name, banks=2)
    draw, images = draw_of(model), IMAGES.clone().requires_grad_()
    expected = IMAGES.clone().requires_grad_()
    assert model.num_layers == 2
    assert not model.card.assumed
    assert model.card.pretrained == "factory"
    assert {n.split(".", 1)[1].removeprefix("net.") for n in tensor_names(model.banks[0])} >= {
        n for n in tensor_names(plain) if "num_batches" not in n
    }
    assert sum(p.numel() for p in model.banks[0].parameters()) == sum(
        p.numel() for p in plain.parameters()
    )
    for count in (1, 4, 7):
        torch.testing.assert_close(draw(IMAGES[:count]), plain(IMAGES[:count]))
    draw(images).square().sum().backward()
    plain(expected).square().sum().backward()
    torch.testing.assert_close(images.grad, expected.grad)


def test_a_softmax_at_a_programs_end_is_undone(tmp_path: Path) -> None:
    plain = network(0).eval()
    hot = nn.Sequential(plain, nn.Softmax(1)).eval()
    with torch.no_grad():
        plain.get_parameter("6.weight").mul_(1000)  # float32 rounds every probability to 0 or 1
    exported(hot, tmp_path / "soft.pt2", ANY_BATCH)
    model = converted(tmp_path / "soft.pt2", defense="none")
    assert model.card.outputs == "probabilities"
    torch.testing.assert_close(draw_of(model)(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-2)


def test_a_checkpoint_finds_its_program_by_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, checkpoint = tmp_path / "any.pt2", tmp_path / "m.safetensors"
    FILES["any.pt2"](file)
    model = converted(file, defense="none")
    rlskit.save(model, checkpoint)
    torch.testing.assert_close(draw_of(rlskit.load(checkpoint))(IMAGES), draw_of(model)(IMAGES))
    moved = file.rename(tmp_path / "moved.pt2")
    with pytest.raises(RequestError, match="there is no file"):
        rlskit.load(checkpoint)
    found = rlskit.load(checkpoint, architecture=str(moved))
    torch.testing.assert_close(draw_of(found)(IMAGES), draw_of(model)(IMAGES))
    exported(network(1).eval(), file, ANY_BATCH)
    with pytest.raises(RequestError, match="has changed since the model was converted"):
        rlskit.load(checkpoint)


def test_what_a_program_does_not_say_is_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    FILES["any.pt2"](tmp_path / "any.pt2")
    with pytest.raises(RequestError, match="does not say what images its weights expect"):
        rlskit.convert(str(tmp_path / "any.pt2"), defense="none")
    assumed = rlskit.convert(str(tmp_path / "any.pt2"), defense="none", data="digits")
    assert assumed.card.pixels.shape == (1, 8, 8)  # the program's, where digits become 32x32
    assert "ASSUMED: the weights expect mean" in assumed.card.assumed[0]
    with pytest.raises(RequestError, match="holds its weights; leave `weights` out"):
        converted(tmp_path / "any.pt2", weights="other.pth")
    exported(network(0).train(), tmp_path / "train.pt2")
    with pytest.raises(RequestError, match="was saved in train mode"):
        converted(tmp_path / "train.pt2")
    torch.save(network(0).state_dict(), tmp_path / "net.pth")
    assert run(["convert", str(tmp_path / "net.pth"), "-o", str(tmp_path / "x.safetensors")]) == 2
    assert "give the network and --weights" in capfd.readouterr().err
    with pytest.raises(RequestError, match="ONNX holds no network of torch's; give"):
        rlskit.convert("net.onnx")
