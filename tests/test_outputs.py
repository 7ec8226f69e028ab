"""What networks answer with: probabilities, several tensors, half precision; all become logits."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import rlskit
from rlskit.errors import RequestError, UntrustedError
from rlskit.models.outputs import HeadlessError, Reading, key_of, kind_of, tensor_at
from small_models import network

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def scaled(scale: float, *last: nn.Module) -> nn.Module:
    return nn.Sequential(network(0), Scale(scale), *last).eval()


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return self.factor * values


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Any:
        return self.function(values)


LAST_STEPS = {
    "softmax module": (nn.Softmax(1), "probabilities"),
    "softmax, last axis": (Function(lambda z: torch.softmax(z, -1)), "probabilities"),
    "softmax method": (Function(lambda z: z.softmax(dim=1)), "probabilities"),
    "exp of log-softmax": (Function(lambda z: z.log_softmax(1).exp()), "probabilities"),
    "sigmoid module": (nn.Sigmoid(), "sigmoid"),
    "sigmoid function": (Function(torch.sigmoid), "sigmoid"),
    "log-softmax module": (nn.LogSoftmax(1), "log-probabilities"),
}


@pytest.mark.parametrize("name", LAST_STEPS)
def test_a_last_step_is_recognised_and_undone_exactly(name: str) -> None:
    last, kind = LAST_STEPS[name]
    squashed = scaled(1000.0, last)  # where float32 rounds every probability to 0 or 1
    assert kind_of(squashed, IMAGES) == kind
    logits = scaled(1000.0)(IMAGES)
    read = Reading(outputs=kind).logits(squashed, IMAGES)
    expected = logits.log_softmax(1) if kind == "log-probabilities" else logits
    torch.testing.assert_close(read.log_softmax(1), expected.log_softmax(1))


def test_probabilities_that_are_no_last_step_are_recognised_and_undone_by_their_inverse() -> None:
    for last, kind, unsure in (
        (Function(lambda z: z.softmax(1) * 1.0), "probabilities", "probabilities"),
        (Function(lambda z: 1 / (1 + (-z).exp())), "sigmoid", ""),
    ):
        squashed = scaled(1.0, last)
        assert kind_of(squashed, IMAGES) == unsure
        read = Reading(outputs=kind).logits(squashed, IMAGES)
        shift = 0 if kind == "sigmoid" else scaled(1.0)(IMAGES).logsumexp(1, keepdim=True)
        torch.testing.assert_close(read, scaled(1.0)(IMAGES) - shift, atol=1e-5, rtol=1e-4)


def test_a_softmax_that_training_leaves_out_is_undone_in_eval_mode_only() -> None:
    class OnlyInEval(nn.Softmax):
        def forward(self, values: Tensor) -> Tensor:
            return values if self.training else super().forward(values)

    network = scaled(5.0, OnlyInEval(1))
    reading = Reading(outputs=kind_of(network, IMAGES))
    assert reading.outputs == "probabilities"
    torch.testing.assert_close(reading.logits(network, IMAGES), scaled(5.0)(IMAGES))
    network[2].train()  # type: ignore[index]
    torch.testing.assert_close(reading.logits(network, IMAGES), scaled(5.0)(IMAGES))


def test_ordinary_logits_show_nothing() -> None:
    assert kind_of(scaled(1.0), IMAGES) == ""
    assert kind_of(scaled(1.0, Function(lambda z: z.exp())), IMAGES) == ""
    # A softmax over something else, such as attention, is not the classifier's last step.
    assert kind_of(scaled(1.0, Function(lambda z: z.softmax(0))), IMAGES) == ""


class Pair(NamedTuple):
    features: Tensor
    scores: Tensor


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


F7, F10 = torch.zeros(5, 7), torch.ones(5, 10)


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        (F10, ""),
        ((F10, F7), "0"),
        ((F10, torch.zeros(5, 10)), "0"),
        ({"out": F10, "again": F10}, "out"),
        ({"aux": {"logits": torch.zeros(5, 10)}, "logits": F10}, "logits"),
        ((F7, F10), "1"),
        ([torch.zeros(5, 3, 4, 4), F10], "1"),
        ({"features": F7, "out": F10}, "out"),
        ({"features": F10, "logits": F10}, "logits"),
        (OrderedDict(out={"boxes": F7, "classes": F10}), "out.classes"),
        (Pair(F7, F10), "scores"),
        (Answer(F10, F10), "logits"),
    ],
)
def test_the_tensor_with_the_classes_is_found(answer: Any, key: str) -> None:
    assert key_of(answer, 5, 10) == key
    assert tensor_at(answer, key) is F10


def test_an_answer_without_classes_says_what_there_is() -> None:
    with pytest.raises(HeadlessError, match=r"features of shape \[5, 3, 4, 4\] map, not \[B, cla"):
        key_of({"map": torch.zeros(5, 3, 4, 4)}, 5, 10)
    with pytest.raises(HeadlessError, match="answers with a str, not with logits"):
        key_of("seven", 5, 10)
    with pytest.raises(RequestError, match=r"no tensor called 'x': there is a, b; .*`output_key`"):
        tensor_at({"a": F7, "b": F10}, "x")
    with pytest.raises(RequestError, match=r"answers with torch\.int64, not"):
        Reading().logits(lambda images: images.flatten(1).long(), IMAGES)


@pytest.mark.parametrize(
    ("answer", "choices"),
    [
        ({"main": F10, "aux": torch.zeros(5, 10)}, "main, aux"),
        ([F10, torch.zeros(5, 10)], "0, 1"),  # exits, the first of which is the worst
        ((F7, F10, torch.zeros(5, 10)), "1, 2"),
        ({"a": {"logits": F10}, "b": {"logits": torch.zeros(5, 10)}}, "a.logits, b.logits"),
    ],
)
def test_between_tensors_that_nothing_tells_apart_is_not_chosen(answer: Any, choices: str) -> None:
    listed = choices.replace(",", r" \[5, 10\],")
    with pytest.raises(RequestError, match=rf"2 tensors.*\({listed} \[5, 10\]\).*`output_key="):
        key_of(answer, 5, 10)


FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, last=None, dtype=None, num_classes=10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(96, num_classes),
        ).to(dtype)
        self.last = last or (lambda z: z)
    def forward(self, x):
        return self.last(self.body(x))

def plain(): return Net()
def hundred(): return Net(lambda z: 100 * z)
def softmax(): return Net(lambda z: (100 * z).softmax(1))
def mild(): return Net(lambda z: z.softmax(1))
def sigmoid(): return Net(lambda z: z.sigmoid())
def handmade(): return Net(lambda z: 1 / (1 + torch.exp(-z)))
def two(): return Net(lambda z: {"features": z[:, :3], "classes": z})
def bf16(): return Net(dtype=torch.bfloat16)
def f16(): return Net(dtype=torch.float16)
def f64(): return Net(dtype=torch.float64)
"""


