"""The case under audit: a defended model, its images and the attack whose result is to be trusted.

Shapes: n images. Wherever accuracies are compared, it is image by image: bool `[n]`, right or not.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rlskit import seeds
from rlskit.attacks import PreparedAttack
from rlskit.audit.defended import Defended, randomness
from rlskit.errors import UntrustedError
from rlskit.seeds import Purpose


@dataclass(frozen=True)
class Case:
    """What is audited.

    Attributes:
        defended: The model, seen from both sides.
        images: `[n, C, H, W]` in [0, 1], on the model's device.
        labels: Long `[n]`.
        classes: Number of classes.
        attack: The attack under audit.
        protocol: Its view, one of `rlskit.threat.view.PROTOCOLS`.
        n_attacked: Draws in that view.
        seed: All randomness derives from it.
        batch_size: Images that are attacked together.
        queries: Of the square attack.
        points: Of the random search.
        surrogate: Another network, to transfer from; None for no such test.
    """

    defended: Defended
    images: Tensor
    labels: Tensor
    classes: int
    attack: PreparedAttack
    protocol: str = "transfer"
    n_attacked: int = 1
    seed: int = 0
    batch_size: int = 128
    queries: int = 500
    points: int = 100
    surrogate: nn.Module | None = None

    @property
    def eps(self) -> float:
        """The budget of the attack under audit, in [0, 1]."""
        assert self.attack.eps is not None
        return self.attack.eps

    @property
    def is_random(self) -> bool:
        """Whether there is more than one draw to attack."""
        return self.defended.draws != 1

    @cached_property
    def everything(self) -> Tensor:
        """The indices of all images, long `[n]`."""
        return torch.arange(len(self.images), device=self.images.device)

    @cached_property
    def clean(self) -> Tensor:
        """Which images are right, bool `[n]`."""
        return self.answers(self.images) == self.labels

    @cached_property
    def robust(self) -> Tensor:
        """Which images are right under the attack under audit, bool `[n]`."""
        return self.under(self.attack)

    @cached_property
    def survivors(self) -> Tensor:
        """The indices of the images that it did not fool, long."""
        return self.robust.nonzero().squeeze(1)

    def view(self, repeat: int = 0) -> nn.Module:
        """Return the attacker's view."""
        return self.defended.view(self.protocol, self.n_attacked, repeat)

    def fixed_view(self) -> nn.Module:
        """Return the view for attacks that compare answers: its draws stay the same.

        Those of a module of one's own cannot be held; its mean over many calls changes little.
        """
        return self.defended.view("transfer" if self.n_attacked == 1 else "multi", self.n_attacked)

    def under(
        self, attack: PreparedAttack, view: nn.Module | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """Return which images are right under an attack.

        Args:
            attack: Any attack.
            view: What it is computed on; by default a fresh view of the case's.
            rows: Indices of the images to attack; all by default.
        """
        rows = self.everything if rows is None else rows
        parts = [rows[:0].bool()]
        for some in torch.split(rows, self.batch_size) if len(rows) else ():
            with randomness(self.seed, Purpose.ATTACK, self.images.device):
                moved = attack(
                    self.view() if view is None else view,
                    self.images[some],
                    self.labels[some],
                    generator=seeds.generator(self.seed, Purpose.ATTACK),
                )
            parts.append(self.right(moved, some))
        return torch.cat(parts)

    def right(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return where the defender's answer is right, bool.

        All images are answered, the others as they are, so that a random model's noise for an
        image is the same whatever it is compared with: else the survivors of one attack would fall
        to the next by chance.

        Args:
            images: Those images, possibly changed.
            rows: Their indices; all by default.

        Raises:
            UntrustedError: An answer is NaN or infinite.
        """
        rows = self.everything if rows is None else rows
        asked = self.images.clone()
        asked[rows] = images
        return (self.answers(asked) == self.labels)[rows]

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Return the defender's answer to as many images as there are, long `[n]`.

        Raises:
            UntrustedError: An answer is NaN or infinite.
        """
        with randomness(self.seed, Purpose.ANSWER, images.device):
            answer = self.defended.answer()
            logits = torch.cat([answer(some) for some in torch.split(images, self.batch_size)])
        if not logits.isfinite().all():
            raise UntrustedError("the model answers with NaN or infinite logits")
        return logits.argmax(1)

    def attack_with(self, **params: Any) -> PreparedAttack:
        """Return the attack under audit with some parameters of its own changed, others ignored.

        The step keeps its ratio to the budget: an attack that does not move is not repaired.
        """
        old = self.attack.params
        given = {name: value for name, value in params.items() if name in old}
        if "eps" in given and old.get("step_size") is not None and self.eps:
            given["step_size"] = min(1.0, old["step_size"] * given["eps"] / self.eps)
        return dataclasses.replace(self.attack, params={**old, **given})

    def attacks_with_losses(self, **params: Any) -> list[PreparedAttack]:
        """Return the attack under audit on the cross-entropy and on the margin."""
        return [self.attack_with(**params).with_loss(loss) for loss in ("ce", "margin")]
