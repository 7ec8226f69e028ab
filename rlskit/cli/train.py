"""`rlskit train`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli.flags import (
    OUTPUT,
    ForceOption,
    ProgressOption,
    QuietOption,
    SeedOption,
    WorkersOption,
    under,
)
from rlskit.cli.forecast import forecast
from rlskit.cli.option_sets import Images, Network
from rlskit.cli.ranked import one_speaks
from rlskit.cli.show import note, say
from rlskit.cli.ticker import progress_shown


def train(
    *,
    network: Network,
    images: Images,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    group_size: Annotated[int, typer.Option(help="K: sampled models per step.")] = 3,
    loss: Annotated[str, typer.Option(help="ce or mse, of the mean prediction.")] = "ce",
    individual: Annotated[
        float, typer.Option(help="Weight of the mean of the K single losses.")
    ] = 0.0,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of SGD.")] = 5e-4,
    schedule: Annotated[str, typer.Option(help="step, cosine or one-cycle.")] = "step",
    step_epochs: Annotated[int, typer.Option(help="step divides by 10 every so many.")] = 50,
    augment: Annotated[str, typer.Option(help="none or crop-flip.")] = "none",
    amp: Annotated[bool, typer.Option("--amp", help="Compute in bfloat16.")] = False,
    holdout: Annotated[
        float, typer.Option(help="Share of training images that chooses the best epoch.")
    ] = 0.05,
    bn_batches: Annotated[
        int, typer.Option(help="Batches that BatchNorm statistics are re-estimated on.")
    ] = 50,
    adversarial: Annotated[
        str, typer.Option(help="none, or pgd: train on images that PGD found.")
    ] = "none",
    adversarial_eps: Annotated[str, typer.Option(help="Its budget, linf.")] = "8/255",
    adversarial_steps: Annotated[int, typer.Option(help="Its steps.")] = 10,
    adversarial_step_size: Annotated[str, typer.Option(help="Length of a step.")] = "2/255",
    num_workers: WorkersOption = 0,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None, under(OUTPUT, "Checkpoint to write; CHECKPOINT itself.", "--out", "-o")
    ] = None,
    save_every: Annotated[
        str,
        under(
            OUTPUT,
            "Steps or minutes between two saves within an epoch: 500, 10min.",
            "--save-every",
        ),
    ] = "10min",
    force: ForceOption = False,
    progress: ProgressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a model by group optimization; writes the last and the best epoch, and a log.

    The same command goes on with a training that was interrupted. Started by torchrun, several
    processes share every step's images.
    """
    import rlskit
    from rlskit.training import TrainOptions

    options = TrainOptions(
        epochs=epochs, batch_size=batch_size, group_size=group_size, loss=loss,
        individual=individual, lr=lr, momentum=momentum, weight_decay=weight_decay,
        schedule=schedule, step_epochs=step_epochs, augment=augment, amp=amp, holdout=holdout,
        bn_batches=bn_batches, num_workers=num_workers, seed=seed, adversarial=adversarial,
        adversarial_eps=adversarial_eps, adversarial_steps=adversarial_steps,
        adversarial_step_size=adversarial_step_size,
    )  # fmt: skip
    with one_speaks() as ranks:
        model = network.load()
        data = images.load(model, "train")
        if not ranks.many:  # they are faster than one, by how much is not known
            forecast("train", model, data, vars(options), quiet=quiet)
        with progress_shown(progress, quiet or not ranks.first) as told:
            result = rlskit.train(
                model, data, options=options, out=out or network.checkpoint, force=force,
                save_every=save_every, progress=told, note=partial(note, quiet=quiet),
            )  # fmt: skip
    last = result.epochs[-1]
    held = (
        "" if last.holdout_accuracy is None else f", held out {100 * last.holdout_accuracy:.1f} %"
    )
    say(
        f"{result.last}: {result.steps} steps on {data.name}, loss {last.loss:.4f}, "
        f"accuracy {100 * last.accuracy:.1f} %{held}, {last.images_per_second:.0f} images/s"
    )
    note(f"best epoch {result.best_epoch}: {result.best}; log: {result.log}", quiet=quiet)