@pytest.fixture(scope="module")
def factories(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("factories") / "nets.py"
    file.write_text(FACTORIES)
    return str(file)


@pytest.fixture(scope="module")
def weights(factories: str) -> str:
    """Weights of the plain network, trained."""
    from rlskit.models.checkpoint import export

    plain = rlskit.convert(
        f"{factories}:plain", defense="none", data="digits", image_size=8, mean=(0.3,), std=(0.4,)
    )
    rlskit.train(plain, data="digits", epochs=5, lr=0.1, batch_size=64)
    file = factories.replace("nets.py", "plain.safetensors")
    export(plain, [0], file)
    return file


def converted(factories: str, weights: str, name: str, **options: Any) -> rlskit.BankedModel:
    return rlskit.convert(
        f"{factories}:{name}", defense="none", data="digits", image_size=8, mean=(0.3,),
        std=(0.4,), weights=weights, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["hundred", "softmax", "sigmoid", "two", "bf16", "f16", "f64"])
@pytest.mark.parametrize("method", ["pgd", "deepfool"])
def test_robust_accuracy_is_that_of_the_plain_network(
    factories: str, weights: str, name: str, method: str
) -> None:
    data = rlskit.load_data("digits", limit=100)
    options: dict[str, Any] = {"eps": 0.1, "steps": 5, "step_size": 0.04} if method == "pgd" else {}
    plain = rlskit.attack(converted(factories, weights, "plain"), data, method=method, **options)
    found = rlskit.attack(converted(factories, weights, name), data, method=method, **options)
    assert plain.accuracy["clean"].mean > 0.9
    assert plain.accuracy["robust"].mean < 0.7
    for kind in ("clean", "robust"):
        assert found.accuracy[kind].mean == pytest.approx(
            plain.accuracy[kind].mean,
            abs=0.031 if name in ("bf16", "hundred", "softmax") else 0.011,
        )
    # A hundred times the logits have another cross-entropy, whose steps differ a little.
    expected = {"softmax": "probabilities", "sigmoid": "sigmoid"}.get(name, "logits")
    assert found.model.outputs == expected


def test_what_nothing_tells_is_asked(factories: str, weights: str) -> None:
    data = rlskit.load_data("digits", limit=20)
    unsure = converted(factories, weights, "handmade")
    for run in (rlskit.attack, rlskit.evaluate):
        with pytest.raises(UntrustedError, match=r"lies in \[0, 1\].*`outputs` 'sigmoid', 'prob"):
            run(unsure, data)
    told = converted(factories, weights, "handmade", outputs="sigmoid")
    images = data.adapted(told.card.pixels, 10).images(range(20))
    plain = converted(factories, weights, "plain")
    plan = torch.zeros(told.num_layers, dtype=torch.long)
    torch.testing.assert_close(
        told.sampled(plan)(images), plain.sampled(plan)(images), atol=0.5, rtol=0
    )
    as_it_is = converted(factories, weights, "handmade", outputs="logits")
    assert rlskit.evaluate(as_it_is, data)[0].model.outputs == "logits"
    with pytest.raises(RequestError, match="`outputs` 'odds' is unknown"):
        converted(factories, weights, "handmade", outputs="odds")


def test_a_checkpoint_keeps_how_its_answers_are_read(
    factories: str, weights: str, tmp_path: Any
) -> None:
    file = tmp_path / "two.safetensors"
    saved = converted(factories, weights, "two", outputs="probabilities")
    rlskit.save(saved, file)
    card = rlskit.load(file).card
    assert (card.outputs, card.output_key) == ("probabilities", "classes")
    metadata = rlskit.inspect(file)
    assert metadata["outputs"] == {"kind": "probabilities", "key": "classes"}
    with pytest.raises(RequestError, match="3 classes, not 10"):
        converted(factories, weights, "two", output_key="features")


def test_training_takes_the_same_reading(factories: str) -> None:
    soft = rlskit.convert(f"{factories}:mild", banks=2, data="digits", image_size=8)
    assert soft.card.outputs == "probabilities"
    plain = rlskit.convert(f"{factories}:plain", banks=2, data="digits", image_size=8)
    for model in (soft, plain):
        rlskit.train(model, data="digits", epochs=1, lr=0.05, batch_size=64)
    plan = torch.tensor([0, 1])
    torch.testing.assert_close(soft(IMAGES, plan), plain(IMAGES, plan), atol=1e-3, rtol=1e-3)
