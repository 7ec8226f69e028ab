"""Randomness: golden vectors, so that no release changes what a seed means."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import rlskit
from rlskit import seeds
from rlskit.attacks.losses import LOSSES
from rlskit.errors import RequestError
from rlskit.seeds import Purpose, purpose_of

GOLDEN = {
    (0, Purpose.DEFENDER, ()): 5831419932773755386,
    (0, Purpose.DEFENDER, (0, 0)): 2779670387045898086,
    (0, Purpose.ATTACKER, (0, 0)): 343564713116440595,
    (1, Purpose.DEFENDER, (0, 12)): 5707664192196884339,
    (0, Purpose.EOT, ("0", 128, 7)): 8883534764422975385,
}


@pytest.mark.parametrize(("key", "value"), GOLDEN.items())
def test_golden_vectors(key: tuple[int, Purpose, tuple[int | str, ...]], value: int) -> None:
    seed, purpose, indices = key
    assert seeds.derive(seed, purpose, *indices) == value
    assert 0 <= value < 2**63


def test_golden_plan() -> None:
    generator = seeds.generator(0, Purpose.DEFENDER, 0, 0)
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


def test_a_purpose_is_a_name_from_the_list() -> None:
    """In the package no text stands where a purpose is meant, and none of the list is unused."""
    used = {f"APGD_{loss.upper().replace('-', '_')}" for loss in LOSSES} | {"UNIFORM", "GAUSSIAN"}
    for file in Path(rlskit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            literal = isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant)
            assert not (literal and node.arg == "purpose"), file  # type: ignore[attr-defined]
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Purpose":
                used.add(node.attr)
    assert used == set(Purpose.__members__)


def test_an_unknown_purpose_is_named() -> None:
    assert purpose_of("defender") is Purpose.DEFENDER
    with pytest.raises(RequestError, match="`purpose` 'defence' is unknown; it is one of attacker"):
        purpose_of("defence")


def test_no_two_keys_share_a_stream() -> None:
    keys = [
        (seed, purpose, (i, j))
        for seed in (0, 1, 10, 11)
        for purpose in (Purpose.ATTACKER, Purpose.DEFENDER, Purpose.EOT)
        for i in range(12)
        for j in range(12)
    ]
    assert len({seeds.derive(s, p, *indices) for s, p, indices in keys}) == len(keys)


def test_the_global_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.rand(3, generator=seeds.generator(5, Purpose.ATTACK, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, generator=seeds.generator(5, Purpose.ATTACK, 1)), first)
