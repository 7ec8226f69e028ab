"""Two runs on the same images, compared image by image.

Shapes: n images, R repeats. A repeat of one run has nothing to do with a repeat of the other; what
is paired is the image, with its mean over the repeats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlskit import seeds
from rlskit.errors import RequestError
from rlskit.results.comparison import KNOWN, Comparison, Difference, Fallen, Pair, hidden
from rlskit.results.finished import Answers, Finished, read_answers, read_run
from rlskit.results.result import AttackFacts, Result
from rlskit.results.words import attack_label, draws_of, protocol
from rlskit.seeds import Purpose
from rlskit.stats import (
    Accuracy,
    bootstrap_means,
    lower_bound,
    mcnemar,
    percentile_interval,
    sign_flip,
)

RESAMPLES = 10_000


def compare(a: str | Path, b: str | Path, *, seed: int = 0) -> Comparison:
    """Compare the accuracies of two runs of `attack` or `eval` on the same images.

    A run under `known` is also compared with one of the same model under another protocol, which
    tells what is robust from what is hidden. Where a run holds several attacks, each is compared
    with the one of the same method and parameters in the other run. With one repeat in both runs
    the test is McNemar's; with several it is the sign-flip test on each image's difference of
    means. Both are exact.

    Args:
        a: The first run's folder, or its `results.json`, with the per-image tables beside it.
        b: The second run's.
        seed: Of the bootstrap.

    Raises:
        RequestError: A file cannot be read or belongs to another run; or the runs differ in images,
            protocol or attacks, so that their difference would mean nothing.
    """
    first, second = read_run(Path(a)), read_run(Path(b))
    _check_same_question(first.parts[0].result, second.parts[0].result)
    partners = {_question(part.result.attack): part for part in second.parts}
    left_out = [f"A: {why}" for why in first.left_out] + [f"B: {why}" for why in second.left_out]
    pairs, unanswered = [], []
    for part in first.parts:
        partner = partners.pop(_question(part.result.attack), None)
        if partner is None:
            unanswered.append(_label(part.result))
        else:
            pairs.append(_pair(part, partner, seed))
    left_out += [f"A: {label}, which B was not attacked with" for label in unanswered]
    left_out += [
        f"B: {_label(part.result)}, which A was not attacked with" for part in partners.values()
    ]
    if not pairs:
        raise RequestError(
            _nothing_in_common(*([one.result for one in run.parts] for run in (first, second)))
        )
    paths = str(first.folder), str(second.folder)
    return Comparison(paths, tuple(pairs), tuple(left_out), seed, RESAMPLES, tuple(unanswered))


def hidden_among(results: Sequence[Result]) -> list[str]:
    """Return a sentence for each result under `known` and its partner under `eot`.

    Where both attacked one draw there may be no other, so that the two are the same attack, and
    nothing is said.

    Args:
        results: Of one model; partners are those of the same attack on the same images.
    """
    return [
        hidden(known, fresh)
        for known in results
        for fresh in results
        if (known.protocol, fresh.protocol) == (KNOWN, "eot")
        and {known.n_attacked, fresh.n_attacked} != {1}
        and known.data == fresh.data
        and _question(known.attack) == _question(fresh.attack)
    ]


def _pair(first: Finished, second: Finished, seed: int) -> Pair:
    """Compare two results that answer the same question.

    Raises:
        RequestError: A table does not fit its result, or the images are not the same.
    """
    a, b = read_answers(first), read_answers(second)
    if not _same_images(a, b):
        raise RequestError(
            f"{first.tables[0]} and {second.tables[0]} do not list the same images with the same "
            "labels; compare runs with the same `data`, `split` and `limit`"
        )
    if a.given.keys() != b.given.keys():
        raise RequestError(
            f"{first.tables[0]} and {second.tables[0]} do not hold the same accuracies; run one of "
            "them again"
        )
    differences = {
        kind: replace(
            _difference(
                a.right[kind],
                b.right[kind],
                (first.result.accuracy[kind], second.result.accuracy[kind]),
                seed,
            ),
            fallen=_fallen(a, b, kind),
        )
        for kind in a.given
    }
    return Pair(first.result, second.result, differences)


def _same_images(a: Answers, b: Answers) -> bool:
    """Whether two tables of data with the same digest list the same images.

    Those that were written before images kept their index through `--limit` count from 0.
    """
    counted = np.arange(len(a.index))
    pairs = ((a.index, b.index), (a.index, counted), (b.index, counted))
    return np.array_equal(a.label, b.label) and any(np.array_equal(*pair) for pair in pairs)


def _fallen(a: Answers, b: Answers, kind: str) -> tuple[Fallen, ...]:
    """Return the images that are right less often in B, and what B answers instead."""
    lost = a.right[kind].mean(0) > b.right[kind].mean(0)
    found = []
    for place in np.flatnonzero(lost):
        label, given = int(b.label[place]), b.given[kind][:, place]
        classes, counts = np.unique(given[given != label], return_counts=True)
        path = None if b.paths is None else b.paths[place]
        found.append(Fallen(int(b.index[place]), label, int(classes[counts.argmax()]), path))
    return tuple(found)


def _difference(
    a: NDArray[np.bool_],
    b: NDArray[np.bool_],
    accuracies: tuple[Accuracy, Accuracy],
    seed: int,
) -> Difference:
    """Compare whether images were right in A, `[R_a, n]`, and in B, `[R_b, n]`."""
    repeats = math.lcm(len(a), len(b))  # so that differences of means are whole numbers of them
    gains = b.sum(0) * (repeats // len(b)) - a.sum(0) * (repeats // len(a))
    generator = np.random.default_rng(seeds.derive(seed, Purpose.BOOTSTRAP))
    # Two more images, one for each side: where hardly any differ, none would in most resamples, and
    # the interval had no width (Agresti & Min 2005 add half an image to each cell).
    padded = np.append(gains, [repeats, -repeats]).astype(np.float64)
    resampled = bootstrap_means(padded[:, None], generator, RESAMPLES)[:, 0]
    interval, bounds = (percentile_interval(resampled / repeats, share) for share in (0.95, 0.9))
    assert interval is not None
    assert bounds is not None
    mean = float(gains.mean()) / repeats
    only_a, only_b = int((gains < 0).sum()), int((gains > 0).sum())
    return Difference(
        *accuracies,
        difference=mean,
        ci95=interval,
        bounds=_as_wide_as_exact(bounds, mean, len(gains)),
        test="mcnemar" if repeats == 1 else "sign-flip",
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar(only_a, only_b) if repeats == 1 else sign_flip(gains),
    )


def _as_wide_as_exact(bounds: tuple[float, float], mean: float, n: int) -> tuple[float, float]:
    """Return bounds that hold where few images change, too, and all of them to one side.

    Resampling cannot show more of them than there are; Clopper and Pearson's bound allows for it.
    """
    low, high = bounds
    if mean <= 0:
        low = min(low, lower_bound([1 + mean], n) - 1)
    if mean >= 0:
        high = max(high, 1 - lower_bound([1 - mean], n))
    return low, high


def _check_same_question(a: Result, b: Result) -> None:
    """Require that two runs had the same images and the same protocol, or `known` beside another.

    The latter only of one model, as what it hides is the question then.

    Raises:
        RequestError: They had not.
    """
    one_is_known = (a.protocol == KNOWN) != (b.protocol == KNOWN)
    same_model = a.checkpoint.sha256 == b.checkpoint.sha256 and a.per_example == b.per_example
    views = _views(a, b)
    if views[0] != views[1] and not (one_is_known and same_model):
        raise RequestError(
            f"these were measured under different protocols (A: {views[0]}; B: {views[1]}) and "
            "cannot be compared; run one of them again under the other's"
        )
    for name in ("split", "n", "sha256", "adversarial_sha256"):
        one, other = getattr(a.data, name), getattr(b.data, name)
        if one != other:
            raise RequestError(
                f"these were measured on different images ({name}: {one} in A, {other} in B); "
                "compare runs with the same `data`, `split` and `limit`"
            )


def _views(a: Result, b: Result) -> list[str]:
    """Return what must not differ besides the images: the protocol, and how it was carried out."""
    both = [a, b]
    # `adaptive` attacks all draws of a defense that has few, which is no choice of the user's
    few = any(one.protocol == "adaptive" and draws_of(one) is not None for one in both)
    return [protocol(replace(one, n_attacked=None) if few else one) for one in both]


def _question(attack: AttackFacts | None) -> str:
    """Return what two attacks must have in common to be compared; parameters are in [0, 1]."""
    if attack is None:
        return "clean"
    if attack.of:
        return json.dumps(sorted(map(_question, attack.of)))
    return json.dumps(_decisive(attack), sort_keys=True)


def _decisive(attack: AttackFacts) -> dict[str, Any]:
    """Return what decides an attack's strength, whatever scale it was stated in."""
    common = {name: getattr(attack, name) for name in ("method", "engine", "view")}
    more = {"risk": attack.risk or "mean", "precision": attack.precision or "fp32"}
    return {**common, **more, **attack.params}


def _label(result: Result) -> str:
    return attack_label(result) if result.attack else "clean"


def _nothing_in_common(first: Sequence[Result], second: Sequence[Result]) -> str:
    """Say why no result of one run answers the question of one in the other."""
    names = [", ".join(map(_label, results)) for results in (first, second)]
    attacks = [results[0].attack for results in (first, second)]
    a, b = (_decisive(attack) for attack in attacks if attack is not None)
    differ = [name for name in sorted(a | b) if a.get(name) != b.get(name)]
    alone = len(first) == len(second) == 1
    reason = f"they differ in {', '.join(differ)}" if alone else "no method with equal parameters"
    return (
        f"the runs have no attack in common (A: {names[0]}; B: {names[1]}): {reason}; compare runs "
        "of the same attacks"
    )
