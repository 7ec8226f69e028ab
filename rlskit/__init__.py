"""rlskit: attack-versus-defense evaluation of image classifiers, with Random Layer Sampling.

    model = rlskit.convert("resnet50", banks=2)
    rlskit.train(model, data="digits", group_size=3)
    result = rlskit.attack(model, data="digits", method="pgd", eps=0.02, n_attacked=10)
    rlskit.save(model, "rls.safetensors")

Importing rlskit loads neither torch nor timm; the names below load what they need when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlskit.lazy import names_of

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rlskit.audit import audit_model
    from rlskit.conversion import convert
    from rlskit.data import load as load_data
    from rlskit.defenses import draws
    from rlskit.diversity import measure_diversity
    from rlskit.diversity.transfer import measure_transfer
    from rlskit.errors import (
        RequestError,
        RlskitError,
        RunError,
        UnmergedError,
        UntrustedError,
    )
    from rlskit.evaluation import (
        attack,
        attack_adaptively,
        attack_all,
        evaluate,
        measure_abstention,
    )
    from rlskit.evaluation.verifying import verify
    from rlskit.merging import merge
    from rlskit.models import BankedModel, list_models
    from rlskit.models.checkpoint import export, inspect, load, save
    from rlskit.models.wrapping import wrap
    from rlskit.report.cards import write_card
    from rlskit.results.comparing import compare
    from rlskit.runtime.together import together
    from rlskit.training import train

_HOMES = {
    "BankedModel": "rlskit.models",
    "RequestError": "rlskit.errors",
    "RlskitError": "rlskit.errors",
    "RunError": "rlskit.errors",
    "UnmergedError": "rlskit.errors",
    "UntrustedError": "rlskit.errors",
    "attack": "rlskit.evaluation",
    "attack_adaptively": "rlskit.evaluation",
    "attack_all": "rlskit.evaluation",
    "audit_model": "rlskit.audit",
    "compare": "rlskit.results.comparing",
    "convert": "rlskit.conversion.to_banks",
    "draws": "rlskit.defenses",
    "evaluate": "rlskit.evaluation",
    "export": "rlskit.models.checkpoint",
    "inspect": "rlskit.models.checkpoint",
    "list_models": "rlskit.models",
    "load": "rlskit.models.checkpoint",
    "measure_abstention": "rlskit.evaluation",
    "measure_diversity": "rlskit.diversity.between_draws",
    "measure_transfer": "rlskit.diversity.transfer",
    "merge": "rlskit.merging",
    "load_data": "rlskit.data:load",
    "save": "rlskit.models.checkpoint",
    "together": "rlskit.runtime.together",
    "train": "rlskit.training",
    "verify": "rlskit.evaluation.verifying",
    "wrap": "rlskit.models.wrapping",
    "write_card": "rlskit.report.cards",
}

__all__ = [
    "BankedModel",
    "RequestError",
    "RlskitError",
    "RunError",
    "UnmergedError",
    "UntrustedError",
    "attack",
    "attack_adaptively",
    "attack_all",
    "audit_model",
    "compare",
    "convert",
    "draws",
    "evaluate",
    "export",
    "inspect",
    "list_models",
    "load",
    "load_data",
    "measure_abstention",
    "measure_diversity",
    "measure_transfer",
    "merge",
    "save",
    "together",
    "train",
    "verify",
    "wrap",
    "write_card",
]


__getattr__ = names_of(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
