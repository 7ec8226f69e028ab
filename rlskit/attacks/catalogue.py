"""The attacks: what is known about each, and its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlskit.attacks.apgd import apgd, apgd_t
from rlskit.attacks.arc import arc
from rlskit.attacks.autoattack import autoattack
from rlskit.attacks.cw import cw
from rlskit.attacks.deepfool import deepfool
from rlskit.attacks.ead import ead
from rlskit.attacks.fab import fab
from rlskit.attacks.fgsm import fgsm
from rlskit.attacks.jsma import jsma
from rlskit.attacks.noise import noise
from rlskit.attacks.onepixel import onepixel
from rlskit.attacks.pgd import pgd
from rlskit.attacks.pixle import pixle
from rlskit.attacks.square import square
from rlskit.attacks.upstream import Upstream


@dataclass(frozen=True)
class Attack:
    """What is known about one attack.

    Attributes:
        title: Its name in words.
        run: Our function.
        paper: Citation and link.
        norms: What a budget bounds, or what an attack without one makes small. Several are the
            choices of `--norm`, the first its default.
        needs: What it needs of the model: `gradients`, `logits`, or `nothing`.
        random: Whether its result depends on the generator's seed.
        defaults: Option -> default, stated in whatever scale `--pixel-range` names. None: derived
            from another option, or not done. Budgets and constants are those of section 4.2 of the
            RLS paper.
        fixed: What the name says of `run`'s arguments, and no option of a user's changes.
        upstream: torchattacks' own, under the same option names; None where it has none.
        compiles: Whether what it attacks may be compiled. `torch.compile` frees a graph after its
            first backward pass, and may answer further ones wrongly, so no attack may that
            differentiates one forward pass several times.
        members: Whether it attacks the view's draws one by one, and so needs them to stay the same.
        borrowed: Whether `run` itself calls torchattacks, which is an extra.
    """

    title: str
    run: Callable[..., Tensor]
    paper: str
    norms: tuple[str, ...]
    needs: str
    random: bool
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    upstream: Upstream | None = None
    compiles: bool = True
    members: bool = False
    borrowed: bool = False

    @property
    def has_budget(self) -> bool:
        """Whether `--eps` bounds what it does; else it makes a perturbation as small as it can."""
        return "eps" in self.defaults

    @property
    def unlimited(self) -> bool:
        """Whether nothing limits it: an image that it gives back is a search that failed."""
        return not self.has_budget and self.norms != ("l0",)


_ASCENT: Mapping[str, Any] = {
    "eps": 0.01, "steps": 10, "step_size": None, "loss": "ce", "momentum": 0.0,
    "random_start": True, "restarts": 1, "eot_samples": 1, "target": None,
}  # fmt: skip
_APGD: Mapping[str, Any] = {
    "norm": "linf", "eps": 0.01, "steps": 100, "restarts": 1, "rho": 0.75, "eot_samples": 1,
}  # fmt: skip
_APGD_NAMES = {
    "norm": "norm", "eps": "eps", "steps": "steps", "restarts": "n_restarts", "rho": "rho",
    "eot_samples": "eot_iter",
}  # fmt: skip
_NAMES = {"eps": "eps", "steps": "steps", "step_size": "alpha"}


def _without(*options: str) -> dict[str, Any]:
    return {name: value for name, value in _ASCENT.items() if name not in options}


ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(
        title="Fast gradient sign method",
        run=fgsm,
        paper="Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572",
        norms=("linf",),
        needs="gradients",
        random=False,
        defaults={"eps": 0.01, "loss": "ce", "eot_samples": 1, "target": None},
        upstream=Upstream("FGSM", {"eps": "eps"}),
    ),
    "bim": Attack(
        title="Basic iterative method",
        run=pgd,
        paper="Kurakin et al. 2017, https://arxiv.org/abs/1607.02533",
        norms=("linf",),
        needs="gradients",
        random=False,
        defaults=_without("random_start", "restarts", "momentum"),
        fixed={"random_start": False},
        upstream=Upstream("BIM", _NAMES),
    ),
    "pgd": Attack(
        title="Projected gradient descent",
        run=pgd,
        paper="Madry et al. 2018, https://arxiv.org/abs/1706.06083",
        norms=("linf",),
        needs="gradients",
        random=True,
        defaults=_ASCENT,
        upstream=Upstream("PGD", {**_NAMES, "random_start": "random_start"}),
    ),
    "pgd-l2": Attack(
        title="Projected gradient descent in l2",
        run=pgd,
        paper="Madry et al. 2018, https://arxiv.org/abs/1706.06083",
        norms=("l2",),
        needs="gradients",
        random=True,
        defaults={**_ASCENT, "eps": 0.5},
        fixed={"norm": "l2"},
        upstream=Upstream("PGDL2", {**_NAMES, "random_start": "random_start"}),
    ),
    "mifgsm": Attack(
        title="Momentum iterative FGSM",
        run=pgd,
        paper="Dong et al. 2018, https://arxiv.org/abs/1710.06081",
        norms=("linf",),
        needs="gradients",
        random=False,
        defaults={**_without("random_start", "restarts"), "momentum": 1.0},
        fixed={"random_start": False},
        upstream=Upstream("MIFGSM", {**_NAMES, "momentum": "decay"}),
    ),
    "eotpgd": Attack(
        title="PGD on gradients summed over calls of the model",
        run=pgd,
        paper="Athalye et al. 2018, https://arxiv.org/abs/1802.00420",
        norms=("linf",),
        needs="gradients",
        random=True,
        defaults={**_ASCENT, "eot_samples": 2},
        upstream=Upstream(
            "EOTPGD", {**_NAMES, "random_start": "random_start", "eot_samples": "eot_iter"}
        ),
    ),
    "apgd-ce": Attack(
        title="Auto-PGD on the cross-entropy",
        run=apgd,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        defaults=_APGD,
        fixed={"loss": "ce"},
        upstream=Upstream("APGD", _APGD_NAMES, {"loss": "ce"}, seeds_itself=True),
    ),
    "apgd-dlr": Attack(
        title="Auto-PGD on the difference of logits ratio",
        run=apgd,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        defaults=_APGD,
        fixed={"loss": "dlr"},
        upstream=Upstream(
            "APGD", _APGD_NAMES, {"loss": "dlr"}, least_classes=3, seeds_itself=True
        ),
    ),
    "apgd-t": Attack(
        title="Auto-PGD towards each of the nearest classes",
        run=apgd_t,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        defaults={**_APGD, "target_classes": 9},
        upstream=Upstream(
            "APGDT", _APGD_NAMES, least_classes=4, counts_classes=True, seeds_itself=True
        ),
    ),
    "square": Attack(
        title="Square attack",
        run=square,
        paper="Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049",
        norms=("linf", "l2"),
        needs="logits",
        random=True,
        defaults={
            "norm": "linf", "eps": 0.01, "steps": 5000, "p_init": 0.8, "loss": "margin",
            "restarts": 1,
        },
        upstream=Upstream(
            "Square",
            {
                "norm": "norm", "eps": "eps", "steps": "n_queries", "p_init": "p_init",
                "loss": "loss", "restarts": "n_restarts",
            },
            seeds_itself=True,
        ),
    ),
    "autoattack": Attack(
        title="AutoAttack",
        run=autoattack,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        defaults={
            "norm": "linf", "eps": 0.01, "version": "standard", "steps": 100, "queries": 5000,
        },
        upstream=Upstream(
            "AutoAttack", {"norm": "norm", "eps": "eps", "version": "version"},
            least_classes=4, counts_classes=True, seeds_itself=True,
        ),
        compiles=False,
    ),
    "arc": Attack(
        title="Attacking randomised ensembles of classifiers",
        run=arc,
        paper="Dbouk & Shanbhag 2022, https://arxiv.org/abs/2206.06737",
        norms=("linf", "l2"),
        needs="gradients",
        random=False,
        defaults={"norm": "linf", "eps": 0.01, "steps": 20, "top_classes": 4},
        compiles=False,
        members=True,
    ),
    "noise": Attack(
        title="Random noise, as the control",
        run=noise,
        paper="none: what withstands no attack should withstand this",
        norms=("linf",),
        needs="nothing",
        random=True,
        defaults={"eps": 0.01, "distribution": "uniform"},
    ),
    "deepfool": Attack(
        title="DeepFool",
        run=deepfool,
        paper="Moosavi-Dezfooli et al. 2016, https://arxiv.org/abs/1511.04599",
        norms=("l2", "linf"),
        needs="gradients",
        random=False,
        defaults={"norm": "l2", "steps": 50, "overshoot": 0.02, "top_classes": 10},
        upstream=Upstream("DeepFool", {"steps": "steps", "overshoot": "overshoot"}),
        compiles=False,
    ),
    "cw": Attack(
        title="Carlini & Wagner",
        run=cw,
        paper="Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644",
        norms=("l2",),
        needs="gradients",
        random=False,
        defaults={
            "c": 0.01, "kappa": 0.1, "steps": 1000, "lr": 0.01, "search_steps": 1, "target": None,
        },
        upstream=Upstream("CW", {"c": "c", "kappa": "kappa", "steps": "steps", "lr": "lr"}),
    ),
    "ead": Attack(
        title="Elastic-net attack",
        run=ead,
        paper="Chen et al. 2018, https://arxiv.org/abs/1709.04114",
        norms=("elastic net",),
        needs="gradients",
        random=False,
        defaults={
            "c": 0.01, "beta": 0.01, "kappa": 0.1, "steps": 1000, "lr": 0.01, "search_steps": 1,
            "decision_rule": "en", "optimizer": "adam", "target": None,
        },
        upstream=Upstream(
            {"en": "EADEN", "l1": "EADL1"},
            {
                "c": "initial_const", "beta": "beta", "kappa": "kappa", "steps": "max_iterations",
                "lr": "lr", "search_steps": "binary_search_steps",
            },
            least_steps=10,
        ),
    ),
    "fab": Attack(
        title="Fast adaptive boundary attack",
        run=fab,
        paper="Croce & Hein 2020, https://arxiv.org/abs/1907.02044",
        norms=("linf", "l2", "l1"),
        needs="gradients",
        random=True,
        defaults={"norm": "linf", "steps": 100, "restarts": 1, "target_classes": 0},
        upstream=Upstream(
            "FAB", {"norm": "norm", "steps": "steps"}, {"eps": 1e9},
            counts_classes=True, seeds_itself=True,
        ),
        compiles=False,
    ),
    "jsma": Attack(
        title="Jacobian saliency map attack",
        run=jsma,
        paper="Papernot et al. 2016, https://arxiv.org/abs/1511.07528",
        norms=("l0",),
        needs="gradients",
        random=False,
        defaults={"theta": 1.0, "gamma": 0.1, "target": None},
        compiles=False,
    ),
    "pixle": Attack(
        title="Pixle",
        run=pixle,
        paper="Pomponi et al. 2022, https://arxiv.org/abs/2202.02236",
        norms=("l0",),
        needs="logits",
        random=True,
        defaults={"restarts": 20, "steps": 10, "smallest_patch": 2, "largest_patch": 10},
        borrowed=True,
    ),
    "onepixel": Attack(
        title="One pixel attack",
        run=onepixel,
        paper="Su et al. 2019, https://arxiv.org/abs/1710.08864",
        norms=("l0",),
        needs="logits",
        random=True,
        defaults={"pixels": 1, "steps": 10, "population": 10},
        borrowed=True,
    ),
}  # fmt: skip
"""Name of a method -> what is known about it."""
