"""Modules and images in memory: they work as models and data do, and stay as they were."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlskit
import small_models
from rlskit import (
    attack,
    attack_adaptively,
    attack_all,
    evaluate,
    measure_diversity,
    measure_transfer,
    train,
    wrap,
)
from rlskit.attacks import prepare
from rlskit.audit import audit_model
from rlskit.data import from_memory
from rlskit.errors import RequestError, UntrustedError
from rlskit.evaluation import EvalOptions
from rlskit.models import checkpoint
from rlskit.progress import Progress

DATA = small_models.digits(60)
IMAGES, LABELS = DATA.images(range(60)), DATA.labels
TRAIN = small_models.digits(400, "train")
SEEN = TRAIN.images(range(400)), TRAIN.labels
PGD: dict[str, Any] = {"method": "pgd", "eps": 0.1, "steps": 3, "step_size": 0.05}
LEARN: dict[str, Any] = {"epochs": 6, "lr": 0.1, "batch_size": 40, "schedule": "cosine"}


@pytest.fixture(scope="module")
def learned() -> nn.Sequential:
    """A network that learned the digits; whoever changes it copies it first."""
    module = small_models.network(0, dropout=0.1)
    train(module, SEEN, **LEARN)
    return module.eval()


@pytest.fixture
def module(learned: nn.Sequential) -> nn.Sequential:
    return copy.deepcopy(learned)


def facts(module: nn.Module) -> list[Any]:
    """All that measuring a module must leave alone: its tensors themselves, modes and hooks."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    parts = list(module.modules())
    return [
        [(name, id(t), t._version, t.stride(), t.requires_grad, t.grad) for name, t in tensors],
        [(id(part), part.training, sorted(vars(part))) for part in parts],
        [[len(part._forward_hooks), len(part._forward_pre_hooks)] for part in parts],
    ]


class Around(nn.Module):
    """A network with something before it."""

    def __init__(self, network: nn.Module, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.before = network, before

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.before(images))
        return logits


