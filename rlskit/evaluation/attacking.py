"""Accuracy of the mean of N draws under attack: one attack, several, or the protocol `adaptive`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rlskit.arguments import checked
from rlskit.attacks import PreparedAttack, prepare
from rlskit.attacks.options import OPTIONS
from rlskit.data import Data, spread
from rlskit.evaluation.eval_options import OPTION_NAMES, EvalOptions
from rlskit.evaluation.run import Run, beginning, require_whole, run_folder, writer
from rlskit.evaluation.subject import subject_of
from rlskit.evaluation.suitability import check_request, check_scoring
from rlskit.inputs import GivenData, taken
from rlskit.models.banks import BankedModel
from rlskit.models.folding import check_compiler
from rlskit.models.wrapping import wrap
from rlskit.progress import Progress, no_progress
from rlskit.results import PARTS, RESULTS, Journal, Result, claim, digest, dump, summary
from rlskit.results.result import AttackFacts
from rlskit.storage.files import write_text
from rlskit.storage.locks import only_writer, refuse_busy
from rlskit.threat.adaptive import OPTIONS as ADAPTIVE_OPTIONS
from rlskit.threat.adaptive import Adaptive, prepare_adaptive
from rlskit.threat.precision import CHECKED, WORTH, check_precision, settled
from rlskit.threat.single import Threat, may_rest
from rlskit.threat.view import check_view, draws_seen, protocol_of


@checked(*OPTION_NAMES, *OPTIONS)
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
    precision: str = "fp32",
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
        data: A data set's name, data from `load_data`, or images and labels; by default what the
            model was made for.
        method: A key of `rlskit.attacks.ATTACKS`.
        n_attacked: Draws in the attacker's view.
        protocol: `transfer`, `multi`, `eot` or `known`; by default the first two, by `n_attacked`.
        view: How several draws are seen: `mean-prob` (the defender's rule) or `mean-logit`.
        risk: Under `eot`, `gibbs` ascends the mean of the single draws' losses, which is the risk
            of one draw, instead of the loss of their mean prediction.
        engine: `rlskit`, `torchattacks` or `adv-lib`.
        compiled: Whether what is attacked is compiled first (`torch.compile`), which pays for long
            attacks.
        precision: Of the gradients, while all that is decided stays in fp32: `fp32`; `bf16`, about
            twice as fast on a device made for it; or `auto`: `bf16` where the device is, and where
            the attack, run both ways on some of the images, reaches as much.
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
    fields = {name: params.pop(name) for name in OPTION_NAMES & params.keys()}
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
        precision=precision,
        options=dataclasses.replace(options or EvalOptions(), **fields),
        out=out,
        force=force,
        save_adversarial=save_adversarial,
        progress=progress,
    )
    return result


@checked()
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
    precision: str = "fp32",
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
    n_attacked = draws_seen(protocol, n_attacked, options.counts(model)[-1])
    check_view(view)
    if compiled:
        check_compiler()
    threats = [
        Threat(
            one, protocol, n_attacked, view, compiled, save_adversarial, risk,
            rest=may_rest(model, one, protocol, n_attacked, save=save_adversarial),
        )
        for one in attacks
    ]  # fmt: skip
    out = None if out is None else Path(out)
    shuffled = isinstance(data, Data) and data.order is not None
    for threat in threats:
        check_request(threat, model, options, out)
        check_precision(precision, threat, model, shuffled=shuffled)
    with run_folder(out, force, options):
        works = [_settled(run, precision) for run in _works(model, data, threats, options)]
        return _finish_all(works, _folders(out, attacks), out, force, progress)


def _finish_all(
    works: Sequence[Run],
    folders: Sequence[Path | None],
    out: Path | None,
    force: bool,
    progress: Progress,
) -> list[Result]:
    """Do the runs of several attacks, each in its folder below `out`, or of one in `out` itself."""
    options = works[0].options
    below = [folder for folder in folders if folder not in (None, out)]
    with contextlib.ExitStack() as held:
        with beginning(out, options):
            if out is not None and below:
                _claim(works, out, below, force)
            held.enter_context(only_writer(*below, part=writer(options)))
            journals = [
                run.journal(folder, force=force, below=bool(below))
                for run, folder in zip(works, folders, strict=True)
            ]
        results = []
        for run, journal in zip(works, journals, strict=True):
            results += (found := run.finish(journal, progress))
            if found:
                journal.write_results(dump(found))
        require_whole(out, options)
        return with_worst_case(results, journals, out)


def _claim(works: Sequence[Run], out: Path, below: Sequence[Path], force: bool) -> None:
    """Make a folder that of several attacks, each of which has its own below.

    Raises:
        RequestError: It holds another run, and `force` is not given.
        RunError: Somebody writes in one of those below.
    """
    for folder in below:
        refuse_busy(folder)
    parts = {folder.name: digest(run.request()) for run, folder in zip(works, below, strict=True)}
    claim(out, {"command": works[0].command, PARTS: parts}, force=force)


def with_worst_case(
    results: list[Result], journals: Sequence[Journal], out: Path | None
) -> list[Result]:
    """Return the results of several attacks with that of all together; write them, too."""
    if len(results) > 1:
        results = [*results, _worst_case(results, journals)]
        if out is not None:
            write_text(out / RESULTS, dump(results), force=True)
    return results


@checked(*OPTION_NAMES, *ADAPTIVE_OPTIONS, "pixel_range", "early_exit")
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
        data: A data set's name, data from `load_data`, or images and labels; by default what the
            model was made for.
        eps: The budget.
        options: Draws, repeats, block size, seed; one N only.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        save_adversarial: Also write the first repeat's adversarial images to the folder.
        progress: Told of every block.
        **params: Further arguments of `rlskit.threat.adaptive.prepare_adaptive`, such as norm,
            steps, restarts, queries, n_attacked, surrogate (a model or module, or several);
            fields of `EvalOptions`.

    Returns:
        A result whose `attack` tells under `broken` how many images each part broke.

    Raises:
        RequestError: An option, the data or the folder is wrong.
        UntrustedError: The preflight or a budget check failed, or the model only guesses: numbers
            would mean nothing.
    """
    fields = {name: params.pop(name) for name in OPTION_NAMES & params.keys()}
    options = dataclasses.replace(options or EvalOptions(), **fields)
    model, data = taken(model, data)
    if given := params.pop("surrogate", None):
        shape = model.card.pixels.shape
        several = [given] if isinstance(given, nn.Module) else given
        params["surrogate"] = [
            one if isinstance(one, BankedModel) else wrap(one, shape) for one in several
        ]
    counts = options.counts(model)
    threat = prepare_adaptive(model, eps=eps, n_samples=counts[0], save=save_adversarial, **params)
    out = None if out is None else Path(out)
    check_scoring(counts, save=save_adversarial, out=out)
    with run_folder(out, force, options):
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


