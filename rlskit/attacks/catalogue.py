"""The attacks: what is known about each, and its defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlskit.attacks.adv_lib import AdvLib
from rlskit.attacks.apgd import apgd, apgd_passes, apgd_t, apgd_t_passes
from rlskit.attacks.apgd_l1 import apgd_l1, apgd_l1_passes
from rlskit.attacks.arc import arc, arc_passes
from rlskit.attacks.autoattack import autoattack, autoattack_passes
from rlskit.attacks.cw import cw, cw_passes
from rlskit.attacks.ddn import ddn, ddn_passes
from rlskit.attacks.deepfool import deepfool, deepfool_passes
from rlskit.attacks.ead import ead, ead_passes
from rlskit.attacks.fab import fab, fab_passes
from rlskit.attacks.fgsm import fgsm, fgsm_passes
from rlskit.attacks.fmn import fmn, fmn_passes
from rlskit.attacks.inward import inward, inward_passes
from rlskit.attacks.jsma import jsma, jsma_passes
from rlskit.attacks.mora import mora, mora_passes
from rlskit.attacks.noise import noise, noise_passes
from rlskit.attacks.onepixel import onepixel, onepixel_passes
from rlskit.attacks.options import OPTIONS
from rlskit.attacks.passes import Passes
from rlskit.attacks.pgd import pgd, pgd_passes
from rlskit.attacks.pixle import pixle, pixle_passes
from rlskit.attacks.sigma_zero import sigma_zero, sigma_zero_passes
from rlskit.attacks.square import square, square_passes
from rlskit.attacks.upstream import Upstream
from rlskit.seeds import Purpose


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
        passes: What it costs: (`Setting`, all its parameters by name) -> `Passes`.
        at_most: Whether that is an upper bound, as it leaves images alone that are fooled, or wrong
            anyway; else it is what every image costs.
        fixed: What the name says of `run`'s arguments, and no option of a user's changes.
        implied: Defaults that the name implies, in place of those of `run`.
        upstream: torchattacks' own, under the same option names; None where it has none.
        compiles: Whether what it attacks may be compiled. `torch.compile` frees a graph after its
            first backward pass, and may answer further ones wrongly, so no attack may that
            differentiates one forward pass several times.
        only_follows: Whether it only follows its gradients: no answer that comes with one decides
            anything. Then they may be rough (`--precision`).
        fixed_draws: Whether it needs the view's draws to stay the same: it asks them one by one, or
            climbs from as many starts at once as its block leaves room for.
        borrowed: Whether `run` itself calls torchattacks, which is an extra.
        adv_lib: adv-lib's own, where it keeps the contract.
        limited: Whether something other than `--eps` limits how far it may go.
    """

    title: str
    run: Callable[..., Tensor]
    passes: Callable[..., Passes]
    paper: str
    norms: tuple[str, ...]
    needs: str
    random: bool
    at_most: bool = True
    fixed: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Any] = field(default_factory=dict)
    upstream: Upstream | None = None
    compiles: bool = True
    only_follows: bool = False
    fixed_draws: bool = False
    borrowed: bool = False
    adv_lib: AdvLib | None = None
    limited: bool = False

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """Option -> default, stated in whatever scale `--pixel-range` names, in `run`'s order.

        They are those of `run`'s signature, which has budgets and constants of section 4.2 of the
        RLS paper. None: derived from another option, or not done.
        """
        parameters = inspect.signature(self.run).parameters
        of_run = {
            OPTION_OF.get(name, name): None if name in OPTION_OF else parameter.default
            for name, parameter in parameters.items()
        }
        hidden = {*self.fixed, *(() if len(self.norms) > 1 else ("norm",))}
        return {
            name: self.implied.get(name, default)
            for name, default in of_run.items()
            if name in OPTIONS and name not in hidden
        }

    @property
    def ascends(self) -> bool:
        """Whether it climbs, step by step, a loss that can be chosen, within a budget."""
        own = inspect.signature(self.run).parameters
        return self.needs == "gradients" and {"eps", "steps", "loss"} <= own.keys()

    @property
    def rests(self) -> bool:
        """Whether it can leave an image alone once that is surely fooled (argument `rest`)."""
        return "rest" in inspect.signature(self.run).parameters

    @property
    def has_budget(self) -> bool:
        """Whether `--eps` bounds what it does; else it makes a perturbation as small as it can."""
        return "eps" in self.defaults

    @property
    def unlimited(self) -> bool:
        """Whether nothing limits it: an image that it gives back is a search that failed."""
        return not self.has_budget and not self.limited

    def of(self, engine: str) -> Upstream | AdvLib | None:
        """Return what another engine has of this name; None for ours, or where it has none."""
        return {"torchattacks": self.upstream, "adv-lib": self.adv_lib}.get(engine)


OPTION_OF = {"targeted": "target"}
"""Parameter of an attack that says only whether an option was given -> that option."""