class Locked(nn.Flatten):
    """A module that holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


# attack and evaluate -----------------------------------------------------------------------------


def test_the_numbers_are_those_of_a_model_of_rlskits(module: nn.Sequential) -> None:
    """The same network behind mean 0.3 and std 0.4, as a checkpoint's and as a module's own."""
    banked = small_models.model(1, "none")
    banked.banks[0].load_state_dict(module.state_dict())
    own = Around(module, lambda images: (images - 0.3) / 0.4)
    one, other = attack(own, (IMAGES, LABELS), **PGD), attack(banked, DATA, **PGD)
    assert one.accuracy == other.accuracy
    assert one.perturbation == other.perturbation
    assert one.data == dataclasses.replace(other.data, name="memory")
    assert one.model.architecture == "memory:Around"
    assert (one.defense, one.warnings) == ("none", ())


def test_measuring_changes_nothing(module: nn.Sequential) -> None:
    module[1].train()
    module[0].weight.requires_grad_(False)
    module[3].register_forward_hook(lambda *_: None)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = IMAGES.clone(), LABELS.clone()
    before = facts(module)
    few = images[:6], labels[:6]
    own = Around(module, lambda images: images.sub_(0.1))
    results = [
        attack(module, (images, labels), **PGD),
        *attack_all(module, DATA, attacks=[prepare("fgsm"), prepare("cw", steps=2)],
                    options=EvalOptions()),
        attack_adaptively(module, few, eps=0.5, steps=2, queries=5, surrogate=module),
        *evaluate(module, "digits"),
        measure_diversity(module, few, repeats=1),
        measure_transfer(module, few, steps=1),
        attack(own, (images, labels), **PGD),
    ]  # fmt: skip
    assert facts(module) == before
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)
    assert results[0].warnings == (
        "The module came in train mode (Dropout); it is measured in eval mode.",
    )
    with torch.no_grad():
        right = module.eval()(IMAGES).argmax(1) == LABELS
    assert results[0].accuracy["clean"].mean == float(right.double().mean())
    assert results[0].accuracy["robust"].mean < results[0].accuracy["clean"].mean - 0.1


def test_a_compiled_method_is_run_on_what_is_measured(module: nn.Sequential) -> None:
    """It is one of the module that it was compiled for, whose dropout is awake here."""
    own = Around(module, nn.Identity())
    plain = attack(own, (IMAGES, LABELS), **PGD).accuracy
    own.forward = torch.compile(own.forward, backend="eager")  # type: ignore[method-assign]
    compiled = own.forward
    own.train()
    assert attack(own, (IMAGES, LABELS), **PGD).accuracy == plain
    assert own.forward is compiled


def test_softmax_and_half_precision(module: nn.Sequential) -> None:
    plain = attack(module, (IMAGES, LABELS), **PGD).accuracy
    blind = attack(nn.Sequential(module, nn.Softmax(1)), (IMAGES, LABELS), **PGD)
    assert blind.model.outputs == "probabilities"
    assert blind.accuracy == plain
    half = attack(copy.deepcopy(module).half(), (IMAGES, LABELS), **PGD).accuracy
    for kind in ("clean", "robust"):
        assert half[kind].mean == pytest.approx(plain[kind].mean, abs=0.04)
    tenth = Around(module, nn.Identity())
    tenth.register_forward_hook(lambda *found: found[2].softmax(1) / 2)
    tenth.eval()
    with pytest.raises(UntrustedError, match=r"every answer of the model lies in \[0, 1\]"):
        attack(tenth, (IMAGES, LABELS), **PGD)
    named = attack(wrap(tenth, (1, 8, 8), outputs="logits"), (IMAGES, LABELS), **PGD)
    assert named.accuracy["clean"] == plain["clean"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("around", ["DataParallel", "compile", "a list", "a function", "a draw"])
def test_modules_of_every_kind(module: nn.Sequential, around: str) -> None:
    kinds: dict[str, Callable[[], nn.Module]] = {
        "DataParallel": lambda: nn.DataParallel(module),
        "compile": lambda: torch.compile(module),  # type: ignore[dict-item,return-value]
        "a list": lambda: Around(nn.Identity(), [module][0].__call__),
        "a function": lambda: Around(nn.Flatten(), lambda images: module(images)),
        "a draw": lambda: rlskit.draws(wrap(module, (1, 8, 8)), 1, seed=0, purpose="defender")[0],
    }
    expected = attack(module, (IMAGES, LABELS), **PGD).accuracy
    assert attack(kinds[around](), (IMAGES, LABELS), **PGD).accuracy == expected


def test_a_module_is_audited_on_tensors_of_a_model(module: nn.Sequential) -> None:
    found = audit_model(wrap(module, (1, 8, 8)), (IMAGES[:30], LABELS[:30]), eps=0.1, steps=3,
                        step_size=0.05, queries=5, points=3)  # fmt: skip
    assert found.data.name == "memory"
    clean = found.accuracy["clean"]
    assert clean is not None
    assert clean.mean > 0.7


# images and labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        (IMAGES.numpy(), LABELS.numpy().astype("int32")),
        ((IMAGES * 255).round().to(torch.uint8), LABELS.tolist()),
        (IMAGES.double().requires_grad_(), LABELS.to(torch.uint8)),
        [IMAGES.tolist(), LABELS],
    ],
)
def test_images_and_labels_of_every_kind(module: nn.Sequential, given: Any) -> None:
    expected = evaluate(module, DATA)[0].accuracy["clean"]
    assert evaluate(module, given)[0].accuracy["clean"] == expected


WRONG: list[tuple[Any, str]] = [
    ((IMAGES * 255, LABELS), r"must lie in \[0, 1\], but span \[0, 255\]; divide by 255 or store"),
    ((IMAGES * 16, LABELS), r"span \[0, 16\]; divide by the largest value that a pixel of"),
    ((IMAGES * 1.000001, LABELS), r"span \[0, 1.000001\]; that is rounding: clip it"),
    ((IMAGES - 0.5, LABELS), r"span \[-0.5, 0.5\]; undo the normalisation"),
    ((IMAGES * torch.nan, LABELS), "NaN or infinite pixels"),
    ((IMAGES[0], LABELS), r"must be a float tensor \[B, C, H, W\], not torch.float32 \[1, 8, 8\]"),
    ((IMAGES.long(), LABELS), r"must be a float tensor \[B, C, H, W\], not torch.int64"),
    ((IMAGES, LABELS[:5]), r"60 images need as many labels, .* not torch.int64 \[5\]"),
    ((IMAGES, LABELS.float()), r"each the number of a class, not torch.float32 \[60\]"),
    ((IMAGES, nn.functional.one_hot(LABELS, 10)), r"not torch.int64 \[60, 10\]"),
    ((IMAGES, LABELS + 1), r"has the label 10 at index \d+ .* the 10 classes are 0 to 9"),
    ((IMAGES, ["seven"] * 60), "the labels in memory are a list, no tensor"),
    ((IMAGES[:0], LABELS[:0]), "holds no image"),
    ((IMAGES.repeat(1, 3, 1, 1), LABELS), r"cannot process images of 3x8x8 .* \[n, C, H, W\]"),
    ([IMAGES], r"data is a name, Data from rlskit.load_data, or \(images, labels\), not a list"),
    (None, r"does not say what images it takes; give data, as in data=\(images, labels\)"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_data_get_one_sentence(module: nn.Sequential, given: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        attack(module, given, **PGD)


def test_tensors_for_a_model_of_rlskits() -> None:
    model = small_models.trained("none", 1)
    (result,) = evaluate(model, (IMAGES, LABELS))
    assert result.accuracy == evaluate(model, DATA)[0].accuracy
    assert result.warnings == ()
    numbered = from_memory(IMAGES, LABELS, 10)
    assert numbered.sha256 == DATA.sha256


# modules that cannot be taken --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_wrong_modules_get_one_sentence(module: nn.Sequential) -> None:
    cases: list[tuple[nn.Module, str]] = [
        (module[:3], r"Sequential is no classifier: .* \[2, 6, 8, 8\], not \[B, classes\]"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "1.weight of Sequential has no values"),
        (copy.deepcopy(module).to("meta"), "0.weight of Sequential has no values yet"),
        (nn.Sequential(module, nn.Linear(10, 1)), "Sequential answers with one number per image"),
        (Locked(), "Locked cannot be copied .cannot pickle '_thread.lock'"),
        (torch.jit.script(module), "cannot share its tensors with a copy, as TorchScript cannot"),
    ]
    for wrong, message in cases:
        with pytest.raises(RequestError, match=message):
            attack(wrong, (IMAGES, LABELS), **PGD)
    with pytest.raises(RequestError, match=r"a module to wrap is a torch\.nn\.Module, not a"):
        attack(lambda images: images, (IMAGES, LABELS))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"answers two images with \[2, 10\], not \[2, 7\]"):
        wrap(module, (1, 8, 8), classes=7)
    noisy = Around(module, lambda images: images + 0.1 * torch.randn_like(images))
    with pytest.raises(UntrustedError, match="claims no randomness but answers the same images"):
        attack(noisy, (IMAGES, LABELS), **PGD)


# training ----------------------------------------------------------------------------------------


def test_training_trains_the_module_itself() -> None:
    module = small_models.network(1)
    first = {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    result = train(module, SEEN, **LEARN)
    again = {name: id(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
    assert again == first
    assert module.training
    assert result.epochs[-1].accuracy > 0.8
    assert int(module.state_dict()["2.num_batches_tracked"]) > 0
    with torch.no_grad():
        right = float((module.eval()(IMAGES).argmax(1) == LABELS).double().mean())
    assert right > 0.8
    assert evaluate(module, (IMAGES, LABELS))[0].accuracy["clean"].mean == right

    banked = small_models.model(1, "none")
    banked.banks[0].load_state_dict(small_models.network(1).state_dict())
    own = Around(small_models.network(1), lambda images: (images - 0.3) / 0.4)
    for trained_, data in ((banked, TRAIN), (own, SEEN)):
        train(trained_, data, **LEARN)
    for mine, theirs in zip(own.parameters(), banked.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_buffers_that_training_replaced_come_back() -> None:
    class Counting(nn.Module):
        steps: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = small_models.network(1)
            self.register_buffer("steps", torch.zeros(2, 3, 2, 2))  # which the layout makes anew

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                self.steps += 1
            logits: Tensor = self.network(images)
            return logits

    module = Counting()
    steps = module.steps
    train(module, SEEN, epochs=1, batch_size=40, bn_batches=0)
    assert module.steps is steps
    assert module.steps.min() > 1


def test_a_model_trained_on_tensors_does_not_know_their_name() -> None:
    model = small_models.model(1, "none")
    train(model, SEEN, **LEARN)
    assert evaluate(model, SEEN)[0].warnings == (
        "TRAINING IMAGES: the model was trained on the images it is scored on.",
    )
    assert evaluate(model, (IMAGES, LABELS))[0].warnings == ()
    assert evaluate(model, DATA)[0].warnings == ()
    with pytest.raises(RequestError, match="does not say what data its weights are for"):
        evaluate(model)


# files -------------------------------------------------------------------------------------------


def test_no_file_can_hold_it(module: nn.Sequential, tmp_path: Path) -> None:
    model, advice = wrap(module, (1, 8, 8)), r"`rlskit.convert..FILE\.py:factory"
    path = tmp_path / "x.safetensors"
    with pytest.raises(RequestError, match=rf"a module in memory \(Sequential\).*{advice}"):
        rlskit.save(model, path)
    before = facts(module)
    with pytest.raises(RequestError, match=advice):
        train(module, SEEN, epochs=1, out=path)
    assert facts(module) == before
    assert not path.exists()
    honest = small_models.model(1, "none")
    honest.card.architecture = model.card.architecture
    checkpoint_of_none = pytest.MonkeyPatch()
    with checkpoint_of_none.context() as patch:
        patch.setattr(checkpoint, "check_saveable", lambda _: None)
        rlskit.save(honest, path)
    with pytest.raises(RequestError, match=rf"x\.safetensors: it is of a module in.*{advice}"):
        rlskit.load(path)


class StopError(Exception):
    """Ends a run in the middle."""


def stop() -> Progress:
    def progress(step: str, done: int, total: int, **_: float) -> None:
        raise StopError

    return progress


def test_a_run_goes_on_with_the_same_module_only(module: nn.Sequential, tmp_path: Path) -> None:
    def interrupted(model: nn.Module, **more: Any) -> Any:
        return attack(model, (IMAGES, LABELS), **PGD, batch_size=20, out=tmp_path, **more)

    whole = attack(module, (IMAGES, LABELS), **PGD, batch_size=20)
    with pytest.raises(StopError):
        interrupted(module, progress=stop())
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_parameter("6.bias").add_(1e-3)
    with pytest.raises(RequestError, match=r"holds another run \(checkpoint_sha256"):
        interrupted(other)
    parts = list(module)
    with pytest.raises(RequestError, match=r"holds another run \(checkpoint_sha256 differ"):
        interrupted(nn.Sequential(*parts[:4], nn.MaxPool2d(2), *parts[5:]))
    parts[4] = nn.AvgPool2d(2, ceil_mode=True)  # which pools these images just as well
    assert interrupted(nn.Sequential(*parts)).accuracy == whole.accuracy
    assert (tmp_path / "results.json").exists()


def test_what_no_tensor_shows_is_part_of_the_request(module: nn.Sequential, tmp_path: Path) -> None:
    def started(before: Callable[[Tensor], Tensor]) -> None:
        with pytest.raises(StopError):
            attack(Around(module, before), (IMAGES, LABELS), **PGD, batch_size=20, out=tmp_path,
                   progress=stop())  # fmt: skip

    started(lambda images: images)
    started(lambda images: images * 1.0)
    with pytest.raises(RequestError, match=r"holds another run \(checkpoint_sha256 differ"):
        started(lambda images: images * 0.9)


def test_saved_images_of_a_module(module: nn.Sequential, tmp_path: Path) -> None:
    made = attack(module, (IMAGES, LABELS), **PGD, out=tmp_path, save_adversarial=True)
    path = tmp_path / "adversarial.safetensors"
    (found,) = evaluate(module, (IMAGES, LABELS), adversarial=path)
    assert found.accuracy["robust"] == made.accuracy["robust"]
    assert found.warnings == ()
    with pytest.raises(RequestError, match=r"wrap it first: rlskit\.wrap"):
        evaluate(module, adversarial=path)
    (again,) = evaluate(wrap(module, images=IMAGES), adversarial=path)
    assert again.accuracy == found.accuracy


def test_wrapping_asks_for_a_shape(module: nn.Sequential) -> None:
    with pytest.raises(RequestError, match=r"give their shape \(C, H, W\)"):
        wrap(module)
    assert wrap(module, images=IMAGES).card.classes == 10
    assert np.all(wrap(module, (1, 8, 8)).card.pixels.std == (1.0,))
