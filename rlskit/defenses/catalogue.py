"""The defenses, each with what is known about it."""

from __future__ import annotations

from rlskit.defenses import adp, dropout, ensemble, rls, rse, sap
from rlskit.defenses.defense import Defense

DEFENSES: dict[str, Defense] = {
    "none": Defense("the undefended network", distinct=lambda _: 1),
    "rls": Defense(
        "random layer sampling: each layer from a random bank",
        samples=lambda _: rls.SAMPLES, plan=rls.plan, group=rls.group, banks=2, granularity="layer",
    ),
    "ensemble": Defense(
        "M networks trained separately, mean prediction",
        samples=ensemble.members, distinct=ensemble.members, plan=ensemble.plan,
        group=ensemble.group, separate=True, banks=3,
    ),
    "adp": Defense(
        "M networks trained together to differ where they are wrong",
        samples=ensemble.members, distinct=ensemble.members, plan=ensemble.plan,
        group=ensemble.group, loss=adp.loss, settings=adp.SETTINGS, check=adp.check, banks=3,
    ),
    "rse": Defense(
        "Gaussian noise before every convolution",
        samples=lambda _: rse.SAMPLES, perturb=rse.perturb, settings=rse.SETTINGS, check=rse.check,
    ),
    "dropout": Defense(
        "channels dropped after each stage, at test time too",
        samples=lambda _: dropout.SAMPLES, perturb=dropout.perturb, settings=dropout.SETTINGS,
        check=dropout.check, granularity="stage",
    ),
    "sap": Defense(
        "activations pruned at random after each ReLU, after training",
        samples=lambda _: sap.SAMPLES, perturb=sap.perturb, post_hoc=True, settings=sap.SETTINGS,
        check=sap.check,
    ),
}  # fmt: skip
"""Name of a defense -> what is known about it."""
