"""The result of an evaluation: one object, stable and versioned, as Python and as JSON.

Every field stands here and nowhere else: `rlskit.documents` reads, writes and checks by these
types, and docs/result.schema.json is made of them. All numbers are in [0, 1] pixel units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlskit.documents import (
    ASIDE,
    OPTIONAL,
    Count,
    Number,
    Place,
    Share,
    Value,
    Whole,
    item,
    put_back,
    to_json,
)
from rlskit.stats import Accuracy, Spread

SCHEMA = "rlskit.result/1"

HEADLINES = ("withstood", "robust", "clean")
"""Accuracies that a gate may decide on, the first that there is."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Where a model came from.

    Attributes:
        path: Its file; None for a model in memory.
        sha256: Of the tensors; None where nothing is known of the module.
    """

    path: str | None
    sha256: str | None

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model is; of a module that rlskit did not build, the architecture alone is known.

    Attributes:
        architecture: Source and name, such as `timm:resnet18`.
        banks: Complete sets of weights.
        layers: Layers that are sampled.
        granularity: What a layer is.
        settings: The numbers of its defense.
        parameters: Of one bank.
        trained: Whether its weights are more than a random initialisation.
        outputs: What it answers: `logits`, or what they were read from.
        draws: How many different draws its defense has; None where they are many, or not known.
    """

    architecture: str
    banks: Count | None = field(default=None, metadata=OPTIONAL)
    layers: Count | None = field(default=None, metadata=OPTIONAL)
    granularity: str | None = field(default=None, metadata=OPTIONAL)
    settings: Mapping[str, Value] | None = field(default=None, metadata=OPTIONAL)
    parameters: Whole | None = field(default=None, metadata=OPTIONAL)
    trained: bool | None = field(default=None, metadata=OPTIONAL)
    outputs: str | None = field(default=None, metadata=OPTIONAL)
    draws: Count | None = field(default=None, metadata=OPTIONAL)

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Which images were scored.

    Attributes:
        name: The `--data` that names them, such as `digits` or `folder:photos`.
        split: `train`, `test`, `val`, or `all` for a flat folder.
        n: How many there are.
        sha256: Of labels and pixels; of adversarial images, of those they were made from.
        adversarial_sha256: Of saved adversarial images, where they were scored.
        skipped: Images that could not be read and count in no number.
        order: The seed of the random order of which they are the first; intervals and bounds of the
            accuracies of `attack` and `eval` then hold however often one looked before.
    """

    name: str
    split: str
    n: Count
    sha256: str
    adversarial_sha256: str | None = field(default=None, metadata=OPTIONAL)
    skipped: Count | None = field(default=None, metadata=OPTIONAL)
    order: int | None = field(default=None, metadata=OPTIONAL)

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """One attack of the protocol `adaptive`.

    Attributes:
        name: What it is called there.
        method: The attack.
        params: Its options, in [0, 1] units.
    """

    name: str
    method: str
    params: Mapping[str, Value]

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class Rise:
    """By how much an attack raises something, on average over some images.

    Attributes:
        gain: With gradients in fp32.
        shift: What bf16 adds to that; negative where it reaches less.
        at_least: One-sided 95 % lower bound of the shift (t over images); None for one image.
    """

    gain: Number
    shift: Number
    at_least: Number | None


@dataclass(frozen=True, kw_only=True)
class PrecisionCheck:
    """What an attack reached with gradients in bf16 and in fp32, on some images before it started.

    Attributes:
        images: How many.
        left: Precision -> how many of them withstood it.
        loss: The attack's loss.
        lead: The lead of what it is after, where it is still behind; 0 elsewhere.
        as_strong: Whether bf16 was found to reach as much.
    """

    images: Count
    left: Mapping[str, Whole]
    loss: Rise
    lead: Rise
    as_strong: bool


@dataclass(frozen=True, kw_only=True)
class AttackFacts:
    """What was done to the images.

    Attributes:
        method: A key of `rlskit.attacks.ATTACKS`, `adaptive`, or `worst-case` over several attacks.
        engine: Whose implementation ran.
        params: Every option, in [0, 1] units; of `worst-case` the attacks, under `of`.
        early_exit: Whether images that are surely broken were left alone; none where they need not.
        in_doubt: Of `adaptive`: where it spares its dearest parts the images that short attacks do
            not break within so many budgets.
        parts: Of `adaptive`: its attacks.
        stated: The options in the scale that the request named.
        pixel_range: That scale.
        view: How several draws are seen.
        risk: Of which answer the loss was ascended; none of `adaptive` and `worst-case`.
        compiled: Whether the attacked draws were compiled.
        precision: Of the gradients: `fp32`, which the model's own stands for, or `bf16`.
        precision_check: Where `bf16` was thought of: how it fared on some of the images.
        broken: Of `adaptive`: part -> images of all repeats that it broke; `clean` for those that
            were wrong as they were.
    """

    method: str
    engine: str
    params: Mapping[str, Value | tuple[AttackFacts, ...]]
    early_exit: bool | None = field(default=None, metadata=OPTIONAL)
    in_doubt: float | None = field(default=None, metadata=OPTIONAL)
    parts: tuple[PartFacts, ...] | None = field(default=None, metadata=OPTIONAL)
    stated: Mapping[str, Value]
    pixel_range: str
    view: str
    risk: str | None = field(default=None, metadata=OPTIONAL)
    compiled: bool | None = field(default=None, metadata=OPTIONAL)
    precision: str | None = field(default=None, metadata=OPTIONAL)
    precision_check: PrecisionCheck | None = field(default=None, metadata=OPTIONAL)
    broken: Mapping[str, Whole] | None = field(default=None, metadata=OPTIONAL)

    __getitem__ = item

    @property
    def of(self) -> tuple[AttackFacts, ...]:
        """The attacks that a worst case is over; none of a single attack."""
        found = self.params.get("of")
        return found if isinstance(found, tuple) else ()


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How large a perturbation is in one norm, over all images and repeats."""

    median: Number
    max: Number

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One diversity measure, or an AUROC.

    Attributes:
        mean: Mean over the repeats; None where it is undefined in one of them.
        std: Sample standard deviation over the repeats; None for one repeat, too.
        ci95: 95 % interval of the mean over images, of a diversity measure by the bootstrap, of an
            AUROC by Newcombe's method 5; None where there is none.
    """

    mean: Number | None
    std: Number | None
    ci95: tuple[Number, Number] | None

    __getitem__ = item


Matrix = tuple[tuple[Number | None, ...], ...]
"""Row i is the attacked draw, column j the scored one; None where it is undefined."""


@dataclass(frozen=True, kw_only=True)
class TransferFacts:
    """What the draws of the first repeat have in common, two by two.

    Attributes:
        cosine: Of their gradients, in [-1, 1].
        transferability: Share of `images` that an attack on draw i turns for draw j.
        images: How many images all draws get right.
        zero_gradients: Per draw, images without a gradient, left out of its cosines.
        off_diagonal: Of both matrices, the mean over pairs of two draws, over all repeats.
        attack: On each draw.
    """

    cosine: Matrix
    transferability: Matrix
    images: Whole
    zero_gradients: tuple[Whole, ...]
    off_diagonal: Mapping[str, Spread]
    attack: AttackFacts

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class Abstained:
    """What abstaining does to images of one kind.

    Attributes:
        abstained: Share of all images that are not answered.
        without: Accuracy on all of them if every one were answered.
        answered: Accuracy on those that are; its denominator is the least over repeats. None where
            a repeat answers none.
        useful: Share of all images that are answered, and rightly, as they are; under attack, that
            are so and whose attacked version is answered rightly or not at all.
        auroc: How often the disagreement on a wrong answer, of these images, is above that on a
            right answer to a clean one; None where there are none of either.
    """

    abstained: Accuracy
    without: Accuracy
    answered: Accuracy | None
    useful: Accuracy
    auroc: Measure

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class AbstentionFacts:
    """What it is worth not to answer where the draws disagree.

    Attributes:
        false_alarms: Share of clean images that the threshold may cost.
        held_out: Clean images that the thresholds come from; they are in no other number.
        thresholds: In nats of mutual information, one of each repeat; more is not answered.
        images: `clean`, `transfer` and `evading`: what it is worth on these images.
    """

    false_alarms: Share
    held_out: Count
    thresholds: tuple[Number, ...]
    images: Mapping[str, Abstained]

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a result cost; passes are images x draws, those that score included."""

    images_per_second: Number
    seconds: Number
    forwards: Number
    backwards: Number

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a gate decided.

    Attributes:
        threshold: The share of `--fail-under`.
        bound: The lower bound that was held against it.
        verdict: `met` or `not met`.
    """

    threshold: Share
    bound: Number
    verdict: str

    __getitem__ = item


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one evaluation found.

    Attributes:
        command: `attack`, `eval` or `diversity`.
        checkpoint: Where the model came from.
        model: What it is.
        defense: Its name.
        data: The images.
        protocol: The attacker's view; `clean` without an attack.
        n_samples: N, the draws that answered together.
        repeats: R.
        seed: The seed that all randomness derives from.
        batch_size: Size of a block.
        device: Where it ran.
        versions: Of rlskit, torch and the attack's library.
        accuracy: By name; `n` is the denominator, see `rlskit.results.summary` for those of
            targeted attacks.
        attack: None without an attack.
        n_attacked: Draws in the attacker's view; None without an attack.
        perturbation: By norm, l0, l1, l2 and linf; None without an attack.
        agreement: Diversity measures by name.
        transfer: Of `diversity --transfer`.
        abstention: Of `eval --abstain`.
        timing: What it cost.
        per_image: File name of the per-image table in the run's folder, or None.
        per_example: Whether each image had draws of its own.
        warnings: What a reader must know before using the numbers.
        gate: None where none was set.
        newer: What a result written by a newer version holds beyond all this, and where.
    """

    command: str
    checkpoint: CheckpointFacts
    model: ModelFacts
    defense: str
    data: ImageFacts
    protocol: str
    n_samples: Count
    repeats: Count
    seed: int
    batch_size: Count
    device: str
    versions: Mapping[str, str]
    accuracy: Mapping[str, Accuracy]
    attack: AttackFacts | None = None
    n_attacked: Count | None = None
    perturbation: Mapping[str, Extent] | None = None
    agreement: Mapping[str, Measure] | None = None
    transfer: TransferFacts | None = None
    abstention: AbstentionFacts | None = field(default=None, metadata=OPTIONAL)
    timing: Timing
    per_image: str | None = None
    per_example: bool = False
    warnings: tuple[str, ...] = ()
    gate: Gate | None = None
    newer: tuple[tuple[Place, Any], ...] = field(default=(), compare=False, metadata=ASIDE)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values; NaN becomes null."""
        found = {"schema": SCHEMA, **to_json(self)}
        for place, value in self.newer:
            put_back(found, place, value)
        return found

    @property
    def headline(self) -> Accuracy:
        """The accuracy that a gate decides on: robust where there is one, else clean.

        Of a targeted attack it is that on the images that could be attacked at all.

        Raises:
            KeyError: None was scored, as by `diversity`.
        """
        found = [name for name in HEADLINES if name in self.accuracy]
        return self.accuracy[next(iter(found), HEADLINES[-1])]


def dump(results: list[Result]) -> str:
    """Return one JSON object, or a list of them when there are several results."""
    objects = [result.to_json() for result in results]
    return (
        json.dumps(objects[0] if len(objects) == 1 else objects, indent=2, allow_nan=False) + "\n"
    )