_APGD_NAMES = {
    "norm": "norm", "eps": "eps", "steps": "steps", "restarts": "n_restarts", "rho": "rho",
    "eot_samples": "eot_iter",
}  # fmt: skip
_NAMES = {"eps": "eps", "steps": "steps", "step_size": "alpha"}

ATTACKS: dict[str, Attack] = {
    "fgsm": Attack(
        title="Fast gradient sign method",
        run=fgsm,
        passes=fgsm_passes,
        only_follows=True,
        at_most=False,
        paper="Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572",
        norms=("linf",),
        needs="gradients",
        random=False,
        upstream=Upstream("FGSM", {"eps": "eps"}),
    ),
    "bim": Attack(
        title="Basic iterative method",
        run=pgd,
        passes=pgd_passes,
        only_follows=True,
        at_most=False,
        paper="Kurakin et al. 2017, https://arxiv.org/abs/1607.02533",
        norms=("linf",),
        needs="gradients",
        random=False,
        fixed={"random_start": False, "restarts": 1, "momentum": 0.0},
        upstream=Upstream("BIM", _NAMES),
    ),
    "pgd": Attack(
        title="Projected gradient descent",
        run=pgd,
        passes=pgd_passes,
        only_follows=True,
        at_most=False,
        paper="Madry et al. 2018, https://arxiv.org/abs/1706.06083",
        norms=("linf",),
        needs="gradients",
        random=True,
        upstream=Upstream("PGD", {**_NAMES, "random_start": "random_start"}),
    ),
    "pgd-l2": Attack(
        title="Projected gradient descent in l2",
        run=pgd,
        passes=pgd_passes,
        only_follows=True,
        at_most=False,
        paper="Madry et al. 2018, https://arxiv.org/abs/1706.06083",
        norms=("l2",),
        needs="gradients",
        random=True,
        fixed={"norm": "l2"},
        implied={"eps": 0.5},
        upstream=Upstream("PGDL2", {**_NAMES, "random_start": "random_start"}),
    ),
    "mifgsm": Attack(
        title="Momentum iterative FGSM",
        run=pgd,
        passes=pgd_passes,
        only_follows=True,
        at_most=False,
        paper="Dong et al. 2018, https://arxiv.org/abs/1710.06081",
        norms=("linf",),
        needs="gradients",
        random=False,
        fixed={"random_start": False, "restarts": 1},
        implied={"momentum": 1.0},
        upstream=Upstream("MIFGSM", {**_NAMES, "momentum": "decay"}),
    ),
    "eotpgd": Attack(
        title="PGD on gradients summed over calls of the model",
        run=pgd,
        passes=pgd_passes,
        only_follows=True,
        at_most=False,
        paper="Athalye et al. 2018, https://arxiv.org/abs/1802.00420",
        norms=("linf",),
        needs="gradients",
        random=True,
        implied={"eot_samples": 2},
        upstream=Upstream(
            "EOTPGD", {**_NAMES, "random_start": "random_start", "eot_samples": "eot_iter"}
        ),
    ),
    "apgd-ce": Attack(
        title="Auto-PGD on the cross-entropy",
        run=apgd,
        passes=apgd_passes,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        fixed={"loss": "ce"},
        upstream=Upstream("APGD", _APGD_NAMES, {"loss": "ce"}, seeds_itself=True),
    ),
    "apgd-dlr": Attack(
        title="Auto-PGD on the difference of logits ratio",
        run=apgd,
        passes=apgd_passes,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        fixed={"loss": "dlr"},
        upstream=Upstream(
            "APGD", _APGD_NAMES, {"loss": "dlr"}, least_classes=3, seeds_itself=True
        ),
    ),
    "apgd-t": Attack(
        title="Auto-PGD towards each of the nearest classes",
        run=apgd_t,
        passes=apgd_t_passes,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        upstream=Upstream(
            "APGDT", _APGD_NAMES, least_classes=4, counts_classes=True, seeds_itself=True
        ),
    ),
    "apgd-l1": Attack(
        title="Auto-PGD in l1",
        run=apgd_l1,
        passes=apgd_l1_passes,
        paper="Croce & Hein 2021, https://arxiv.org/abs/2103.01208",
        norms=("l1",),
        needs="gradients",
        random=True,
    ),
    "square": Attack(
        title="Square attack",
        run=square,
        passes=square_passes,
        paper="Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049",
        norms=("linf", "l2"),
        needs="logits",
        random=True,
        upstream=Upstream(
            "Square",
            {
                "norm": "norm", "eps": "eps", "steps": "n_queries", "p_init": "p_init",
                "loss": "loss", "restarts": "n_restarts",
            },
            seeds_itself=True,
        ),
    ),
    "inward": Attack(
        title="Many ascents from starts spread beyond the ball, for images in doubt",
        run=inward,
        passes=inward_passes,
        paper="Starts: Tashiro et al. 2020, https://arxiv.org/abs/2003.06878",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        fixed_draws=True,
    ),
    "autoattack": Attack(
        title="AutoAttack",
        run=autoattack,
        passes=autoattack_passes,
        paper="Croce & Hein 2020, https://arxiv.org/abs/2003.01690",
        norms=("linf", "l2"),
        needs="gradients",
        random=True,
        upstream=Upstream(
            "AutoAttack", {"norm": "norm", "eps": "eps", "version": "version"},
            least_classes=4, counts_classes=True, seeds_itself=True,
        ),
        compiles=False,
    ),
    "arc": Attack(
        title="Attacking randomised ensembles of classifiers",
        run=arc,
        passes=arc_passes,
        paper="Dbouk & Shanbhag 2022, https://arxiv.org/abs/2206.06737",
        norms=("linf", "l2"),
        needs="gradients",
        random=False,
        compiles=False,
        fixed_draws=True,
    ),
    "mora": Attack(
        title="Model-reweighing attack on ensembles",
        run=mora,
        passes=mora_passes,
        paper="Yu et al. 2022, https://arxiv.org/abs/2211.08008",
        norms=("linf", "l2"),
        needs="gradients",
        random=False,
        at_most=False,
        fixed_draws=True,
    ),
    "noise": Attack(
        title="Random noise, as the control",
        run=noise,
        passes=noise_passes,
        at_most=False,
        paper="none: what withstands no attack should withstand this",
        norms=("linf",),
        needs="nothing",
        random=True,
    ),
    "deepfool": Attack(
        title="DeepFool",
        run=deepfool,
        passes=deepfool_passes,
        paper="Moosavi-Dezfooli et al. 2016, https://arxiv.org/abs/1511.04599",
        norms=("l2", "linf"),
        needs="gradients",
        random=False,
        upstream=Upstream("DeepFool", {"steps": "steps", "overshoot": "overshoot"}),
        compiles=False,
    ),
    "cw": Attack(
        title="Carlini & Wagner",
        run=cw,
        passes=cw_passes,
        paper="Carlini & Wagner 2017, https://arxiv.org/abs/1608.04644",
        norms=("l2",),
        needs="gradients",
        random=False,
        upstream=Upstream("CW", {"c": "c", "kappa": "kappa", "steps": "steps", "lr": "lr"}),
    ),
    "ead": Attack(
        title="Elastic-net attack",
        run=ead,
        passes=ead_passes,
        paper="Chen et al. 2018, https://arxiv.org/abs/1709.04114",
        norms=("elastic net",),
        needs="gradients",
        random=False,
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
        passes=fab_passes,
        paper="Croce & Hein 2020, https://arxiv.org/abs/1907.02044",
        norms=("linf", "l2", "l1"),
        needs="gradients",
        random=True,
        upstream=Upstream(
            "FAB", {"norm": "norm", "steps": "steps"}, {"eps": 1e9},
            counts_classes=True, seeds_itself=True,
        ),
        compiles=False,
    ),
    "ddn": Attack(
        title="Decoupled direction and norm",
        run=ddn,
        passes=ddn_passes,
        paper="Rony et al. 2019, https://arxiv.org/abs/1811.09600",
        norms=("l2",),
        needs="gradients",
        random=False,
        adv_lib=AdvLib("ddn", {"steps": "steps"}, ("l2",), {"levels": None}, draws=Purpose.DDN),
    ),
    "fmn": Attack(
        title="Fast minimum-norm attack",
        run=fmn,
        passes=fmn_passes,
        paper="Pintor et al. 2021, https://arxiv.org/abs/2102.12827",
        norms=("l2", "linf", "l1", "l0"),
        needs="gradients",
        random=False,
        adv_lib=AdvLib("fmn", {"norm": "norm", "steps": "steps"}, ("l2", "linf", "l1")),
    ),
    "sigma-zero": Attack(
        title="sigma-zero",
        run=sigma_zero,
        passes=sigma_zero_passes,
        paper="Cinà et al. 2024, https://arxiv.org/abs/2402.01879",
        norms=("l0",),
        needs="gradients",
        random=False,
        adv_lib=AdvLib("sigma_zero", {"steps": "num_steps"}, ("l0",)),
    ),
    "jsma": Attack(
        title="Jacobian saliency map attack",
        run=jsma,
        passes=jsma_passes,
        paper="Papernot et al. 2016, https://arxiv.org/abs/1511.07528",
        norms=("l0",),
        needs="gradients",
        random=False,
        compiles=False,
        limited=True,
    ),
    "pixle": Attack(
        title="Pixle",
        run=pixle,
        passes=pixle_passes,
        paper="Pomponi et al. 2022, https://arxiv.org/abs/2202.02236",
        norms=("l0",),
        needs="logits",
        random=True,
        borrowed=True,
        limited=True,
    ),
    "onepixel": Attack(
        title="One pixel attack",
        run=onepixel,
        passes=onepixel_passes,
        paper="Su et al. 2019, https://arxiv.org/abs/1710.08864",
        norms=("l0",),
        needs="logits",
        random=True,
        borrowed=True,
        limited=True,
    ),
}  # fmt: skip
"""Name of a method -> what is known about it."""
