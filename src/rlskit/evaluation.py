"""Evaluation: accuracy of the mean of N draws, on clean images and under attack.

The unit of work is a block, a fixed run of dataset indices: the same block gives the same numbers
in any order and after any interruption. Shapes: B images of a block, N draws, R repeats.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import checkpoint, seeds
from rlskit.adversarial import read_adversarial, write_adversarial
from rlskit.attacks import PreparedAttack, prepare
from rlskit.data import Data, blocks, load, runs
from rlskit.defenses import defense_of, draws
from rlskit.errors import RequestError
from rlskit.files import write_text
from rlskit.models.banks import BankedModel
from rlskit.pixels import perturbation_norms, round_to_8bit
from rlskit.preflight import IMAGES, check_answers, check_weights, preflight
from rlskit.results import ADVERSARIAL, RESULTS, Journal, Result, dump
from rlskit.stats import accuracy
from rlskit.threat import Meter, attackers_view, mean_log_probabilities, protocol_of
from rlskit.types import Progress, no_progress

_NORMS = ("l0", "l1", "l2", "linf")


@dataclass(frozen=True)
class EvalOptions:
    """What all evaluations have in common.

    Attributes:
        n_samples: N, the defender's draws that answer together, or several N, scored in one pass
            on nested draws; None for the defense's own number.
        repeats: R, each with its own draws.
        batch_size: Images per block.
        num_workers: Threads that decode images.
        seed: All randomness derives from it.
    """

    n_samples: int | Sequence[int] | None = None
    repeats: int = 1
    batch_size: int = 128
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        given = self.n_samples
        counts = () if given is None else (given,) if isinstance(given, int) else tuple(given)
        if given is not None and (not counts or min(counts) < 1):
            raise RequestError(f"--n-samples must be at least 1, not {given}")
        object.__setattr__(self, "n_samples", tuple(sorted(set(counts))))
        for flag, value in (("--repeats", self.repeats), ("--batch-size", self.batch_size)):
            if value < 1:
                raise RequestError(f"{flag} must be at least 1, not {value}")

    def counts(self, model: BankedModel) -> tuple[int, ...]:
        """Return the Ns to score, ascending."""
        assert isinstance(self.n_samples, tuple)
        return self.n_samples or (defense_of(model).samples(model),)


@dataclass(frozen=True)
class Threat:
    """An attack and the view it is computed on.

    Attributes:
        attack: The attack, its options checked.
        protocol: One of `rlskit.threat.PROTOCOLS`.
        n_attacked: Draws in the attacker's view.
        view: One of `rlskit.threat.VIEWS`.
    """

    attack: PreparedAttack
    protocol: str
    n_attacked: int
    view: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that stands as `attack` in a result."""
        return {
            "method": self.attack.method,
            "engine": self.attack.engine,
            "params": dict(self.attack.params),
            "stated": {k: v for k, v in self.attack.stated.items() if k != "pixel_range"},
            "pixel_range": self.attack.stated["pixel_range"],
            "view": self.view,
        }


