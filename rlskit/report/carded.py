"""What may be published of a model: its numbers with what they are of, its gates, its warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlskit.errors import RequestError, UntrustedError
from rlskit.models.checkpoint import digest_of_file
from rlskit.report.honesty import honest_numbers, is_untargeted, threat, without_adaptive
from rlskit.report.outcome import Judgement, judgements, overall
from rlskit.report.reported import Measured, Reported, Row
from rlskit.results.result import Result
from rlskit.results.verdict import UNTRUSTED
from rlskit.results.words import attack_label, seen
from rlskit.stats import Accuracy
from rlskit.storage.sums import sha256_of
from rlskit.text import printable
from rlskit.threat.budget import budget_of

_WHITE_BOX = "white_box"
_SAVED = "saved_images"

_SAID = {
    "adaptive": "Robust accuracy",
    "transfer": "Accuracy under a transferred attack, which is not robust accuracy",
    "multi": "Accuracy under an attack on fixed draws, which is not robust accuracy",
    "eot": "Accuracy under an attack on fresh draws",
    "known": "Accuracy under an attack on the draws that answer",
    _WHITE_BOX: "Accuracy under a white-box attack",
    _SAVED: "Accuracy on saved adversarial images, which is not robust accuracy",
}
"""What a number under attack is called; only that of the adaptive protocol is robust accuracy."""


_OF_IMAGES = ("TRAINING IMAGES", "TOO FEW IMAGES")
_DOUBTFUL = (
    *_OF_IMAGES, "MASKED GRADIENTS", "MISLEADING GRADIENTS", "FAILED SEARCHES",
    "CLEAN ACCURACY UNKNOWN",
)  # fmt: skip
"""Warnings that a number does not survive being shown without."""

_DOUBT = "doubtful_"


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        type: `accuracy` of clean images, `robust_accuracy` under the adaptive protocol, else the
            view with `_accuracy`, as `transfer_accuracy`; led by `doubtful_` where a warning says
            that it may mean nothing.
        name: For people: what it is, under which attack and budget.
        value: With its interval and denominator.
        facts: All that a reader must know of it, as JSON values.
        data: What the images are called; of a path its last part.
        split: Of the data.
    """

    type: str
    name: str
    value: Accuracy
    facts: Mapping[str, Any]
    data: str
    split: str

    @property
    def doubtful(self) -> bool:
        """Whether a warning says that it may mean nothing."""
        return self.type.startswith(_DOUBT)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval over images."""
        return self.value.ci95


@dataclass(frozen=True)
class Card:
    """What may be published of one model.

    Attributes:
        name: Of the model.
        file: The name of its file; None for a model in memory.
        file_sha256: Of the file's bytes.
        digest: rlskit's own, of tensors and definition.
        result: One of its results, for what it says of the model.
        metrics: Its numbers.
        gates: What was asked of them, each with the warnings on the numbers that it looked at.
        warnings: What a reader must know first.
        sources: Name and sha256 of each file that the numbers are from.
        left_out: What was measured and is not published, and why.
    """

    name: str
    file: str | None
    file_sha256: str | None
    digest: str
    result: Result
    metrics: tuple[Metric, ...]
    gates: tuple[tuple[Judgement, tuple[str, ...]], ...]
    warnings: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = field(default=())


def card_of(reported: Reported, checkpoint: Path | None, name: str | None) -> Card:
    """Return what may be published of the one model that some runs are of.

    Args:
        reported: The runs.
        checkpoint: The model's file; None for the one that its results name, which is believed if
            its digest is theirs.
        name: Of the model; None for its file's.

    Raises:
        RequestError: The runs are of several models or of another one, hold no accuracy, or the
            model's file is not there.
        UntrustedError: The numbers cannot be trusted.
    """
    digest = _digest(reported, checkpoint)
    own = _of_model(reported, digest)
    results = list(own.results)
    judged = judgements(own)
    _require_trust(results, judged)
    metrics, left_out = _metrics(results)
    if not metrics:
        raise RequestError("the runs hold no accuracy of this model that could be published")
    file = checkpoint or _file(results, digest)
    public = _places(results)
    warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
    missing = without_adaptive(honest_numbers(own.rows))
    return Card(
        name=printable(name or (file.stem if file else results[0].model.architecture)),
        file=None if file is None else file.name,
        file_sha256=None if file is None else sha256_of(file),
        digest=digest,
        result=results[0],
        metrics=metrics,
        gates=tuple((_said(one, public), _warned(one, own, public)) for one in judged),
        warnings=tuple(_shown(one, public) for one in (*warnings, missing) if one),
        sources=tuple((f"{s.parent.resolve().name}/{s.name}", sha256_of(s)) for s in own.sources),
        left_out=left_out,
    )


def _digest(reported: Reported, checkpoint: Path | None) -> str:
    """Return the digest of the model that is to be published.

    Raises:
        RequestError: There is none, or more than one.
    """
    known = {one.checkpoint.sha256: one for one in reported.results if one.checkpoint.sha256}
    if checkpoint is not None:
        digest = digest_of_file(checkpoint)
        if digest not in known:
            raise RequestError(
                f"the runs are not of {checkpoint}: its sha256 of tensors and definition is "
                f"{digest[:12]}..., theirs {', '.join(f'{one[:12]}...' for one in known) or 'none'}"
            )
        return digest
    if not known:
        _require_trust((), judgements(reported))  # a run may have ended without any result
    if len(known) != 1:
        which = ", ".join(str(one.checkpoint.path) for one in known.values())
        raise RequestError(
            f"a card is of one model, and the runs are of {len(known)} ({which or 'none is named'})"
            "; name its file with `checkpoint`"
        )
    return next(iter(known))


def _file(results: Sequence[Result], digest: str) -> Path | None:
    """Return the file that results name, if it is the model's; None for a model in memory.

    Raises:
        RequestError: It is not there, or another one.
    """
    paths = {Path(one.checkpoint.path) for one in results if one.checkpoint.path}
    for path in paths:
        if path.is_file() and digest_of_file(path) == digest:
            return path
    if paths:
        raise RequestError(
            f"{min(paths)}, which the runs name, is not there or not the model any more; name its "
            "file with `checkpoint`"
        )
    return None


def _of_model(reported: Reported, digest: str) -> Reported:
    """Return what was measured of one model."""
    rows = [
        replace(row, cells=tuple(_cells(row, digest)))
        for row in reported.rows
        if any(one.checkpoint.sha256 == digest for one in row.results)
    ]
    named = {row.name for row in rows}
    return replace(
        reported,
        rows=tuple(rows),
        verdicts=tuple(one for one in reported.verdicts if one.row in named),
        audits=tuple(one for one in reported.audits if one.checkpoint.sha256 == digest),
    )


def _cells(row: Row, digest: str) -> Iterator[Measured]:
    for cell in row.cells:
        if cell.result is None or cell.result.checkpoint.sha256 == digest:
            own = tuple(one for one in cell.others if one.checkpoint.sha256 == digest)
            yield replace(cell, others=own)


def _require_trust(results: Sequence[Result], judged: Sequence[Judgement]) -> None:
    """Require numbers that mean something.

    Raises:
        UntrustedError: They do not.
    """
    if any(one.model.trained is False for one in results):
        raise UntrustedError("the model is untrained, so its numbers mean nothing; no card is made")
    if overall(judged) == UNTRUSTED:
        why = next(one.sentence for one in judged if one.verdict == UNTRUSTED)
        raise UntrustedError(f"the numbers cannot be trusted, so no card is made: {why}")


def _metrics(results: Sequence[Result]) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Return the numbers to publish, each once, and what is left out."""
    found: list[Metric] = []
    left_out = []
    for result in results:
        if result.abstention is not None:
            left_out.append("an evaluation that abstains, whose numbers are of some of the images")
            continue
        if "clean" in result.accuracy:
            found.append(_metric(result, "clean", "accuracy", "Accuracy"))
        kind = _kind(result)
        if is_untargeted(result) and kind in _SAID:
            type_ = "robust_accuracy" if kind == "adaptive" else f"{kind}_accuracy"
            found.append(_metric(result, "robust", type_, _SAID[kind]))
        elif result.attack is not None:
            why = "is targeted: other attacks leave less"
            if is_untargeted(result):
                why = f"is of the protocol {kind}, which this rlskit does not know"
            left_out.append(f"{attack_label(result)}, which {why}")
    different = [one for place, one in enumerate(found) if one not in found[:place]]
    return tuple(different), tuple(dict.fromkeys(left_out))


