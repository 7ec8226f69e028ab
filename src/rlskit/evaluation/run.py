"""One evaluation, block by block.

Shapes: B images of a block, N draws, R repeats.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.adversarial import write_adversarial
from rlskit.attacks import PreparedAttack
from rlskit.data import blocks, runs
from rlskit.defenses import draws
from rlskit.errors import UntrustedError
from rlskit.evaluation.options import EvalOptions
from rlskit.evaluation.subject import Subject
from rlskit.models.sharing import draw_logits
from rlskit.pixels import perturbation_norms, round_to_8bit
from rlskit.preflight import IMAGES, check_answers, preflight
from rlskit.results import ADVERSARIAL, Journal, Result, summary
from rlskit.threat import Meter, attackers_view, mean_log_probabilities
from rlskit.types import Progress


@dataclass(frozen=True)
class Threat:
    """An attack and the view it is computed on.

    Attributes:
        attack: The attack, its options checked.
        protocol: One of `rlskit.threat.PROTOCOLS`.
        n_attacked: Draws in the attacker's view.
        view: One of `rlskit.threat.VIEWS`.
        compiled: Whether the draws in the view are compiled.
        save: Whether the images are kept, and also scored after rounding to 8 bits.
    """

    attack: PreparedAttack
    protocol: str
    n_attacked: int
    view: str
    compiled: bool = False
    save: bool = False

    @property
    def label(self) -> str:
        """The method and its budget in the scale it was stated in, for people."""
        eps = self.attack.stated.get("eps")
        return self.attack.method if eps is None else f"{self.attack.method} {eps:.4g}"

    @property
    def folded(self) -> bool:
        """Whether the draws in the view are made ready for many gradients."""
        return self.attack.engine == "rlskit"

    def facts(self) -> dict[str, Any]:
        """Return the fields of a `Result` that tell what was done to the images."""
        stated = dict(self.attack.stated)
        pixel_range = stated.pop("pixel_range")
        attack = {
            "method": self.attack.method,
            "engine": self.attack.engine,
            "params": dict(self.attack.params),
            "stated": stated,
            "pixel_range": pixel_range,
            "view": self.view,
            "compiled": self.compiled,
        }
        return {"attack": attack, "protocol": self.protocol, "n_attacked": self.n_attacked}


@dataclass(frozen=True)
class Run:
    """One evaluation: what is fixed for all its blocks, and the work on one of them.

    Attributes:
        subject: The model and its images.
        options: Draws, repeats, block size, seed.
        threat: What is done to the images first; None for nothing.
    """

    subject: Subject
    options: EvalOptions
    threat: Threat | None = None

    @property
    def command(self) -> str:
        """The subcommand that this is the work of."""
        return "eval" if self.threat is None else "attack"

    @property
    def counts(self) -> tuple[int, ...]:
        """The Ns that are scored, ascending."""
        return self.options.counts(self.subject.model)

    def request(self) -> dict[str, Any]:
        """Return everything that decides the numbers, as JSON values."""
        threat = {} if self.threat is None else {**self.threat.facts(), "save": self.threat.save}
        return {
            **self.subject.identity(),
            **threat,
            "command": self.command,
            "n_samples": self.counts,
            "repeats": self.options.repeats,
            "seed": self.options.seed,
            "batch_size": self.options.batch_size,
            "per_example": self.options.per_example,
            "threads": torch.get_num_threads(),
        }

    def preflight(self) -> None:
        """Look at a few images before any number is computed."""
        model, data = self.subject.model, self.subject.data
        images = data.images(range(min(IMAGES, len(data)))).to(model.device)
        labels = data.labels[:IMAGES].to(model.device)
        (draw,) = draws(model, 1, seed=self.options.seed, purpose="defender")
        if self.threat is None:
            check_answers(draw, images, model.card.classes)
        else:
            view = self._view(self.threat, 0)
            preflight(model, draw, view, self.threat.attack, images, labels)

    def finish(self, journal: Journal, progress: Progress) -> list[Result]:
        """Do every block that the journal does not hold yet; return one result per N."""
        for repeat in range(self.options.repeats):
            self._finish_repeat(repeat, journal, progress)
        assert journal.rows == len(self.subject.data) * self.options.repeats
        if self.threat is not None and self.threat.save:
            self._write_adversarial(self.threat, journal)
        per_image = journal.write_per_image(summary.per_image(journal, self.options.repeats))
        return [self._result(journal, which, per_image) for which in range(len(self.counts))]

    def _finish_repeat(self, repeat: int, journal: Journal, progress: Progress) -> None:
        data, options = self.subject.data, self.options
        defenders = None if options.per_example else self._defenders(repeat)
        sizes = runs(len(data), options.batch_size)
        finished = {i for i, run in enumerate(sizes) if journal.get(repeat, run.start)}
        step = "evaluating" if self.threat is None else f"attacking with {self.threat.label}"
        stream = blocks(data, options.batch_size, options.num_workers, done=finished)
        for indices, images, labels in stream:
            journal.put(
                repeat, indices.start, self._block(repeat, indices, images, labels, defenders)
            )
            progress(step, journal.rows, len(data) * options.repeats)

    def _block(
        self,
        repeat: int,
        indices: range,
        images: Tensor,
        labels: Tensor,
        defenders: list[nn.Module] | None,
    ) -> dict[str, Tensor]:
        """Do the work on a block, image by image where there are no defenders for all of them."""
        if defenders is not None:
            return self._attack_and_score(repeat, indices, images, labels, defenders)
        parts = []
        for i, index in enumerate(indices):
            one, own = slice(i, i + 1), self._defenders(repeat, index)
            parts.append(
                self._attack_and_score(repeat, indices[one], images[one], labels[one], own, index)
            )
        block = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return block | {name: block[name].sum(0, keepdim=True) for name in summary.COSTS}

    def _attack_and_score(
        self,
        repeat: int,
        indices: range,
        images: Tensor,
        labels: Tensor,
        defenders: list[nn.Module],
        image: int | None = None,
    ) -> dict[str, Tensor]:
        """Attack and score some images; return their columns, each with B rows, and their cost.

        The index of an image says that it is the only one, with draws of its own.
        """
        start = time.perf_counter()
        device = self.subject.model.device
        images, wanted = images.to(device), labels.to(device)
        scored = "clean" if self.subject.saved is None else "robust"
        block = {"index": torch.arange(indices.start, indices.stop), "label": labels}
        block |= self._scores(scored, defenders, images, wanted)
        cost = [len(images) * len(defenders), 0]  # what draws share counts for each of them
        if self.threat is not None:
            meter = Meter(self._view(self.threat, repeat, image), self.threat.n_attacked)
            noise = seeds.generator(self.options.seed, "attack", repeat)
            # The layout of the convolutions that are attacked; scoring keeps the ordinary one.
            layout = torch.channels_last if self.threat.folded else torch.contiguous_format
            clean = images.contiguous(memory_format=layout)
            changed = self.threat.attack(meter, clean, wanted, generator=noise).contiguous()
            block |= self._scores("robust", defenders, changed, wanted)
            block |= perturbation_norms(images, changed)
            cost = [2 * cost[0] + meter.forwards, meter.backwards]
            if self.threat.save:
                saved = self._scores("robust_8bit", defenders, round_to_8bit(changed), wanted)
                block["robust_8bit"] = saved["robust_8bit"]
                cost[0] += len(images) * len(defenders)
                if repeat == 0:
                    block["adversarial"] = changed
        block = {name: column.cpu() for name, column in block.items()}  # a GPU is done only now
        block["forwards"], block["backwards"] = torch.tensor(cost[:1]), torch.tensor(cost[1:])
        block["seconds"] = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        return block

    @torch.no_grad()
    def _scores(
        self, kind: str, defenders: list[nn.Module], images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the answer of the first N draws for each N, `[B, counts]`, and the Gibbs share.

        Raises:
            UntrustedError: A draw's logits are not finite.
        """
        logits = finite_logits(defenders, images)
        answers = [mean_log_probabilities(logits[:n]).argmax(-1) for n in self.counts]
        right = (logits.argmax(-1) == labels).double()
        single = [right[:n].mean(0) for n in self.counts]
        return {kind: torch.stack(answers, 1), f"{kind}_gibbs": torch.stack(single, 1)}

    def _defenders(self, repeat: int, image: int | None = None) -> list[nn.Module]:
        return draws(
            self.subject.model, self.counts[-1], seed=self.options.seed, purpose="defender",
            repeat=repeat, image=image,
        )  # fmt: skip

    def _view(self, threat: Threat, repeat: int, image: int | None = None) -> nn.Module:
        return attackers_view(
            self.subject.model, threat.protocol, threat.n_attacked, seed=self.options.seed,
            repeat=repeat, view=threat.view, folded=threat.folded,
            compiled=threat.compiled, image=image,
        )  # fmt: skip

    def _write_adversarial(self, threat: Threat, journal: Journal) -> None:
        """Write the first repeat's adversarial images to the run's folder."""
        assert journal.folder is not None
        about = {
            "checkpoint_sha256": self.subject.digest,
            "classes": self.subject.model.card.classes,
            "data": self.subject.data_json(),
            "seed": self.options.seed,
            **threat.facts(),
        }
        images, labels, indices = (
            journal.column(name, 0) for name in ("adversarial", "label", "index")
        )
        write_adversarial(journal.folder / ADVERSARIAL, images, labels, indices, about)

    def _result(self, journal: Journal, which: int, per_image: str | None) -> Result:
        options = self.options
        facts = self.subject.facts() | (self.threat.facts() if self.threat else {})
        return Result(
            **facts,
            command=self.command,
            n_samples=self.counts[which],
            repeats=options.repeats,
            seed=options.seed,
            batch_size=options.batch_size,
            accuracy=summary.accuracies([journal], options.repeats, which),
            perturbation=summary.perturbation(journal, options.repeats),
            timing=summary.timing([journal]),
            per_image=per_image,
            per_example=options.per_example,
        )


def finite_logits(defenders: list[nn.Module], images: Tensor) -> Tensor:
    """Return the draws' logits `[N, B, classes]`.

    Raises:
        UntrustedError: Some are NaN or infinite: their argmax would be a class all the same.
    """
    logits = draw_logits(defenders, images)
    if not logits.isfinite().all():
        draw, image = (~logits.isfinite()).nonzero()[0][:2].tolist()
        raise UntrustedError(
            f"draw {draw} answers with NaN or infinite logits, first for image {image} of a block; "
            "such an image counts neither as right nor as wrong"
        )
    return logits