def attack(
    model: BankedModel,
    data: str | Data | None = None,
    *,
    method: str = "pgd",
    n_attacked: int = 1,
    protocol: str | None = None,
    view: str = "mean-prob",
    engine: str = "rlskit",
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
        model: From `convert` or `load`, on the device to use.
        data: A `--data` name, or data from `load_data`; by default what the model was made for.
        method: A key of `rlskit.attacks.ATTACKS`.
        n_attacked: Draws in the attacker's view.
        protocol: `transfer`, `multi` or `eot`; by default the first two, by `n_attacked`.
        view: How several draws are seen: `mean-prob` (the defender's rule) or `mean-logit`.
        engine: `rlskit` or `torchattacks`.
        pixel_range: The scale that `params` are stated in, `0:1` or the paper's `-1:1`.
        options: Draws, repeats, block size, seed; one N only. Its fields may be given directly
            among `params`.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        save_adversarial: Also write the first repeat's adversarial images to the folder, and score
            them after rounding to 8 bits.
        progress: Told of every block.
        **params: Options of the method, such as eps, steps, c.

    Raises:
        RequestError: An option, the data or the folder is wrong.
        UntrustedError: The preflight or a budget check failed: numbers would mean nothing.
    """
    options = options or EvalOptions(**_taken(params))
    (result,) = attack_all(
        model,
        data,
        attacks=[prepare(method, pixel_range=pixel_range, engine=engine, **params)],
        n_attacked=n_attacked,
        protocol=protocol,
        view=view,
        options=options,
        out=out,
        force=force,
        save_adversarial=save_adversarial,
        progress=progress,
    )
    return result


def attack_all(
    model: BankedModel,
    data: str | Data | None = None,
    *,
    attacks: Sequence[PreparedAttack],
    n_attacked: int = 1,
    protocol: str | None = None,
    view: str = "mean-prob",
    options: EvalOptions,
    out: str | Path | None = None,
    force: bool = False,
    save_adversarial: bool = False,
    progress: Progress = no_progress,
) -> list[Result]:
    """Run several attacks on the same images, views and draws; see `attack` for the arguments.

    Returns:
        One result per attack. With a folder, each attack has its own below `out` when there are
        several, and `out/results.json` lists them all.

    Raises:
        RequestError: An option, the data or the folder is wrong.
        UntrustedError: The preflight or a budget check failed: numbers would mean nothing.
    """
    protocol = protocol_of(protocol, n_attacked)
    threats = [Threat(prepared, protocol, n_attacked, view) for prepared in attacks]
    for threat in threats:
        _check_request(threat, options.counts(model), save_adversarial, out)
    check_weights(model)
    images = evaluation_data(model, data)
    folders = _folders(None if out is None else Path(out), attacks)
    evaluations = [
        _Run(model, images, options, threat, rounded=save_adversarial) for threat in threats
    ]
    journals = [
        Journal(folder, run.request(), force=force)
        for run, folder in zip(evaluations, folders, strict=True)
    ]
    for run in evaluations:
        run.preflight()
    results = [
        run.finished(journal, progress) for run, journal in zip(evaluations, journals, strict=True)
    ]
    if out is not None and len(results) > 1:
        write_text(Path(out) / RESULTS, dump(results), force=True)
    return results


def evaluate(
    model: BankedModel,
    data: str | Data | None = None,
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
        model: From `convert` or `load`, on the device to use.
        data: A `--data` name, or data from `load_data`; by default what the model was made for.
        adversarial: A file that an attack saved; its images take the place of the data.
        options: Draws, repeats, block size, seed. With several N the draws nest, so that the
            largest N costs all.
        out: The run's folder; an unfinished run of the same request is continued.
        force: Replace what the folder holds.
        progress: Told of every block.
        **fields: Fields of `EvalOptions`, in place of `options`.

    Returns:
        One result per N, ascending.

    Raises:
        RequestError: An option, the data or a file is wrong.
        UntrustedError: The weights or logits are not finite.
    """
    options = options or EvalOptions(**fields)
    check_weights(model)
    about = None
    if adversarial is None:
        images = evaluation_data(model, data)
    else:
        saved = read_adversarial(adversarial, model.card)
        images, about = saved.data, saved.about
    run = _Run(model, images, options, None, about=about)
    journal = Journal(Path(out) if out is not None else None, run.request(), force=force)
    run.preflight()
    run.finish_blocks(journal, progress)
    results = run.results(journal)
    journal.write_results(dump(results))
    return results


def _check_request(
    threat: Threat, counts: tuple[int, ...], save_adversarial: bool, out: str | Path | None
) -> None:
    if threat.protocol == "eot" and threat.attack.norm is None:
        raise RequestError(
            f"--protocol eot attacks with fgsm or pgd so far, not {threat.attack.method}: a search "
            "for the smallest perturbation needs the same classifier at every step"
        )
    if len(counts) > 1:
        raise RequestError(
            "an attack is scored with one --n-samples; save its images and sweep them with eval"
        )
    if save_adversarial and out is None:
        raise RequestError("the adversarial images need a folder: give out")


def _folders(out: Path | None, attacks: Sequence[PreparedAttack]) -> list[Path | None]:
    """Return the folder of each attack: `out` itself for a single one."""
    if out is None or len(attacks) == 1:
        return [out] * len(attacks)
    return [
        out / (a.method if a.eps is None else f"{a.method}-{a.stated['eps']:.4g}") for a in attacks
    ]


class _Run:
    """One evaluation: what is fixed for all its blocks, and the work on one of them."""

    def __init__(
        self,
        model: BankedModel,
        data: Data,
        options: EvalOptions,
        threat: Threat | None,
        *,
        about: dict[str, Any] | None = None,
        rounded: bool = False,
    ) -> None:
        self.model, self.data, self.options, self.threat = model, data, options, threat
        self.about, self.rounded = about, rounded
        self.counts = options.counts(model)
        self.digest = checkpoint.fingerprint(checkpoint.stored_tensors(model))

    def request(self) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        return {
            "command": "eval" if self.threat is None else "attack",
            "checkpoint_sha256": self.digest,
            "defense": self.model.card.defense,
            "data": self._data_json(),
            "attack": self._about("attack"),
            "protocol": self._about("protocol"),
            "n_attacked": self._about("n_attacked"),
            "n_samples": self.counts,
            "repeats": self.options.repeats,
            "seed": self.options.seed,
            "batch_size": self.options.batch_size,
            "rounded": self.rounded,
            "device": self.model.device.type,
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
        }

    def preflight(self) -> None:
        """Look at a few images before any number is computed."""
        device = self.model.device
        images = self.data.images(range(min(IMAGES, len(self.data)))).to(device)
        labels = self.data.labels[:IMAGES].to(device)
        (draw,) = draws(self.model, 1, seed=self.options.seed, purpose="defender")
        if self.threat is None:
            check_answers(draw, images, self.model.card.classes)
        else:
            preflight(self.model, draw, self._view(0, 0), self.threat.attack, images, labels)

    def finished(self, journal: Journal, progress: Progress) -> Result:
        """Do an attack's blocks, write what belongs in its folder, and return its result."""
        self.finish_blocks(journal, progress)
        (result,) = self.results(journal)
        if self.rounded:
            self.write_adversarial(journal)
        journal.write_results(dump([result]))
        return result

    def finish_blocks(self, journal: Journal, progress: Progress) -> None:
        """Do every block that the journal does not hold yet."""
        sizes = runs(len(self.data), self.options.batch_size)
        total, done = len(self.data) * self.options.repeats, 0
        step = (
            "evaluating" if self.threat is None else f"attacking with {self.threat.attack.method}"
        )
        for repeat in range(self.options.repeats):
            finished = {i for i, run in enumerate(sizes) if journal.get(repeat, run.start)}
            done += sum(len(sizes[i]) for i in finished)
            defenders = draws(
                self.model, self.counts[-1],
                seed=self.options.seed, purpose="defender", repeat=repeat,
            )  # fmt: skip
            stream = blocks(
                self.data, self.options.batch_size, self.options.num_workers, done=finished
            )
            for indices, images, labels in stream:
                block = self._block(repeat, indices, images, labels, defenders)
                journal.put(repeat, indices.start, block)
                done += len(indices)
                progress(step, done, total)

    def results(self, journal: Journal) -> list[Result]:
        """Summarise the finished blocks, one result per N."""
        per_image = journal.write_per_image(self._per_image(journal))
        return [self._result(journal, which, per_image) for which in range(len(self.counts))]

    def write_adversarial(self, journal: Journal) -> None:
        """Write the first repeat's adversarial images to the run's folder."""
        assert journal.folder is not None
        assert self.threat is not None
        about = {
            "checkpoint_sha256": self.digest,
            "data": self._data_json(),
            "attack": self.threat.to_json(),
            "protocol": self.threat.protocol,
            "n_attacked": self.threat.n_attacked,
        }
        images, labels, indices = (
            journal.column(name, 0) for name in ("adversarial", "label", "index")
        )
        write_adversarial(journal.folder / ADVERSARIAL, images, labels, indices, about)

    def _block(
        self,
        repeat: int,
        indices: range,
        images: Tensor,
        labels: Tensor,
        defenders: list[nn.Module],
    ) -> dict[str, Tensor]:
        """Attack and score one block; return its columns, each with B rows."""
        start = time.perf_counter()
        device = self.model.device
        images, on_device = images.to(device), labels.to(device)
        block = {"index": torch.arange(indices.start, indices.stop), "label": labels}
        block |= self._scores("clean", defenders, images, on_device)
        cost = [0, 0]
        if self.threat is not None:
            meter = Meter(self._view(repeat, indices.start), self.threat.n_attacked)
            noise = seeds.generator(self.options.seed, "attack", repeat, indices.start)
            changed = self.threat.attack(meter, images, on_device, generator=noise)
            block |= self._scores("robust", defenders, changed, on_device)
            block |= perturbation_norms(images, changed)
            if self.rounded:
                rounded = self._scores("robust_8bit", defenders, round_to_8bit(changed), on_device)
                block["robust_8bit"] = rounded["robust_8bit"]
                block["adversarial"] = changed
            cost = [meter.forwards, meter.backwards]
        block["forwards"], block["backwards"] = torch.tensor(cost[:1]), torch.tensor(cost[1:])
        block["seconds"] = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        return block

    @torch.no_grad()
    def _scores(
        self, name: str, defenders: list[nn.Module], images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer of the first N draws for each N, `[B, counts]`, and the Gibbs share."""
        logits = torch.stack([defender(images) for defender in defenders])
        answers = [mean_log_probabilities(logits[:n]).argmax(-1) for n in self.counts]
        right = (logits.argmax(-1) == labels).double()
        single = [right[:n].mean(0) for n in self.counts]
        return {name: torch.stack(answers, 1), f"{name}_gibbs": torch.stack(single, 1)}

    def _view(self, repeat: int, first: int) -> nn.Module:
        assert self.threat is not None
        threat = self.threat
        return attackers_view(
            self.model, threat.protocol, threat.n_attacked,
            seed=self.options.seed, repeat=repeat, block=first, view=threat.view,
        )  # fmt: skip

    def _result(self, journal: Journal, which: int, per_image: str | None) -> Result:
        seconds = journal.total("seconds")
        images = len(self.data) * self.options.repeats
        return Result(
            command="eval" if self.threat is None else "attack",
            checkpoint={"path": self.model.path, "sha256": self.digest},
            model=model_json(self.model),
            defense=self.model.card.defense,
            data=self._data_json(),
            attack=self._about("attack"),
            protocol=self._about("protocol"),
            n_attacked=self._about("n_attacked"),
            n_samples=self.counts[which],
            repeats=self.options.repeats,
            seed=self.options.seed,
            batch_size=self.options.batch_size,
            device=self.model.device.type,
            versions=library_versions(),
            accuracy=self._accuracies(journal, which),
            perturbation=self._perturbation(journal),
            timing={
                "seconds": seconds,
                "images_per_second": images / seconds,
                "forwards": journal.total("forwards"),
                "backwards": journal.total("backwards"),
            },
            per_image=per_image,
            warnings=self._warnings(),
        )

    def _accuracies(self, journal: Journal, which: int) -> dict[str, dict[str, Any]]:
        """Return every accuracy of the design's section 4, each with its denominator."""
        repeats = range(self.options.repeats)
        # Saved adversarial images are scored as the only images there are.
        names = {"clean": "robust"} if self.about else {"clean": "clean"}
        if self.threat is not None:
            names["robust"] = "robust"
        found: dict[str, dict[str, Any]] = {}
        n = len(self.data)
        for column, name in names.items():
            right = [self._right(journal, column, r, which) for r in repeats]
            found[name] = accuracy([float(r.double().mean()) for r in right], n).to_json()
            single = [float(journal.column(f"{column}_gibbs", r)[:, which].mean()) for r in repeats]
            found[f"{name}_gibbs"] = accuracy(single, n).to_json()
        if self.rounded:
            (right_8bit,) = [self._right(journal, "robust_8bit", r, which) for r in repeats][:1]
            found["robust_8bit"] = accuracy([float(right_8bit.double().mean())], n).to_json()
        if self.threat is not None:
            found |= self._attack_success(journal, which)
        return found

    def _attack_success(self, journal: Journal, which: int) -> dict[str, dict[str, Any]]:
        """Return the share of the correctly classified images that the attack turned."""
        shares, denominators = [], []
        for repeat in range(self.options.repeats):
            correct = self._right(journal, "clean", repeat, which)
            turned = correct & ~self._right(journal, "robust", repeat, which)
            denominators.append(int(correct.sum()))
            shares.append(int(turned.sum()) / max(denominators[-1], 1))
        if not min(denominators):
            return {}
        return {"attack_success": accuracy(shares, min(denominators)).to_json()}

    def _right(self, journal: Journal, column: str, repeat: int, which: int) -> Tensor:
        return journal.column(column, repeat)[:, which] == journal.column("label", repeat)

    def _perturbation(self, journal: Journal) -> dict[str, dict[str, float]] | None:
        if self.threat is None:
            return None
        repeats = range(self.options.repeats)
        columns = {norm: torch.cat([journal.column(norm, r) for r in repeats]) for norm in _NORMS}
        return {
            norm: {"median": float(column.median()), "max": float(column.max())}
            for norm, column in columns.items()
        }

    def _per_image(self, journal: Journal) -> dict[str, list[Any]]:
        names = ["index", "label", "clean", "clean_gibbs"]
        if self.threat is not None:
            names += ["robust", "robust_gibbs", *_NORMS]
        columns: dict[str, list[Any]] = {"repeat": []}
        for repeat in range(self.options.repeats):
            columns["repeat"] += [repeat] * len(self.data)
            for name in names:
                column = journal.column(name, repeat)
                of_largest_n = column[:, -1] if column.ndim == 2 else column
                columns.setdefault(name, []).extend(of_largest_n.tolist())
        return columns

    def _data_json(self) -> dict[str, Any]:
        if self.about is not None:
            return {**self.about["data"], "n": len(self.data)}
        return data_json(self.data)

    def _about(self, what: str) -> Any:
        """Return `attack`, `protocol` or `n_attacked`: of saved images, of the threat, or none."""
        if self.about is not None:
            return self.about.get(what)
        if self.threat is None:
            return "clean" if what == "protocol" else None
        return self.threat.to_json() if what == "attack" else getattr(self.threat, what)

    def _warnings(self) -> tuple[str, ...]:
        found = warnings_about(self.model, self.data)
        if self.about is not None and self.about.get("checkpoint_sha256") != self.digest:
            found += ("These images were made against another checkpoint: a transfer test.",)
        return found


def warnings_about(model: BankedModel, data: Data) -> tuple[str, ...]:
    """Return what a reader of numbers about this model on this data must know first."""
    if not model.card.trained:
        return ("UNTRAINED MODEL: its weights are random and these numbers mean nothing.",)
    if model.card.data and model.card.data != data.name:
        return (f"The model was made for {model.card.data}, but this is {data.name}.",)
    return ()


def library_versions() -> dict[str, str]:
    """Return the versions that a number depends on."""
    return {name: version(name) for name in ("rlskit", "torch", "torchattacks")}


def data_json(data: Data) -> dict[str, Any]:
    """Return the JSON object that stands as `data` in a result."""
    return {"name": data.name, "split": data.split, "n": len(data), "sha256": data.sha256}


def model_json(model: BankedModel) -> dict[str, Any]:
    """Return the JSON object that stands as `model` in a result."""
    return {
        "architecture": model.card.architecture.label,
        "banks": model.num_banks,
        "layers": model.num_layers,
        "granularity": model.partition.granularity,
        "parameters": sum(p.numel() for p in model.banks[0].parameters()),
        "trained": model.card.trained,
    }


def evaluation_data(model: BankedModel, data: str | Data | None) -> Data:
    """Return the data to evaluate on as the model takes it; by default what it was made for.

    Raises:
        RequestError: The data is unknown, or does not fit the model.
    """
    if not isinstance(data, Data):
        data = load(data or model.card.default_data(), "test")
    return data.adapted(model.card.pixels, model.card.classes)


def _taken(params: dict[str, Any]) -> dict[str, Any]:
    """Take the fields of `EvalOptions` out of `params`."""
    return {name: params.pop(name) for name in EvalOptions.__dataclass_fields__ if name in params}
