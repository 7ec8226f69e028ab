"""What an attack on ten draws costs where they share what they compute alike, beside where not.

    python tests/benchmarks/shared_prefix.py ResNet-20/stage/multi LeNet/layer/eot

Each argument is a network of this file, a granularity and a protocol. Both sides run by turns, one
thread, the best processor time of each. `of the passes` is exact: the share of the torch calls'
time that the tree of these ten draws leaves, if calls cost the same for all of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
from ratios import ratio
from rls import NETWORKS, TESTS, Case
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rlskit.attacks import prepare
from rlskit.defenses import draws
from rlskit.models import resolve
from rlskit.models.banks import BankedModel
from rlskit.models.building import build, configure
from rlskit.threat.view import attackers_view
from rlskit.torchvision_ops import declare_missing_operators

N = 10


def lenet() -> nn.Module:
    sys.path.insert(0, str(TESTS))
    from classics import LeNet  # type: ignore[import-not-found, unused-ignore]

    network: nn.Module = LeNet(in_chans=3)
    return network


def test_resnet() -> nn.Module:
    return build(configure(resolve("test_resnet"), classes=10, channels=3, image_size=(24, 24)))


NETWORKS |= {"LeNet": (lenet, 32, 64), "test_resnet": (test_resnet, 24, 64)}


class _Clock(TorchFunctionMode):
    """Adds up the time of torch calls by the layer whose tensors were read last."""

    def __init__(self, layer_of: dict[int, int]) -> None:
        super().__init__()
        self.seconds = [0.0] * (1 + max(layer_of.values()))
        self._layer_of, self._now = layer_of, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._now = self._layer_of.get(leaf.data_ptr(), self._now)
        begin = time.process_time()
        result = func(*args, **(kwargs or {}))
        self.seconds[self._now] += time.process_time() - begin
        return result


@torch.no_grad()
def of_the_passes(model: BankedModel, images: Tensor) -> float:
    """Return the share of the calls' time that the tree of a view's fixed draws leaves."""
    banks, layers = model.bank_tensors(), model.partition.layers
    found = draws(model, N, seed=0, purpose="attacker")
    chosen = []
    for draw in found:
        own = {t.data_ptr() for t in (*draw.parameters(), *draw.buffers())}
        plan = [
            [bank[a.tensors[0]].data_ptr() in own for bank in banks].index(True) for a in layers
        ]
        chosen.append(tuple(plan))
    weights = torch.full((len(layers),), torch.inf)
    place = {
        bank[n].data_ptr(): i for bank in banks for i, a in enumerate(layers) for n in a.tensors
    }
    for _ in range(5):
        with (clock := _Clock(place)):
            found[0](images)
        weights = torch.minimum(weights, torch.tensor(clock.seconds))
    distinct = torch.tensor([len({p[: i + 1] for p in chosen}) for i in range(len(layers))])
    return float((weights * distinct).sum() / (weights.sum() * N))


def cost(case: Case, protocol: str, method: str, steps: int) -> float:
    """Return the time of an attack, its view included, over that of one whose draws run apart."""
    attack = prepare(method, eps="8/255", steps=steps)

    def run() -> Tensor:
        view = attackers_view(case.model, protocol, N, seed=0, repeat=0)
        noise = torch.Generator().manual_seed(0)
        return attack(view, case.images, case.labels, generator=noise)

    def apart() -> Tensor:
        with patch("rlskit.threat.view.draw_logits", _one_by_one):
            return run()

    sides: list[Callable[[], Tensor]] = [run, apart]
    return ratio(*sides)


def _one_by_one(members: Sequence[nn.Module], images: Tensor) -> Tensor:
    return torch.stack([member(images) for member in members])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="+", metavar="NETWORK/GRANULARITY/PROTOCOL")
    parser.add_argument("--method", default="pgd")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    declare_missing_operators()
    torch.set_num_threads(1)
    for name, granularity, protocol in (each.split("/") for each in arguments.cases):
        case = Case(name, granularity)
        tree = of_the_passes(case.model, case.images)
        found = cost(case, protocol, arguments.method, arguments.steps)
        print(f"{name}/{granularity}/{protocol}: {tree:.2f} of the passes, {found:.2f} of the time")


if __name__ == "__main__":
    main()
