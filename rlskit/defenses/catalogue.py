"""The defenses, each with what is known about it."""

from __future__ import annotations

from rlskit.defenses import (
    adp,
    crossmax,
    dropout,
    ensemble,
    gal,
    random_bits,
    random_filters,
    random_norm,
    resize_pad,
    rls,
    rse,
    sap,
    smoothing,
    stochastic,
    weight_noise,
)
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
    "gal": Defense(
        "M networks trained together to have gradients that differ",
        samples=ensemble.members, distinct=ensemble.members, plan=ensemble.plan,
        group=ensemble.group, loss=gal.loss, penalty=gal.penalty, settings=gal.SETTINGS,
        check=gal.check, banks=3,
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
    "smoothing": Defense(
        "Gaussian noise on the image",
        samples=lambda _: smoothing.SAMPLES, perturb=smoothing.perturb,
        settings=smoothing.SETTINGS,
    ),
    "resize-pad": Defense(
        "the image made smaller and padded at random, after training",
        samples=lambda _: resize_pad.SAMPLES, perturb=resize_pad.perturb, post_hoc=True,
        settings=resize_pad.SETTINGS,
    ),
    "random-bits": Defense(
        "weights rounded to a random number of bits",
        samples=lambda _: random_bits.SAMPLES, perturb=random_bits.perturb, folds=False,
        settings=random_bits.SETTINGS, check=random_bits.check,
    ),
    "random-filters": Defense(
        "most filters of the first convolution are random projections",
        samples=lambda _: random_filters.SAMPLES, perturb=random_filters.perturb,
        folds=False,
        settings=random_filters.SETTINGS, check=random_filters.check,
    ),
    "random-norm": Defense(
        "each BatchNorm uses its own statistics or the image's, at random",
        samples=lambda _: random_norm.SAMPLES, perturb=random_norm.perturb, folds=False,
        settings=random_norm.SETTINGS, check=random_norm.check,
    ),
    "weight-noise": Defense(
        "Gaussian noise on every weight",
        samples=lambda _: weight_noise.SAMPLES, perturb=weight_noise.perturb, folds=False,
        settings=weight_noise.SETTINGS,
    ),
    "crossmax": Defense(
        "M networks trained separately that answer by ranks",
        distinct=lambda _: 1, draw=crossmax.draw, plan=ensemble.plan, group=ensemble.group,
        separate=True, banks=3,
    ),
    "stochastic": Defense(
        "a network with randomness of its own, under one stream of random numbers",
        samples=lambda _: stochastic.SAMPLES, draw=stochastic.draw,
    ),
}  # fmt: skip
"""Name of a defense -> what is known about it."""
