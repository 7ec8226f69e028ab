"""A call with a wrong name or type is refused by a sentence, as on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rlskit
from rlskit.arguments import checked
from rlskit.errors import RequestError
from rlskit.evaluation import EvalOptions
from rlskit.training import TrainOptions

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
DATA = (torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("function", "given", "sentence"),
    [
        (rlskit.evaluate, {"n_sample": 3}, "`n_sample` is no option; did you mean `n_samples`?"),
        (rlskit.evaluate, {"adversrial": "f"}, "did you mean `adversarial`?"),
        (rlskit.attack, {"step": 3}, "did you mean `steps`?"),
        (rlskit.attack, {"repeat": 3}, "did you mean `repeats`?"),
        (rlskit.attack_adaptively, {"eps": 0.1, "querys": 3}, "did you mean `queries`?"),
        (rlskit.train, {"epoch": 3}, "did you mean `epochs`?"),
        (rlskit.measure_diversity, {"n_sample": 3}, "did you mean `n_samples`?"),
        (rlskit.measure_transfer, {"zzz": 3}, "`zzz` is no option; there is none like it"),
        (rlskit.audit_model, {"surogate": None}, "did you mean `surrogate`?"),
        (rlskit.evaluate, {"n_samples": "3x"}, "is a whole number, a list or None, not '3x'"),
        (rlskit.evaluate, {"n_samples": (1, 2.5)}, r"or None, not \(1, 2.5\)"),
        (rlskit.evaluate, {"seed": "a"}, "`seed` is a whole number, not 'a'"),
        (rlskit.evaluate, {"out": 3}, "`out` is a text, a path or None, not 3"),
        (rlskit.attack, {"n_attacked": True}, "`n_attacked` is a whole number, not True"),
        (rlskit.attack_adaptively, {"eps": None}, "`eps` is a number or a text, not None"),
        (rlskit.attack_adaptively, {"eps": 0.1, "steps": "9"}, "`steps` is a whole number"),
        (rlskit.train, {"lr": "fast"}, "`lr` is a number, not 'fast'"),
        (rlskit.train, {"amp": 1}, "`amp` is True or False, not 1"),
        (rlskit.measure_diversity, {"repeats": 1.5}, "`repeats` is a whole number, not 1.5"),
        (rlskit.audit_model, {"points": "many"}, "`points` is a whole number, not 'many'"),
    ],
)
def test_wrong_calls(function: Callable[..., Any], given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        function(MODEL, DATA, **given)


def test_wrong_conversions() -> None:
    with pytest.raises(RequestError, match="`num_class` is no option; did you mean"):
        rlskit.convert("resnet18", num_class=3)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match=r"`mean` is a list or None, not 0\.5"):
        rlskit.convert("resnet18", mean=0.5)  # type: ignore[arg-type]


def test_options_check_themselves() -> None:
    with pytest.raises(RequestError, match="`batch_size` is a whole number, not None"):
        EvalOptions(batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="`schedule` is a text, not 3"):
        TrainOptions(schedule=3)  # type: ignore[arg-type]


def test_right_calls_are_as_without_it() -> None:
    @checked("more")
    def given(
        model: nn.Module, count: int = 1, *, out: str | Path | None = None,
        several: Sequence[float] = (), **fields: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Documented."""
        return model, count, out, several, fields

    assert given(MODEL) == (MODEL, 1, None, (), {})
    found = given(MODEL, np.int64(2), out=Path("x"), several=[1, 0.5], more="m")  # type: ignore[arg-type]
    assert found == (MODEL, 2, Path("x"), [1, 0.5], {"more": "m"})
    assert given.__doc__ == "Documented."
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        given()  # type: ignore[call-arg]
