"""torchattacks' own attacks, untouched, under our option names: `--engine torchattacks`.

Only what surrounds them is ours: the global random state comes from the generator and goes back to
it, standard output stays clean, the model is given back as it was, and non-finite numbers are an
error. torchattacks is imported when one of them runs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rlskit.attacks.guard import under_attack
from rlskit.errors import RequestError


def run_torchattacks(
    attack: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator,
    **arguments: Any,
) -> Tensor:
    """Return what `torchattacks.<attack>(model, **arguments)(images, labels)` returns, bit for bit.

    With images on the CPU, a generator seeded with `s` gives what `torch.manual_seed(s)` before a
    direct call gives; the generator is left in the state that the attack reached.

    Args:
        attack: Name of a class of torchattacks.
        model: Maps images to logits; it may be without parameters.
        images: `[B, C, H, W]` in [0, 1].
        labels: Long `[B]`.
        generator: Source of all randomness.
        arguments: torchattacks' own arguments.

    Raises:
        UntrustedError: Non-finite logits or gradients.
    """
    import torchattacks

    with under_attack(model), _global_rng(generator, images.device):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when there is no parameter
            attacker = getattr(torchattacks, attack)(model, **arguments)
        attacker.set_device(images.device)
        adversarial: Tensor = attacker(images, labels)
    return adversarial.detach()


@contextlib.contextmanager
def _global_rng(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Fork the global random state, start it from `generator`, and advance `generator` with it."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        if cuda:  # a CPU generator's state does not fit a GPU: one number of it seeds both
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            yield
        else:
            torch.set_rng_state(generator.get_state())
            yield
            generator.set_state(torch.get_rng_state())


def deepfool(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    generator: torch.Generator,
) -> Tensor:
    """Run `torchattacks.DeepFool` (l2, all classes; NaN where the gradient is zero)."""
    return run_torchattacks(
        "DeepFool", model, images, labels, generator=generator, steps=steps, overshoot=overshoot
    )


def cw(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    c: float = 0.01,
    kappa: float = 0.1,
    steps: int = 1000,
    lr: float = 0.01,
    generator: torch.Generator,
) -> Tensor:
    """Run `torchattacks.CW` (blind on negative logits; pixels at 0 and 1 do not move)."""
    return run_torchattacks(
        "CW", model, images, labels, generator=generator, c=c, kappa=kappa, steps=steps, lr=lr
    )


def ead(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    c: float = 0.01,
    beta: float = 0.01,
    kappa: float = 0.1,
    steps: int = 1000,
    lr: float = 0.01,
    search_steps: int = 1,
    decision_rule: str = "en",
    generator: torch.Generator,
) -> Tensor:
    """Run `torchattacks.EADEN` or `torchattacks.EADL1` (FISTA; one early stop for the batch).

    Raises:
        RequestError: Fewer than 10 steps, by which torchattacks divides by zero.
    """
    if steps < 10:
        raise RequestError(f"torchattacks' EAD needs --steps of at least 10, not {steps}")
    return run_torchattacks(
        {"en": "EADEN", "l1": "EADL1"}[decision_rule],
        model,
        images,
        labels,
        generator=generator,
        initial_const=c,
        beta=beta,
        kappa=kappa,
        max_iterations=steps,
        lr=lr,
        binary_search_steps=search_steps,
    )
