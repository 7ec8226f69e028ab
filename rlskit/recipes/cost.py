"""What a stage will cost: passes of single networks, and hours at a measured rate.

A pass is one image through one draw. Counts of attacks that stop early, or that leave misclassified
images alone, are upper bounds, and say so.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlskit.attacks import ATTACKS
from rlskit.attacks.passes import Setting
from rlskit.audit import audit_passes
from rlskit.data import count as images_in
from rlskit.defenses import classifier_of, defense_of, draws
from rlskit.errors import RlskitError
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.models.streams import kept, sources_of
from rlskit.recipes.checking import adaptive_of, audited, prepared, samples_of, train_options
from rlskit.recipes.noted import StageError
from rlskit.recipes.recipe import Recipe
from rlskit.recipes.stages import AUDIT, Stage
from rlskit.recipes.trust import require_trust
from rlskit.results.comparison import KNOWN
from rlskit.runtime.devices import choose_device
from rlskit.seeds import Purpose
from rlskit.threat.adaptive import JUDGES
from rlskit.threat.adaptive import PROTOCOL as ADAPTIVE
from rlskit.training.batch_norm import has_batch_norm
from rlskit.training.epochs import HELD_OUT_DRAWS

SIZES = {
    "digits": (1437, 360),
    "mnist": (60000, 10000),
    "fashion-mnist": (60000, 10000),
    "cifar10": (50000, 10000),
    "cifar100": (50000, 10000),
    "svhn": (73257, 26032),
}
"""Images to train on and to test on, so that nothing has to be there to be counted."""

SHORTEST = 1 / 60
"""Hours that a command takes at least, for it to be worth a word how long it will be."""

_LARGEST_BATCH = 128
_SIGNALS = 128  # exit codes above it are of interruptions
_MOMENT = 0.03  # seconds


@dataclass(frozen=True)
class Cost:
    """What a stage computes: images it reads, and passes, images x draws.

    Attributes:
        images: Images.
        forwards: Forward passes.
        backwards: Backward passes.
        at_most: Whether these are upper bounds.
    """

    images: int
    forwards: int
    backwards: int
    at_most: bool = False


@dataclass(frozen=True)
class Estimate:
    """What stages will cost, on the device at hand.

    Attributes:
        costs: Name of a stage -> its cost; None where nothing tells it.
        hours: Name of a stage -> hours at the measured rate; None likewise.
        device: Where the rate was measured.
    """

    costs: Mapping[str, Cost | None]
    hours: Mapping[str, float | None]
    device: str

    def total(self, names: list[str]) -> tuple[Cost, float]:
        """Return the sum over stages of what is known."""
        costs = [cost for name in names if (cost := self.costs[name])]
        total = Cost(
            images=sum(cost.images for cost in costs),
            forwards=sum(cost.forwards for cost in costs),
            backwards=sum(cost.backwards for cost in costs),
            at_most=any(cost.at_most for cost in costs),
        )
        return total, sum(self.hours[name] or 0 for name in names)


def estimate(
    recipe: Recipe, execute: Callable[[list[str]], int], *, trust: bool = False
) -> Estimate:
    """Count what every stage computes, and measure how fast its network is here.

    Args:
        recipe: The recipe.
        execute: Runs one command line; each row's `convert` is run into a temporary folder. Where
            that fails, as without the data of a folder, the row's costs are unknown.
        trust: Run the code that the recipe names.

    Raises:
        RequestError: It names some, and is not trusted.
    """
    require_trust(recipe, trust)
    device = choose_device()
    costs: dict[str, Cost | None] = {}
    hours: dict[str, float | None] = {}
    for made in (stage for stage in recipe.stages if stage.needs is None):
        model = _read(made.checkpoint, device) if made.checkpoint else _built(made, device, execute)
        stages = [stage for stage in recipe.stages if stage.converted is made]
        found = estimate_of(stages, model)
        costs |= found.costs
        hours |= found.hours
    return Estimate(costs, hours, _described(device))


def foreseen_run(
    stages: Sequence[Stage], folder: Path, execute: Callable[[list[str]], int]
) -> Estimate | None:
    """Return what stages of a recipe will cost; None where that is little, or nothing tells it.

    Args:
        stages: What is to run.
        folder: Of the run; models that are there are not made again to be measured.
        execute: As of `estimate`.

    Raises:
        StageError: It was interrupted.
    """
    device = choose_device()
    costs: dict[str, Cost | None] = {}
    hours: dict[str, float | None] = {}
    for origin in dict.fromkeys(stage.origin for stage in stages):
        own = [stage for stage in stages if stage.origin == origin]
        made = own[0].converted
        if made.checkpoint or (made not in own and made.command == "convert"):
            model = _read(own[0].checkpoint or folder / made.output, device)
        else:
            model = _built(made, device, execute)
        found = estimate_of(own, model, hurried=True)
        costs |= found.costs
        hours |= found.hours
    whole = Estimate(costs, hours, _described(device))
    return whole if whole.total([*costs])[1] >= SHORTEST else None


def estimate_of(
    stages: Iterable[Stage], model: BankedModel | None, *, hurried: bool = False
) -> Estimate:
    """Count what stages of one model compute, and measure how fast it is here.

    Args:
        stages: The stages.
        model: What their `convert` makes, or their checkpoint holds; None where it is not there.
        hurried: Let one pass of one image do, where the stages are short at its rate.
    """
    stages = list(stages)
    if model is None:
        unknown = dict.fromkeys(stage.name for stage in stages)
        return Estimate(unknown, unknown, "")
    costs, hours = {stage.name: cost(stage, model) for stage in stages}, {}
    with kept(sources_of(model)):
        defended, trained = _speeds(model, costs.values() if hurried else None)
    for stage in stages:
        found = costs[stage.name]
        speed = trained if stage.command == "train" else defended
        hours[stage.name] = hours_of(found, speed) if found else None
        if found and stage.budget is not None:  # all images, but for so long at most
            costs[stage.name] = replace(found, at_most=True)
            hours[stage.name] = min(hours_of(found, speed), stage.budget.seconds / 3600)
    return Estimate(costs, hours, _described(model.device))


def _speeds(
    model: BankedModel, hurried: Iterable[Cost | None] | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the rates of a defended model, and of one in training.

    Args:
        model: The model.
        hurried: What it is to compute, if a single pass may do; None for an exact rate.
    """
    if hurried is not None:
        once = rate(model, 1, times=1)  # one image by itself is the slowest
        if sum(hours_of(found, once) for found in hurried if found) < SHORTEST:
            return once, once
    return rate(model), rate(model, training=True)


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def foreseen(
    stage: Stage, model: BankedModel, images: int, surrogate: Sequence[BankedModel] = ()
) -> Estimate | None:
    """Return what a command of some minutes will cost; None where nothing tells it.

    For a shorter command this takes a pass of one image, and None is returned, too. Nobody's random
    numbers are moved.

    Args:
        stage: The command.
        model: What it is about.
        images: Number of images.
        surrogate: What else the adaptive protocol attacks.
    """
    with kept(sources_of(model)):
        found = cost(stage, model, images, surrogate)
        if found is None or not found.forwards:
            return None
        once = rate(model, 1, times=1)
        if hours_of(found, once) < SHORTEST:  # one image by itself is the slowest
            return None
        hours = hours_of(found, rate(model, training=stage.command == "train"))
    if hours < SHORTEST:
        return None
    return Estimate({stage.name: found}, {stage.name: hours}, _described(model.device))


