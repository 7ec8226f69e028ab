"""Transfer between a model's draws: do their gradients agree, and do their attacks carry over?

Draws that agree on clean images may still fail on different adversarial ones, and those that
disagree may share a gradient. Both matrices are between the same draws, and so are the measures of
`rlskit.diversity.between_draws` at the same seed.

Shapes: T draws, B images of a block, n images in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.arguments import checked
from rlskit.attacks import PreparedAttack, prepare
from rlskit.attacks.guard import under_attack
from rlskit.attacks.losses import gradient, objective
from rlskit.defenses import draws, made_ready
from rlskit.defenses.answers import finite_logits
from rlskit.diversity.comparable import comparing
from rlskit.diversity.kept_blocks import Compared, Work, common, compared, finished
from rlskit.documents import to_json
from rlskit.evaluation import Subject, doubts_of, subject_of
from rlskit.inputs import GivenData, taken
from rlskit.models.banks import BankedModel
from rlskit.models.folding import InPieces
from rlskit.models.layout import in_layout, layout_of
from rlskit.progress import Progress, no_progress
from rlskit.results import Journal
from rlskit.results.result import AttackFacts, Matrix, Result, TransferFacts
from rlskit.seeds import Purpose
from rlskit.stats import accuracy, spread
from rlskit.threat.meter import Meter
from rlskit.threat.preflight import IMAGES, preflight
from rlskit.threat.single import Threat

PROTOCOL = "draw-to-draw"
"""Every draw is attacked by itself and scored by every draw, itself included."""

DRAWS = 5
EPS, STEPS = 0.03, 10
STEPS_PER_EPS = 5
"""The budget, and the step of a fifth of it, of DVERGE's eval_transferability.py."""


@dataclass(frozen=True)
class Transfer:
    """What one set of T draws has in common; row i is the attacked draw, column j the scored one.

    Attributes:
        cosine: Mean cosine between the loss gradients of draws i and j at the clean images, float64
            `[T, T]` in [-1, 1]; NaN where no image has both.
        transferability: Share of the images made from draw i that draw j gets wrong, among those
            that all T draws get right when clean, float64 `[T, T]` in [0, 1]; NaN where none is.
        images: How many images all T draws get right.
        zero_gradients: On how many images each draw's gradient is exactly zero, long `[T]`.
        accuracy: Mean clean accuracy of a single draw, in [0, 1].
    """

    cosine: Tensor
    transferability: Tensor
    images: int
    zero_gradients: Tensor
    accuracy: float


class Block(NamedTuple):
    """What one block tells of T draws; k of its B images are right for all of them.

    `cosines` float64 `[T, T, B]`, NaN where a gradient is zero; `right` bool `[T, B]`; `fooled`
    bool `[T, T, k]`: draw j is wrong on the image made from draw i.
    """

    cosines: Tensor
    right: Tensor
    fooled: Tensor


