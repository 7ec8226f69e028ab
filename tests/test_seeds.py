"""Randomness: golden vectors, so that no release changes what a seed means."""

from __future__ import annotations

import pytest
import torch

from rlskit import seeds

GOLDEN = {
    (0, "defender", ()): 5831419932773755386,
    (0, "defender", (0, 0)): 2779670387045898086,
    (0, "attacker", (0, 0)): 343564713116440595,
    (1, "defender", (0, 12)): 5707664192196884339,
    (0, "eot|0", (128, 7)): 8883534764422975385,
}


@pytest.mark.parametrize(("key", "value"), GOLDEN.items())
def test_golden_vectors(key: tuple[int, str, tuple[int, ...]], value: int) -> None:
    seed, purpose, indices = key
    assert seeds.derive(seed, purpose, *indices) == value
    assert 0 <= value < 2**63


def test_golden_plan() -> None:
    generator = seeds.generator(0, "defender", 0, 0)
    assert torch.randint(2, (12,), generator=generator).tolist() == [
        1,
        0,
        1,
        1,
        1,
        1,
        0,
        1,
        0,
        0,
        0,
        1,
    ]


def test_no_two_keys_share_a_stream() -> None:
    keys = [
        (seed, purpose, (i, j))
        for seed in (0, 1, 10, 11)
        for purpose in ("attacker", "defender", "1", "11")
        for i in range(12)
        for j in range(12)
    ]
    assert len({seeds.derive(s, p, *indices) for s, p, indices in keys}) == len(keys)


def test_the_global_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.rand(3, generator=seeds.generator(5, "x", 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, generator=seeds.generator(5, "x", 1)), first)