def _kind(result: Result) -> str:
    """Return what a number under attack is; a key of `_SAID`.

    Images that were saved may be of an attack on another model: their file's protocol says nothing
    of this one.
    """
    if result.data.adversarial_sha256 is not None:
        return _SAVED
    if result.defense == "none" and result.protocol != "adaptive":
        return _WHITE_BOX
    return result.protocol


def _metric(result: Result, show: str, type_: str, said: str) -> Metric:
    value = result.accuracy[show]
    known = _OF_IMAGES if show == "clean" else _DOUBTFUL
    doubts = [one for one in known if any(w.startswith(f"{one}:") for w in result.warnings)]
    facts: dict[str, Any] = {
        "protocol": "clean" if show == "clean" else result.protocol,
        "images": int(value.n),
        "answering_draws": result.n_samples,
        "repeats": result.repeats,
        "ci95": [round(end, 6) for end in value.ci95],
        "lower_bound_95": round(value.lower_bound, 6),
        "data_sha256": result.data.adversarial_sha256 or result.data.sha256,
    }
    how: list[str] = []
    if show == "robust":
        more, how = _of_attack(result)
        facts |= more
    if doubts:
        facts["doubts"] = doubts
        type_, said = f"{_DOUBT}{type_}", f"{', '.join(doubts)}: {said}"
    how += [f"N={result.n_samples}", f"{int(value.n):,} images"]
    name = printable(f"{said} ({', '.join(how)})")
    return Metric(type_, name, value, facts, _public(result.data.name), result.data.split)