@checked()
def measure_transfer(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    n_samples: int = DRAWS,
    repeats: int = 1,
    eps: float | str = EPS,
    steps: int = STEPS,
    step_size: float | str | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    seed: int = 0,
    shard: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Result:
    """Measure how far gradients agree, and attacks carry over, between the draws of a model.

    Gradient alignment is the mean cosine of the cross-entropy's gradients (Kariyappa & Qureshi
    2019, https://arxiv.org/abs/1901.09981), transferability that of DVERGE (Yang et al. 2020,
    https://arxiv.org/abs/2009.14720): the share of images, among those that all draws get right,
    on which PGD against draw i makes draw j wrong. Its diagonal is the white-box success.

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, on the device to use; it is not changed.
        data: A data set's name, data from `load_data`, or images and labels; by default what the
            model was made for.
        n_samples: T, at least 2; a defense with fewer draws than that gives each of them once.
        repeats: R sets of fresh draws. The matrices are those of the first; the means off their
            diagonals are means over all.
        eps: Budget of PGD in linf, in [0, 1] units.
        steps: Of PGD.
        step_size: Of PGD; None for `eps / 5`.
        batch_size: Images per block.
        num_workers: Threads that decode images.
        seed: All randomness derives from it.
        shard: See `EvalOptions`.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace a finished run that the folder holds.
        progress: Told of every block.

    Returns:
        A result whose `transfer` holds `cosine` and `transferability` (T tuples of T numbers),
        `images` (those behind the transferability), `zero_gradients` (per draw, images left out of
        its cosines), `off_diagonal` (mean and std over the repeats) and `attack`.

    Raises:
        RequestError: An option or the data is wrong.
        UntrustedError: The preflight failed, weights, logits or gradients are not finite, or the
            model only guesses.
    """
    model, data = taken(model, data)
    options = comparing(
        model, "transfer is between", n_samples, repeats=repeats, batch_size=batch_size,
        num_workers=num_workers, seed=seed, shard=shard,
    )  # fmt: skip
    attack = _attack(eps, steps, step_size)
    subject = subject_of(model, data)
    _preflight(subject, attack, seed)
    threat = Threat(attack, PROTOCOL, 1, "mean-prob")
    basis = compared(subject, options, doubts_of(subject, options), threat.facts())

    def begin(repeat: int) -> Work:
        return _work(model, basis.count, attack, seed, repeat)

    return finished(
        subject, options, basis, begin, conclude_transfer, step="measuring transfer",
        request=to_json(threat), out=None if out is None else Path(out), force=force,
        progress=progress,
    )  # fmt: skip


def block_of(
    scored: Sequence[nn.Module],
    attacked: Sequence[nn.Module],
    attack: PreparedAttack,
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    layout: torch.memory_format = torch.contiguous_format,
) -> Block:
    """Return what one block tells of T draws.

    Only images that all draws get right are attacked: the others count for no pair.

    Args:
        scored: The T draws.
        attacked: The same draws, as an attack differentiates them.
        attack: Run on each draw by itself, from the same random start.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        seed: Of the attack's randomness.
        layout: Of the attacked convolutions.

    Raises:
        UntrustedError: Logits or gradients are not finite.
    """
    scored = list(scored)
    laid_out = in_layout(images, layout)
    slopes = torch.stack([_gradient(draw, laid_out, labels) for draw in attacked])
    with torch.no_grad():
        right = finite_logits(scored, images).argmax(-1) == labels
    kept = right.all(0)
    rows = [
        _fooled(scored, draw, attack, laid_out[kept], labels[kept], seed)
        for draw in (attacked if kept.any() else ())
    ]
    empty = torch.zeros(len(scored), len(scored), 0, dtype=torch.bool)
    return Block(gradient_cosines(slopes), right.cpu(), torch.stack(rows) if rows else empty)


def gradient_cosines(slopes: Tensor) -> Tensor:
    """Return the cosine between every two draws' gradients at each image, NaN where one is zero.

    Args:
        slopes: Gradients of T draws, `[T, B, D]`.

    Returns:
        Float64 `[T, T, B]` in [-1, 1], on the CPU.
    """
    cosines = []
    for one in slopes.cpu().unbind(1):  # in double, where the square of no float32 vanishes
        units = one.double() / torch.linalg.vector_norm(one.double(), dim=1, keepdim=True)
        cosines.append((units @ units.T).clamp(-1, 1))
    return torch.stack(cosines, -1)


def summarise(found: Sequence[Block]) -> Transfer:
    """Return the matrices over all blocks of one set of draws."""
    cosines = torch.cat([block.cosines for block in found], -1)
    right = torch.cat([block.right for block in found], -1)
    fooled = torch.cat([block.fooled for block in found], -1)
    return Transfer(
        cosine=cosines.nanmean(-1),
        transferability=fooled.double().mean(-1),
        images=fooled.shape[-1],
        zero_gradients=cosines.diagonal().isnan().sum(0),
        accuracy=float(right.double().mean()),
    )


def _attack(eps: float | str, steps: int, step_size: float | str | None) -> PreparedAttack:
    attack = prepare("pgd", eps=eps, steps=steps)
    stride = attack.stated["eps"] / STEPS_PER_EPS if step_size is None else step_size
    return prepare("pgd", eps=eps, steps=steps, step_size=stride)


def _draws(model: BankedModel, count: int, seed: int, repeat: int) -> list[nn.Module]:
    """Return the draws that `rlskit.diversity.between_draws` compares, too."""
    return draws(model, count, seed=seed, purpose=Purpose.DIVERSITY, repeat=repeat)


def _ready(model: BankedModel, found: list[nn.Module]) -> list[Meter]:
    """Return draws as an attack sees them, counted; they are changed in place."""
    made_ready(model, found)
    return [Meter(InPieces(draw, layout_of(model)), 1) for draw in found]


def _preflight(subject: Subject, attack: PreparedAttack, seed: int) -> None:
    """Look at a few images before any number is computed."""
    model, data = subject.model, subject.data
    images = data.images(range(min(IMAGES, len(data)))).to(model.device)
    labels = data.labels[:IMAGES].to(model.device)
    (draw,), (view,) = _draws(model, 1, seed, 0), _ready(model, _draws(model, 1, seed, 0))
    preflight(model, draw, view, attack, images, labels)


def _work(model: BankedModel, count: int, attack: PreparedAttack, seed: int, repeat: int) -> Work:
    """Return what compares one set of draws on a block; the columns are a `Block`'s."""
    scored = _draws(model, count, seed, repeat)
    attacked = _ready(model, _draws(model, count, seed, repeat))
    own = seeds.derive(seed, Purpose.DRAW_TO_DRAW, repeat)

    def work(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        before = sum(one.forwards for one in attacked), sum(one.backwards for one in attacked)
        found = block_of(
            scored, attacked, attack, images, labels, seed=own, layout=layout_of(model)
        )
        forwards = count * (len(images) + found.fooled[0].numel())
        forwards += sum(one.forwards for one in attacked) - before[0]
        backwards = sum(one.backwards for one in attacked) - before[1]
        columns = {name: one.movedim(-1, 0) for name, one in found._asdict().items()}
        return columns | {
            "forwards": torch.tensor([forwards]), "backwards": torch.tensor([backwards])
        }  # fmt: skip

    return work


def conclude_transfer(basis: Compared, journal: Journal) -> Result:
    """Return the result of a run whose blocks are all there."""
    facts = basis.facts
    found = [
        summarise([Block(*(_last(journal.column(name, repeat)) for name in Block._fields))])
        for repeat in range(facts.repeats)
    ]
    assert facts.attack is not None
    return Result(
        **common(basis, journal),
        accuracy={"clean_gibbs": accuracy([one.accuracy for one in found], facts.data.n)},
        transfer=_transfer_facts(found, facts.attack),
        warnings=basis.warnings + _warnings(found, facts.data.n) + basis.doubts,
    )


def _last(column: Tensor) -> Tensor:
    """Return a column with the images in the last dimension, as a block has them."""
    return column.movedim(0, -1).contiguous()


def _gradient(draw: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the direction of each image's cross-entropy, `[B, C * H * W]`.

    It is the gradient of the log odds, which is longer, and points there also where the answer is
    so confident that the cross-entropy's is lost to rounding.
    """
    with under_attack(draw):
        slope = gradient(draw, images, labels, objective("ce"))
    return slope.flatten(1)


def _fooled(
    scored: list[nn.Module],
    draw: nn.Module,
    attack: PreparedAttack,
    images: Tensor,
    labels: Tensor,
    seed: int,
) -> Tensor:
    """Return which draws are wrong on which images made from one of them, bool `[T, B]`."""
    changed = attack(draw, images, labels, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        answers = finite_logits(scored, changed.contiguous()).argmax(-1)
    return (answers != labels).cpu()


def _transfer_facts(found: Sequence[Transfer], attack: AttackFacts) -> TransferFacts:
    first = found[0]
    return TransferFacts(
        cosine=_matrix(first.cosine),
        transferability=_matrix(first.transferability),
        images=first.images,
        zero_gradients=tuple(first.zero_gradients.tolist()),
        off_diagonal={
            "cosine": spread([_off_diagonal(one.cosine) for one in found]),
            "transferability": spread([_off_diagonal(one.transferability) for one in found]),
        },
        attack=attack,
    )


def _matrix(values: Tensor) -> Matrix:
    """Return a matrix `[T, T]` with None for NaN."""
    return tuple(tuple(None if one != one else one for one in row) for row in values.tolist())


def _off_diagonal(matrix: Tensor) -> float:
    """Return the mean over all pairs of two different draws; NaN where one has no value."""
    return float(matrix[~torch.eye(len(matrix), dtype=torch.bool)].mean())


def _warnings(found: Sequence[Transfer], n: int) -> tuple[str, ...]:
    """Return what a reader of the matrices must know first."""
    warnings = []
    if len(found[0].cosine) == 1:
        warnings.append("Undefined: one draw has no other to transfer to: two are needed.")
    if not min(one.images for one in found):
        warnings.append("Undefined: no image is right for all draws, so no attack can transfer.")
    if most := max(int(one.zero_gradients.max()) for one in found):
        warnings.append(
            f"A draw's gradient is exactly zero on up to {most} of {n} images; the cosines leave "
            "them out."
        )
    return tuple(warnings)