def cost(
    stage: Stage,
    model: BankedModel,
    images: int | None = None,
    surrogate: Sequence[BankedModel] | None = None,
) -> Cost | None:
    """Count what a stage computes; None where its data, or a surrogate's part, cannot be counted.

    Args:
        stage: The stage.
        model: What the stage's `convert` makes.
        images: Number of images; by default what the stage's data are.
        surrogate: What a `surrogate` of the stage names, where that was loaded.
    """
    if stage.command == "convert":
        return Cost(0, 0, 0)
    if images is None:
        images = _count(stage, "train" if stage.command == "train" else "test", model)
    if images is None:
        return None
    if stage.command == "train":
        return _train_cost(stage, model, images)
    own = 10 if stage.command == "diversity" else defense_of(model).samples(model)
    samples = max(samples_of(stage) or (own,))
    repeats = int(stage.options.get("repeats", own if stage.command == "diversity" else 1))
    scored = images * samples * repeats
    if "abstain" in stage.options:
        return None  # several attacks, whose cost depends on what each leaves
    if "transfer" in stage.options:
        return None  # every draw attacked, and scored on what all get right
    if stage.command == AUDIT:
        return _audit_cost(stage, model, images, samples)
    if stage.command != "attack":
        return Cost(images, scored, 0)
    if stage.options.get("protocol") == ADAPTIVE:
        return _adaptive_cost(stage, model, images, samples, repeats, surrogate)
    known = stage.options.get("protocol") == KNOWN
    seen = samples if known else int(stage.options.get("n-attacked", 1))
    setting = Setting(model.card.pixels.shape, model.card.classes, seen)
    attacks = prepared(stage)
    passes = [one.passes(setting) for one in attacks]
    attacked = images * seen * repeats
    return Cost(
        images,
        attacked * sum(one.forwards for one in passes)
        + 2 * scored * len(attacks),  # the clean images are scored, too
        attacked * sum(one.backwards for one in passes),
        at_most=any(ATTACKS[one.method].at_most for one in attacks),
    )


def _audit_cost(stage: Stage, model: BankedModel, images: int, samples: int) -> Cost:
    """Count all checks on all images: some are of the survivors of others."""
    options = {"batch-size": 128, "queries": 500, "points": 100}
    given = {
        name.replace("-", "_"): int(stage.options.get(name, one)) for name, one in options.items()
    }
    known = stage.options.get("protocol") == KNOWN
    seen = samples if known else int(stage.options.get("n-attacked", 1))
    setting = Setting(model.card.pixels.shape, model.card.classes, seen)
    found = audit_passes(
        audited(stage), setting, images=images, n_samples=samples,
        draws=defense_of(model).distinct(model), **given,
    )  # fmt: skip
    return Cost(images, *found, at_most=True)