def _of_attack(result: Result) -> tuple[dict[str, Any], list[str]]:
    """Return what to know of an attack, as JSON values and for people."""
    assert result.attack is not None
    method = result.attack.method
    norm, eps = budget_of(result.attack) or ("none", None)
    facts: dict[str, Any] = {
        "attack": method, "norm": norm, "eps": eps, "attacked_draws": result.n_attacked,
    }  # fmt: skip
    if result.attack.of:
        facts["attacks"] = [attack.method for attack in result.attack.of]
    own = [] if method == result.protocol else [method]
    return facts, [*own, threat(result), seen(result)]


def _said(one: Judgement, public: Mapping[str, str]) -> Judgement:
    return replace(
        one, row=_shown(one.row, public), name=_shown(one.name, public),
        sentence=_shown(one.sentence, public),
    )  # fmt: skip


def _warned(one: Judgement, own: Reported, public: Mapping[str, str]) -> tuple[str, ...]:
    """Return the warnings on the numbers that a gate looked at."""
    found = {
        warning: None
        for row in own.rows
        for cell in row.cells
        for result in cell.results
        for warning in result.warnings
        if (row.name, cell.column) == (one.row, one.column)
    }
    return tuple(_shown(warning, public) for warning in found)


def _shown(text: str, public: Mapping[str, str]) -> str:
    """Return a text without the folders of the machine that it was measured on."""
    for place, short in public.items():
        text = text.replace(place, short) if place else text
    return printable(text)


def _places(results: Sequence[Result]) -> dict[str, str]:
    """Return what is said in the place of the paths that results name."""
    files = {one.checkpoint.path for one in results if one.checkpoint.path}
    places = {path: Path(path).name for path in files}
    return places | {one.data.name: _public(one.data.name) for one in results}


def _public(data: str) -> str:
    """Return what data are called; of a path its last part."""
    kind, colon, path = data.partition(":")
    return printable(f"{kind}:{Path(path).name}" if colon else data)
