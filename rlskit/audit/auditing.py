"""One audit: every check on one model, its images and one attack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.arguments import checked
from rlskit.attacks import ATTACKS, PreparedAttack, prepare
from rlskit.attacks.options import OPTIONS
from rlskit.audit.advice import advice
from rlskit.audit.audit_result import FAIL, PASS, SKIPPED, AuditedAttack, AuditResult, Check, finite
from rlskit.audit.case import Case
from rlskit.audit.checks import CHECKS, Kind
from rlskit.audit.defended import SHOWN, Defended, at_the_boundary, attacked, banked, own
from rlskit.audit.finished_checks import FinishedChecks, of_shard, of_shards
from rlskit.audit.material import Material, material
from rlskit.audit.measurement import Measurement
from rlskit.data import Data
from rlskit.defenses import draws
from rlskit.errors import RequestError, UnmergedError, UntrustedError
from rlskit.evaluation.clean import check_knowledge, knowledge
from rlskit.evaluation.eval_options import EvalOptions
from rlskit.models.banks import BankedModel
from rlskit.progress import Progress, no_progress
from rlskit.runtime.interruptions import unbroken
from rlskit.runtime.sharding import Shard
from rlskit.seeds import Purpose
from rlskit.stats import Accuracy, accuracy
from rlskit.storage.files import fingerprint
from rlskit.storage.locks import only_writer_of
from rlskit.threat.view import draws_seen, protocol_of

METHODS = tuple(name for name, one in ATTACKS.items() if one.ascends and "linf" in one.norms)
"""The attacks that can be audited: in linf, along gradients, under any protocol and loss."""

LIMIT = 100
EPS = "8/255"


@checked(*OPTIONS)
def audit_model(
    model: BankedModel | nn.Module,
    data: str | Data | tuple[Tensor, Tensor] | None = None,
    *,
    method: str = "pgd",
    n_attacked: int = 1,
    protocol: str | None = None,
    n_samples: int | None = None,
    limit: int | None = LIMIT,
    queries: int = 500,
    points: int = 100,
    surrogate: BankedModel | nn.Module | None = None,
    pixel_range: str = "0:1",
    batch_size: int = 128,
    seed: int = 0,
    expect_clean: float | None = None,
    keep: str | Path | None = None,
    shard: str | None = None,
    progress: Progress = no_progress,
    **params: Any,
) -> AuditResult:
    """Say whether the accuracy under an attack may be read as robustness.

    Athalye et al. 2018 (https://arxiv.org/abs/1802.00420), Carlini et al. 2019
    (https://arxiv.org/abs/1902.06705), Zimmermann et al. 2022 (https://arxiv.org/abs/2206.13991).

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, or to what holds them. The latter is scored in the mode it is in, and attacked
            in eval mode, as every attack library does; neither it nor the images are changed.
        data: A data set's name, data from `load_data`, or images and labels; by default what the
            model was made for.
        method: The attack under audit, one of `METHODS`.
        n_attacked: Draws in its view; of an own module under `eot`, calls.
        protocol: `transfer`, `multi`, `eot` or `known`; by default the first two, by `n_attacked`.
        n_samples: N, the draws (calls of an own random module: 20) that answer together.
        limit: Most images, spread evenly; None for all.
        queries: Of the square attack (M2), per image.
        points: Of the random search (M6), per image.
        surrogate: A second model to transfer from (M2).
        pixel_range: The scale that `params` are stated in.
        batch_size: Images that are attacked together.
        seed: All randomness derives from it.
        expect_clean: The least clean accuracy in [0, 1] that is expected of the model.
        keep: A file in which finished checks are kept, so that the same call goes on after an
            interruption; it stays, and may be removed once the result is written.
        shard: Do this part of the checks only, as `0/3`, and keep them beside `keep`; the same call
            without it then makes the audit of them all.
        progress: Told of every check.
        **params: The attack's options, such as eps (8/255), steps, step_size, restarts, loss.

    Raises:
        RequestError: An option or the data is wrong.
        UntrustedError: Weights or answers are not finite, or the model is right on no more of the
            clean images than guessing is, or on fewer than were expected.
        UnmergedError: It was a shard, which is done.
    """
    part = None if shard is None else Shard.read(shard)
    if part is not None and keep is None:
        raise RequestError("`shard` needs `keep`, the file that finished checks are kept in")
    attack = audited_attack(method, pixel_range, params)
    protocol = protocol_of(protocol, n_attacked)
    _check_counts(n_samples=n_samples, queries=queries, points=points, batch_size=batch_size)
    options = EvalOptions(expect_clean=expect_clean, gated=True)
    found = material(model, data, limit)
    defended = _defended(found.model, found.images[:SHOWN], n_samples, protocol, seed)
    n_attacked = draws_seen(protocol, n_attacked, defended.n_samples)
    case = Case(
        defended, found.images, found.labels, found.classes, attack, protocol, n_attacked, seed,
        batch_size, queries, points, _network(surrogate, found, seed),
    )  # fmt: skip
    known = knowledge(case.labels.cpu(), [case.answers(case.images).cpu()], case.classes)
    check_knowledge(known, options, trained=True, final=True)
    file, others = _files(keep, part)
    with only_writer_of(file):
        kept = FinishedChecks(
            file, {} if file is None else _request(case, found, surrogate), others
        )
        mine = [one for i, one in enumerate(CHECKS.items()) if part is None or part.takes(i)]
        checks = []
        progress("auditing", 0, len(mine))
        for done, (name, kind) in enumerate(mine, start=1):
            if (check := kept.get(name)) is None:
                with unbroken(kept=file is not None):
                    kept.put(check := _check(name, kind, case))
            checks.append(check)
            progress("auditing", done, len(mine))
    if part is not None:
        raise UnmergedError(
            f"shard {part} is done; once all {part.count} are, the same call without `shard` makes "
            "the audit of them"
        )
    return AuditResult(
        **found.facts,
        attack=AuditedAttack(method, attack.params),
        protocol=protocol,
        n_attacked=n_attacked,
        n_samples=case.defended.n_samples,
        seed=seed,
        accuracy=_accuracies(case),
        checks=tuple(checks),
    )


def _files(keep: str | Path | None, part: Shard | None) -> tuple[Path | None, list[Path]]:
    """Return the file that finished checks are kept in, and others that hold some."""
    if keep is None:
        return None, []
    file = Path(keep)
    return (file, of_shards(file)) if part is None else (of_shard(file, part), [])


def _request(
    case: Case, found: Material, surrogate: BankedModel | nn.Module | None
) -> dict[str, Any]:
    """Return all that decides what the checks find.

    Raises:
        RequestError: Nothing tells two models apart, as the code of a module is not known.
    """
    if not isinstance(found.model, BankedModel):
        raise RequestError("`keep` needs a model of rlskit, which is known again")
    other = None if surrogate is None else fingerprint(dict(surrogate.state_dict()))
    facts = {name: one for name, one in found.facts.items() if name != "warnings"}
    counts = ("protocol", "n_attacked", "seed", "batch_size", "queries", "points")
    return {
        **facts, "checkpoint": facts["checkpoint"].sha256, "surrogate": other,
        "method": case.attack.method, "params": case.attack.params,
        "n_samples": case.defended.n_samples, "threads": torch.get_num_threads(),
        **{name: getattr(case, name) for name in counts},
    }  # fmt: skip


def audited_attack(method: str, pixel_range: str, params: Mapping[str, Any]) -> PreparedAttack:
    """Return the attack under audit; see `audit_model` for the arguments.

    Raises:
        RequestError: It is not one that can be audited, or an option is wrong.
    """
    if method not in METHODS:
        raise RequestError(
            f"an audit is of an attack in linf that steps along gradients, one of "
            f"{', '.join(METHODS)}, not of {method}"
        )
    eps = params.get("eps") if params.get("eps") is not None else EPS
    attack = prepare(method, pixel_range=pixel_range, **{**params, "eps": eps})
    if attack.norm != "linf":
        raise RequestError(f"an audit is of an attack in linf, not in {attack.norm}")
    if attack.params.get("target") is not None:
        raise RequestError("an audit is of an untargeted attack; leave `target` out")
    if not attack.eps:
        raise RequestError("an audit needs a budget above 0; give `eps='8/255'`")
    return attack


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise RequestError(f"`{name}` must be at least 1, not {value}")


def _defended(
    model: BankedModel | nn.Module,
    images: Tensor,
    n_samples: int | None,
    protocol: str,
    seed: int,
) -> Defended:
    if isinstance(model, BankedModel):
        return banked(model, images, n_samples, seed)
    return own(model, images, n_samples, protocol, seed)


@torch.no_grad()
def _network(
    surrogate: BankedModel | nn.Module | None, found: Material, seed: int
) -> nn.Module | None:
    """Return the network to transfer from, which must take the images and know their classes."""
    network = surrogate
    if isinstance(surrogate, BankedModel):
        (network,) = draws(surrogate, 1, seed=seed, purpose=Purpose.ATTACKER)
    if network is None:
        return None
    try:
        if network is surrogate:
            network = at_the_boundary(network, found.images[:SHOWN])
        shape = list(attacked(network)(found.images[:1]).shape)
    except RuntimeError as error:
        raise RequestError(f"the surrogate does not take these images ({error})") from error
    if shape != [1, found.classes]:
        raise RequestError(
            f"the surrogate answers an image with {shape}, not [1, {found.classes}]; it must know "
            "the same classes"
        )
    return network


def _check(name: str, kind: Kind, case: Case) -> Check:
    """Return a check's verdict; where a number is NaN or infinite, it fails."""
    try:
        found = kind.measure(case)
    except UntrustedError as error:
        found = Measurement(None, failed=True, detail=str(error))
    verdict = SKIPPED if found.skipped else FAIL if found.failed else PASS
    failed = found.meaning or kind.failed.format(**advice(case))
    meaning = {SKIPPED: "", FAIL: failed, PASS: kind.passed}[verdict]
    value = None if found.value is None else finite(found.value)
    return Check(name, kind.title, value, kind.unit, kind.threshold, verdict, found.detail, meaning)


def _accuracies(case: Case) -> dict[str, Accuracy | None]:
    """Return the accuracy on clean images and under the attack; None where answers are NaN."""
    n = len(case.labels)
    found: dict[str, Accuracy | None] = {"clean": accuracy([float(case.clean.double().mean())], n)}
    try:
        found["robust"] = accuracy([float(case.robust.double().mean())], n)
    except UntrustedError:
        found["robust"] = None
    return found
