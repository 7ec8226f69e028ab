"""Networks with randomness of their own: held under a stream, and measured like any defense."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlskit
from random_networks import SIGMA, Noise
from rlskit.defenses import DEFENSES, Defense, draws
from rlskit.defenses.answers import finite_logits, mean_log_probabilities
from rlskit.defenses.variates import Variates
from rlskit.errors import RequestError, UntrustedError
from rlskit.models.banks import BankedModel
from rlskit.models.sharing import _named_tensors
from rlskit.models.streams import sources_of, streamed
from rlskit.threat.preflight import check_answers
from rlskit.threat.view import attackers_view

NETWORKS = Path(__file__).with_name("random_networks.py")


def converted(factory: str, **options: Any) -> BankedModel:
    given: dict[str, Any] = {"defense": "stochastic", "image_size": 16, "num_classes": 5, **options}
    return rlskit.convert(f"{NETWORKS}:{factory}", **given)


@pytest.mark.parametrize(
    ("factory", "at_once"),
    [("noise", True), ("paths", True), ("resize", True), ("branches", False)],
)
def test_a_batch_is_answered_at_once_where_that_is_the_same(factory: str, at_once: bool) -> None:
    model = converted(factory)
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    (draw,) = draws(model, 1, seed=0, purpose="defender")
    together = draw(images)
    assert model.batching == {"at once": at_once}
    alone = torch.cat([draw(images[i : i + 1]) for i in (3, 1, 4, 0, 2)])
    torch.testing.assert_close(together[[3, 1, 4, 0, 2]], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("state", range(4))
def test_a_choice_that_comes_out_the_same_twice_is_one_all_the_same(
    state: int, tmp_path: Path
) -> None:
    images, before = torch.rand(4, 1, 16, 16), random.getstate()
    try:
        random.seed(state)  # in two of these its first two paths are the same
        plain, held = converted("coin", defense="none"), converted("coin")
        with pytest.raises(UntrustedError, match="answers the same images differently each time"):
            check_answers(draws(plain, 1, seed=0, purpose="defender")[0], images, 5)
        rlskit.save(held, tmp_path / "coin.safetensors")
        rlskit.load(tmp_path / "coin.safetensors")
    finally:
        random.setstate(before)


def test_it_is_the_same_defense_written_with_variates(monkeypatch: pytest.MonkeyPatch) -> None:
    def perturb(_: BankedModel) -> Any:
        @contextmanager
        def add_noise(network: nn.Module, variates: Variates) -> Iterator[None]:
            body = network.get_submodule("body")
            hook = body.register_forward_pre_hook(
                lambda _, inputs: inputs[0] + SIGMA * variates.normal(inputs[0].shape, inputs[0])
            )
            yield
            hook.remove()

        return add_noise

    monkeypatch.setitem(DEFENSES, "written", Defense("noise", lambda _: 10, perturb=perturb))
    model = converted("noise")
    quiet = rlskit.convert(f"{NETWORKS}:quiet", defense="written", image_size=16, num_classes=5)
    quiet.load_state_dict(model.state_dict())
    images = torch.rand(4, 1, 16, 16)
    pairs = (draws(one, 3, seed=5, purpose="attacker") for one in (model, quiet))
    for mine, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(mine(images), theirs(images), rtol=0, atol=1e-6)


GENERATORS: dict[str, Callable[[], Any]] = {
    "torch": torch.Generator,
    "python": lambda: random.Random(3),
    "numpy": lambda: np.random.default_rng(3),
    "legacy": lambda: np.random.RandomState(3),
}


class Sources(nn.Module):
    """Draws from every global source, and from one of its own."""

    shared = random.Random(3)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.own = GENERATORS[kind]()

    def drawn(self) -> float:
        own = self.own
        if isinstance(own, torch.Generator):
            return float(torch.rand((), generator=own))
        return float(own.random() if hasattr(own, "random") else own.random_sample())

    def forward(self, images: Tensor) -> Tensor:
        old = np.random.rand()  # noqa: NPY002
        numbers = [float(torch.rand(())), random.random(), old, self.drawn()]
        return images.mean((1, 2, 3))[:, None] + torch.tensor([*numbers, self.shared.random()])


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_source_is_held_and_given_back(kind: str) -> None:
    network, images = Sources(kind), torch.rand(2, 1, 4, 4)
    sources = sources_of(network)
    before = [str(source.get()) for source in sources]
    with streamed(sources, 1):
        first = network(images)
    with streamed(sources, 1):
        assert torch.equal(network(images), first)
    with streamed(sources, 2):
        second = network(images)
    assert (first != second).all()  # each of the five numbers is another
    assert len(set(first[0].tolist())) == 5
    assert [str(source.get()) for source in sources] == before


def test_a_module_in_memory_is_measured_like_a_file() -> None:
    torch.manual_seed(0)
    module = Noise(5)
    images, labels = torch.rand(12, 1, 16, 16), torch.arange(12) % 5
    with pytest.raises(UntrustedError, match="`defense='stochastic'`"):
        rlskit.attack(module, (images, labels), eps=0.1)
    model = rlskit.wrap(module, (1, 16, 16), defense="stochastic")
    for protocol, count in (("transfer", 1), ("multi", 2), ("eot", 2)):
        result = rlskit.attack(
            model, (images, labels), eps=0.1, protocol=protocol, n_attacked=count, n_samples=3
        )
        assert (result.defense, result.n_samples) == ("stochastic", 3)


def test_what_no_seed_reaches_and_what_is_not_random_is_refused() -> None:
    with pytest.raises(RequestError, match="finds no randomness in"):
        converted("quiet")
    with pytest.raises(RequestError, match="random numbers where no seed reaches"):
        converted("restless")
    with pytest.raises(RequestError, match="has 1 bank, not 2"):
        converted("noise", banks=2)


def test_training_repeats_itself_and_leaves_randomness_as_it_was() -> None:
    weights = []
    for disturbance in (1, 2):
        random.seed(disturbance)
        model = converted("paths", data="digits", num_classes=None)
        data = rlskit.load_data("digits", "train", limit=64)
        state = random.getstate()
        rlskit.train(model, data, epochs=1, batch_size=32)
        assert random.getstate() == state
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_known_attacks_the_draws_that_answer() -> None:
    model = converted("noise")
    view = attackers_view(model, "known", 4, seed=3, repeat=2)
    images = torch.rand(5, 1, 16, 16)
    defenders = draws(model, 4, seed=3, purpose="defender", repeat=2)
    answer = mean_log_probabilities(finite_logits(defenders, images))
    torch.testing.assert_close(view(images), answer, rtol=0, atol=1e-5)
    labels = torch.arange(5)
    result = rlskit.attack(model, (images, labels), eps=0.1, protocol="known", n_samples=4)
    assert (result.protocol, result.n_attacked) == ("known", 4)
    assert not any("OPTIMISTIC" in warning for warning in result.warnings)
    with pytest.raises(RequestError, match="shows the attacker the 4 draws that answer, not 3"):
        rlskit.attack(model, (images, labels), protocol="known", n_samples=4, n_attacked=3)


@pytest.mark.parametrize("defense", ["ensemble", "none"])
def test_known_is_the_white_box_where_draws_are_few(defense: str) -> None:
    model = rlskit.convert(
        "test_resnet", defense=defense, image_size=16, num_classes=5, outputs="logits"
    )
    images, labels = torch.rand(8, 1, 16, 16), torch.arange(8) % 5
    members = DEFENSES[defense].samples(model)
    known, multi = (
        rlskit.attack(model, (images, labels), eps=0.02, protocol=protocol, n_attacked=members)
        for protocol in ("known", "multi" if members > 1 else "transfer")
    )
    assert known.accuracy["robust"] == multi.accuracy["robust"]


def test_banks_differ_and_repeat_whatever_their_factory_draws_from() -> None:
    state = str(np.random.get_state())  # noqa: NPY002
    first, again = (converted("sown", defense="rls", banks=2) for _ in range(2))
    assert str(np.random.get_state()) == state  # noqa: NPY002
    weights = [next(bank.parameters()) for model in (first, again) for bank in model.banks]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])


def test_draws_under_a_stream_share_nothing() -> None:
    """What `torch.vmap` computes cannot be kept for another draw."""
    with torch.no_grad():
        noisy = draws(converted("noise"), 2, seed=0, purpose="defender")
        plain = draws(converted("noise", defense="rls"), 2, seed=0, purpose="defender")
        assert [_named_tensors(found[0]) is None for found in (noisy, plain)] == [True, False]