def _settled(run: Run, precision: str) -> Run:
    """Return the run in the precision that it gets, after a try on some images."""
    subject, options = run.subject, run.options
    model, data = subject.model, subject.data
    if precision == "fp32" or (precision == "auto" and len(data) < WORTH):
        return run
    assert isinstance(run.threat, Threat)
    some = spread(len(data), min(CHECKED, len(data)))
    images, labels = data.images(some).to(model.device), data.labels[some].to(model.device)
    threat = settled(
        run.threat, precision, model, images, labels,
        seed=options.seed, batch_size=options.batch_size,
    )  # fmt: skip
    return dataclasses.replace(run, threat=threat)


def _worst_case(results: Sequence[Result], journals: Sequence[Journal]) -> Result:
    """Return the result under all attacks: an image is robust where it withstood every one."""
    first = results[0]
    assert first.attack is not None
    attack = AttackFacts(
        method=WORST_CASE,
        engine=first.attack.engine,
        params={"of": tuple(result.attack for result in results if result.attack)},
        stated={},
        pixel_range=first.attack.pixel_range,
        view=first.attack.view,
    )
    return dataclasses.replace(
        first,
        attack=attack,
        accuracy=summary.accuracies(
            journals, first.repeats, 0, shuffled=first.data.order is not None
        ),
        perturbation=None,
        timing=summary.timing(journals),
        per_image=None,
    )


WORST_CASE = "worst-case"
"""The method of the result that stands for all attacks of a run."""


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
