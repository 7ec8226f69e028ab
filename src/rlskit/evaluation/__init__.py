"""Evaluation: accuracy of the mean of N draws, on clean images and under attack.

The unit of work is a block, a fixed run of dataset indices: the same block gives the same numbers
in any order and after any interruption.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rlskit.attacks import ATTACKS, PreparedAttack, prepare
from rlskit.data import Data
from rlskit.defenses import defense_of
from rlskit.errors import RequestError
from rlskit.evaluation.adaptive import Adaptive, prepare_adaptive
from rlskit.evaluation.clean import doubts_of
from rlskit.evaluation.logits import finite_logits
from rlskit.evaluation.options import EvalOptions, counts_of
from rlskit.evaluation.run import Run
from rlskit.evaluation.subject import Subject, subject_of
from rlskit.evaluation.threats import Threat, check_risk
from rlskit.files import write_text
from rlskit.inputs import GivenData, taken
from rlskit.locks import only_writer, refuse_busy
from rlskit.models.banks import BankedModel
from rlskit.models.folding import check_compiler
from rlskit.models.memory import wrap
from rlskit.results import (
    PARTS,
    RESULTS,
    Journal,
    Result,
    claim,
    digest,
    dump,
    refuse_finished,
    summary,
)
from rlskit.threat import check_view, protocol_of
from rlskit.types import Progress, no_progress

__all__ = [
    "EvalOptions",
    "Subject",
    "Threat",
    "attack",
    "attack_adaptively",
    "attack_all",
    "counts_of",
    "doubts_of",
    "evaluate",
    "finite_logits",
    "subject_of",
]


def attack(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    method: str = "pgd",
    n_attacked: int = 1,
    protocol: str | None = None,
    view: str = "mean-prob",
    risk: str = "mean",
    engine: str = "rlskit",
    compiled: bool = False,
    pixel_range: str = "0:1",
    options: EvalOptions | None = None,
    out: str | Path | None = None,
    force: bool = False,
    save_adversarial: bool = False,
    progress: Progress = no_progress,
    **params: Any,
) -> Result:
    """Attack a model and score the adversarial images on fresh draws.

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, on the device to use; it is not changed.
        data: A `--data` name, data from `load_data`, or images and labels; by default what the
            model was made for.
        method: A key of `rlskit.attacks.ATTACKS`.
        n_attacked: Draws in the attacker's view.
        protocol: `transfer`, `multi` or `eot`; by default the first two, by `n_attacked`.
        view: How several draws are seen: `mean-prob` (the defender's rule) or `mean-logit`.
        risk: Under `eot`, `gibbs` ascends the mean of the single draws' losses, which is the risk
            of one draw, instead of the loss of their mean prediction.
        engine: `rlskit` or `torchattacks`.
        compiled: Whether what is attacked is compiled first (`torch.compile`), which pays for long
            attacks.
        pixel_range: The scale that `params` are stated in, `0:1` or the paper's `-1:1`.
        options: Draws, repeats, block size, seed; one N only. Its fields may be given directly
            among `params`.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        save_adversarial: Also write the first repeat's adversarial images to the folder, and score
            all repeats' after rounding to 8 bits.
        progress: Told of every block.
        **params: Options of the method, such as eps, steps, c; fields of `EvalOptions`.

    Raises:
        RequestError: An option, the data or the folder is wrong.
        UntrustedError: The preflight or a budget check failed, or the model only guesses: numbers
            would mean nothing.
    """
    fields = {name: params.pop(name) for name in _OPTION_NAMES & params.keys()}
    model, data = taken(model, data)
    (result,) = attack_all(
        model,
        data,
        attacks=[prepare(method, pixel_range=pixel_range, engine=engine, **params)],
        n_attacked=n_attacked,
        protocol=protocol,
        view=view,
        risk=risk,
        compiled=compiled,
        options=dataclasses.replace(options or EvalOptions(), **fields),
        out=out,
        force=force,
        save_adversarial=save_adversarial,
        progress=progress,
    )
    return result


def attack_all(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    attacks: Sequence[PreparedAttack],
    n_attacked: int = 1,
    protocol: str | None = None,
    view: str = "mean-prob",
    risk: str = "mean",
    compiled: bool = False,
    options: EvalOptions,
    out: str | Path | None = None,
    force: bool = False,
    save_adversarial: bool = False,
    progress: Progress = no_progress,
) -> list[Result]:
    """Run several attacks on the same images, views and draws; see `attack` for the arguments.

    Returns:
        One result per attack, and after several the worst case per image over all of them, whose
        method is `worst-case`. With a folder, each attack has its own below `out` when there are
        several, and `out/results.json` lists them all.

    Raises:
        RequestError: An option, the data or the folder is wrong.
        UntrustedError: The preflight or a budget check failed, or the model only guesses: numbers
            would mean nothing.
    """
    model, data = taken(model, data)
    protocol = protocol_of(protocol, n_attacked)
    check_view(view)
    if compiled:
        check_compiler()
    threats = [
        Threat(one, protocol, n_attacked, view, compiled, save_adversarial, risk) for one in attacks
    ]
    out = None if out is None else Path(out)
    for threat in threats:
        _check_request(threat, model, options, out)
    with _run_folder(out, force):
        works = _works(model, data, threats, options)
        return _finish_all(works, _folders(out, attacks), out, force, progress)


def _finish_all(
    works: Sequence[Run],
    folders: Sequence[Path | None],
    out: Path | None,
    force: bool,
    progress: Progress,
) -> list[Result]:
    """Do the runs of several attacks, each in its folder below `out`, or of one in `out` itself."""
    below = [folder for folder in folders if folder not in (None, out)]
    if out is not None and below:
        for folder in below:
            refuse_busy(folder)
        parts = {
            folder.name: digest(run.request()) for run, folder in zip(works, below, strict=True)
        }
        claim(out, {"command": works[0].command, PARTS: parts}, force=force)
    with only_writer(*below):
        journals = [
            run.journal(folder, force=force) for run, folder in zip(works, folders, strict=True)
        ]
        results = []
        for run, journal in zip(works, journals, strict=True):
            results += (found := run.finish(journal, progress))
            journal.write_results(dump(found))
        if len(results) > 1:
            results.append(_worst_case(results, journals))
            if out is not None:
                write_text(out / RESULTS, dump(results), force=True)
    return results


def attack_adaptively(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    eps: float | str,
    options: EvalOptions | None = None,
    out: str | Path | None = None,
    force: bool = False,
    save_adversarial: bool = False,
    progress: Progress = no_progress,
    **params: Any,
) -> Result:
    """Attack a model by the protocol `adaptive`: per image the worst of several attacks.

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, on the device to use; it is not changed.
        data: A `--data` name, data from `load_data`, or images and labels; by default what the
            model was made for.
        eps: The budget.
        options: Draws, repeats, block size, seed; one N only.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        save_adversarial: Also write the first repeat's adversarial images to the folder.
        progress: Told of every block.
        **params: Further arguments of `rlskit.evaluation.adaptive.prepare_adaptive`, such as norm,
            steps, restarts, queries, n_attacked, twin; fields of `EvalOptions`.

    Returns:
        A result whose `attack` tells under `broken` how many images each part broke.

    Raises:
        RequestError: An option, the data or the folder is wrong.
        UntrustedError: The preflight or a budget check failed, or the model only guesses: numbers
            would mean nothing.
    """
    fields = {name: params.pop(name) for name in _OPTION_NAMES & params.keys()}
    options = dataclasses.replace(options or EvalOptions(), **fields)
    model, data = taken(model, data)
    if isinstance(params.get("twin"), nn.Module) and not isinstance(params["twin"], BankedModel):
        params["twin"] = wrap(params["twin"], model.card.pixels.shape)
    counts = options.counts(model)
    threat = prepare_adaptive(model, eps=eps, n_samples=counts[0], save=save_adversarial, **params)
    out = None if out is None else Path(out)
    _check_scoring(counts, save=save_adversarial, out=out)
    with _run_folder(out, force):
        works = _works(model, data, [threat], options)
        (result,) = _finish_all(works, [out], out, force, progress)
    return result


def _works(
    model: BankedModel,
    data: str | Data | None,
    threats: Sequence[Threat | Adaptive],
    options: EvalOptions,
) -> list[Run]:
    """Return the runs of several threats on the same images, after a look at a few of those."""
    subject = subject_of(model, data)
    works = [Run(subject, options, threat) for threat in threats]
    for run in works:
        run.preflight()
    works[0].look()
    return works


def evaluate(
    model: BankedModel | nn.Module,
    data: GivenData | None = None,
    *,
    adversarial: str | Path | None = None,
    options: EvalOptions | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    **fields: Any,
) -> list[Result]:
    """Score the mean of N draws on clean images, or on saved adversarial ones.

    Args:
        model: From `convert` or `load`, or any module that maps images `[B, C, H, W]` in [0, 1] to
            logits, on the device to use; it is not changed.
        data: A `--data` name, data from `load_data`, or images and labels; by default what the
            model was made for.
        adversarial: A file that an attack saved; its images take the place of the data, which may
            be given as the clean images that they were made from.
        options: Draws, repeats, block size, seed. With several N the draws nest, so that the
            largest N costs all.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        progress: Told of every block.
        **fields: Fields of `EvalOptions`; they go before those of `options`.

    Returns:
        One result per N, ascending.

    Raises:
        RequestError: An option, the data or a file is wrong.
        UntrustedError: The weights or logits are not finite, or the model only guesses.
    """
    options = dataclasses.replace(options or EvalOptions(), **fields)
    out = None if out is None else Path(out)
    model, data = taken(model, data)
    with _run_folder(out, force):
        run = Run(subject_of(model, data, adversarial), options)
        run.preflight()
        run.look()
        journal = run.journal(out, force=force)
        results = run.finish(journal, progress)
        journal.write_results(dump(results))
    return results


def _worst_case(results: Sequence[Result], journals: Sequence[Journal]) -> Result:
    """Return the result under all attacks: an image is robust where it withstood every one."""
    first = results[0]
    assert first.attack is not None
    attack = {
        "method": WORST_CASE,
        "engine": first.attack["engine"],
        "params": {"of": [result.attack for result in results]},
        "stated": {},
        "pixel_range": first.attack["pixel_range"],
        "view": first.attack["view"],
    }
    return dataclasses.replace(
        first,
        attack=attack,
        accuracy=summary.accuracies(journals, first.repeats, 0),
        perturbation=None,
        timing=summary.timing(journals),
        per_image=None,
    )


WORST_CASE = "worst-case"
"""The method of the result that stands for all attacks of a run."""

_OPTION_NAMES = {field.name for field in dataclasses.fields(EvalOptions)}


@contextlib.contextmanager
def _run_folder(out: Path | None, force: bool) -> Iterator[None]:
    """Hold the run's folder, which holds no finished run, against all other writers."""
    with only_writer(out):
        if out is not None:
            refuse_finished(out, force=force)
        yield


def _folders(out: Path | None, attacks: Sequence[PreparedAttack]) -> list[Path | None]:
    """Return the folder of each attack: `out` itself for a single one."""
    if out is None or len(attacks) == 1:
        return [out] * len(attacks)
    names = [a.method if a.eps is None else f"{a.method}-{a.stated['eps']:.4g}" for a in attacks]
    seen: Counter[str] = Counter()
    folders: list[Path | None] = []
    for name in names:
        seen[name] += 1
        folders.append(out / (name if seen[name] == 1 else f"{name}-no{seen[name]}"))
    return folders


def _check_request(
    threat: Threat, model: BankedModel, options: EvalOptions, out: Path | None
) -> None:
    if threat.protocol == "eot" and threat.attack.norm is None:
        raise RequestError(
            f"--protocol eot needs an attack with a budget, not {threat.attack.method}: a search "
            "for the smallest perturbation needs the same classifier at every step"
        )
    if threat.protocol == "eot" and ATTACKS[threat.attack.method].members:
        raise RequestError(
            f"--protocol eot has fresh draws at every call, and {threat.attack.method} needs fixed "
            "ones; use --protocol multi with --n-attacked 8 to 16"
        )
    _check_risk(threat)
    if threat.compiled and not ATTACKS[threat.attack.method].compiles:
        raise RequestError(
            f"--compile cannot serve {threat.attack.method}, which differentiates one forward pass "
            "several times; leave it out"
        )
    if threat.compiled and defense_of(model).perturb is not None:
        raise RequestError(
            f"--compile cannot serve --defense {model.card.defense}, which acts on a network while "
            "it runs; leave it out"
        )
    _check_scoring(options.counts(model), save=threat.save, out=out)


def _check_risk(threat: Threat) -> None:
    check_risk(threat.risk)
    if threat.risk == "gibbs" and threat.protocol != "eot":
        raise RequestError("--risk gibbs is for --protocol eot: it averages over fresh draws")
    if threat.risk == "gibbs" and threat.attack.params.get("eot_samples") != 1:
        raise RequestError(
            f"--risk gibbs averages the gradients of --n-attacked draws, which "
            f"{threat.attack.method} cannot, or is told otherwise by --eot-samples; leave it out"
        )


def _check_scoring(counts: tuple[int, ...], *, save: bool, out: Path | None) -> None:
    if len(counts) > 1:
        raise RequestError(
            "an attack is scored with one --n-samples; save its images and sweep them with eval"
        )
    if save and out is None:
        raise RequestError("the adversarial images need a folder: give out")