def _adaptive_cost(
    stage: Stage,
    model: BankedModel,
    images: int,
    samples: int,
    repeats: int,
    surrogate: Sequence[BankedModel] | None,
) -> Cost | None:
    """Count all parts and scouts on all images: each leaves out what it has no use for."""
    found = adaptive_of(stage, model, samples, surrogate)
    if found is None:
        return None
    attacked = images * repeats
    forwards = backwards = 0
    asked = (*found.parts, *found.scouts)
    for part in asked:
        setting = Setting(model.card.pixels.shape, model.card.classes, part.n_attacked)
        passes = part.attack.passes(setting)
        forwards += part.n_attacked * passes.forwards
        backwards += part.n_attacked * passes.backwards
    judged = (defense_of(model).distinct(model) or JUDGES) * (1 + len(asked))
    scored = 2 * images * samples * repeats
    return Cost(images, attacked * (forwards + judged) + scored, attacked * backwards, at_most=True)


def hours_of(found: Cost, speed: tuple[float, float]) -> float:
    """Return the hours that passes take at so many seconds per forward and per backward pass."""
    return (found.forwards * speed[0] + found.backwards * speed[1]) / 3600


def rate(
    model: BankedModel, count: int | None = None, *, times: int = 3, training: bool = False
) -> tuple[float, float]:
    """Measure the seconds per image of one draw's forward pass, and of its backward pass.

    Args:
        model: The defended model.
        count: Images in a pass; by default, on a CPU, as many as take a moment, up to 128.
        times: Of which the best counts; after one pass that does not, where there are several.
        training: As `rlskit train` has it: with the weights' gradients, and without what a
            defense does after training only.
    """
    if count is None:
        count = _batch(model) if model.device.type == "cpu" else _LARGEST_BATCH
    shape, device = model.card.pixels.shape, model.device
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    (draw,) = draws(model, 1, seed=0, purpose=Purpose.RATE)
    if training:
        draw = classifier_of(draw) if defense_of(model).post_hoc else draw
        for weight in draw.parameters():
            weight.requires_grad_(weight.is_floating_point())

    def forward() -> None:
        with torch.no_grad():
            draw(images)

    def both() -> None:
        draw(images.clone().requires_grad_()).sum().backward()

    ahead, whole = (seconds_of(work, device, times) for work in (forward, both))
    return ahead / count, max(whole - ahead, 0.0) / count


def _batch(model: BankedModel) -> int:
    """Return how many images a forward pass needs to take a moment, at most a block's."""
    count = 8
    while count < _LARGEST_BATCH and rate(model, count, times=1)[0] * count < _MOMENT:
        count *= 4
    return count


def seconds_of(work: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """Return the best of some times after one that is not counted; of fewer if they are long."""
    found: list[float] = []
    while len(found) < 2 or (len(found) <= times and sum(found) < 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _train_cost(stage: Stage, model: BankedModel, images: int) -> Cost:
    """Count the steps, PGD's where it is trained against, BatchNorm's passes and the held-out."""
    options, defense = train_options(stage), defense_of(model)
    held = round(images * options.holdout)
    seen = images - held
    group = len(defense.group(model, options.group_size, torch.Generator().manual_seed(0)))
    attack = group * options.adversarial_steps * (options.adversarial != "none")
    both_ways = seen * (group + attack) + held * attack
    batches = min(options.bn_batches, math.ceil(seen / options.batch_size))
    norms = has_batch_norm(model)
    again = min(batches * options.batch_size, seen) * model.num_banks * norms
    scored = held * min(defense.samples(model), HELD_OUT_DRAWS)
    return Cost(seen, options.epochs * (both_ways + again + scored), options.epochs * both_ways)


def _count(stage: Stage, split: str, model: BankedModel) -> int | None:
    """Return the number of images a stage reads; None where they are not there to be counted."""
    named = stage.options.get("data", stage.converted.options.get("data"))
    split = str(stage.options.get("split", split))
    try:
        named = str(named or (model.card.default_data() if stage.checkpoint else "digits"))
        count = SIZES[named][split == "test"] if named in SIZES else images_in(named, split)
    except RlskitError:
        return None
    return min(count, int(stage.options.get("limit", count)))


def _read(path: str | Path, device: torch.device) -> BankedModel | None:
    try:
        return checkpoint.load(path).to(device)
    except RlskitError:  # as without the permission for its code
        return None


def _built(
    stage: Stage, device: torch.device, execute: Callable[[list[str]], int]
) -> BankedModel | None:
    """Return what a `convert` makes; None where it fails.

    Raises:
        StageError: It was interrupted.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / stage.output).parent.mkdir(parents=True)
        if code := execute([*stage.arguments(folder), "--quiet"]):
            if code > _SIGNALS:
                raise StageError("interrupted while it was measured how long it takes", code)
            return None
        return checkpoint.load(folder / stage.output).to(device)
