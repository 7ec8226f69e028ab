"""`rlskit convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlskit.cli import complete
from rlskit.cli.flags import (
    DATA,
    OUTPUT,
    DataDirOption,
    ForceOption,
    QuietOption,
    SeedOption,
    SkipBadOption,
    under,
)
from rlskit.cli.opening import Constants, numbers
from rlskit.cli.show import note
from rlskit.errors import RequestError


def convert(
    name: Annotated[
        str,
        typer.Argument(
            help="timm or torchvision name, FILE.py:factory, package.module:factory, "
            "FILE.pt2 (torch.export, TorchScript) or hf:FOLDER (transformers).",
            autocompletion=complete.networks,
        ),
    ],
    *,
    banks: Annotated[
        int | None, typer.Option(help="M; 2 for rls, 3 for ensemble, adp, gal.")
    ] = None,
    defense: Annotated[
        str,
        typer.Option(
            help="rls, ensemble, adp, gal, crossmax, rse, dropout, sap, smoothing, resize-pad, "
            "random-bits, random-filters, random-norm, weight-noise, stochastic (a network "
            "with randomness of its own) or none; docs/defenses.md.",
            autocompletion=complete.defenses,
        ),
    ] = "rls",
    settings: Annotated[
        str | None,
        typer.Option(help="The defense's own numbers, as alpha=1,beta=0.5; docs/defenses.md."),
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="What is sampled: layer, block, stage, model or norm.")
    ] = None,
    bank_only: Annotated[
        str | None, typer.Option(help="Glob of layer names; all others are shared by the banks.")
    ] = None,
    bank_probs: Annotated[
        str | None, typer.Option(help="Probability of each bank, as 0.7,0.3; by default 1/M each.")
    ] = None,
    data: Annotated[
        str | None,
        under(
            DATA,
            "Data set that sets classes, channels, size, mean, std (digits).",
            autocompletion=complete.data,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="Start every bank from this .safetensors or .pth; given several times, each from "
            "its own."
        ),
    ] = None,
    constants: Constants,
    classes: Annotated[
        str | None,
        under(DATA, "Text file: the classes' names, one a line, in order; or imagenet."),
    ] = None,
    skip_bad: SkipBadOption = False,
    transform_input: Annotated[
        bool | None,
        typer.Option(
            "--transform-input/--no-transform-input",
            help="Whether torchvision's GoogLeNet or Inception normalises once more (as its own).",
        ),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="independent, copy or jitter (copies with a little noise).")
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path,
        under(OUTPUT, "Checkpoint to write.", "--out", "-o", envvar="RLSKIT_CHECKPOINT"),
    ] = Path("rls.safetensors"),
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make an M-bank model of any timm, torchvision or own classifier."""
    from rlskit.conversion import to_banks as conversion
    from rlskit.models import checkpoint
    from rlskit.storage.files import refuse_existing

    refuse_existing(out, force)
    model = conversion.convert(
        name,
        banks=banks,
        defense=defense,
        granularity=granularity,
        bank_only=bank_only,
        bank_probs=numbers("--bank-probs", bank_probs) or (),
        settings=_settings(settings),
        data=data,
        data_dir=data_dir,
        weights=weights,
        **constants.given,
        classes=classes,
        skip_bad=skip_bad,
        transform_input=transform_input,
        init=init,
        seed=seed,
    )
    checkpoint.save(model, out, force=force)
    card = model.card
    for sentence in (*card.assumed, *card.notes):
        note(sentence, loud=True)
    shape = "x".join(map(str, card.pixels.shape))
    note(
        f"{out}: {card.architecture.label}, defense {card.defense}, {model.num_banks} banks of "
        f"{model.num_layers} layers, {card.classes} classes, {shape} pixels"
        + (f", read as {card.outputs}" if card.outputs not in ("", "logits") else "")
        + (f" from {card.output_key!r} of its answer" if card.output_key else "")
        + ("" if card.trained else "; untrained, so `rlskit train` comes next"),
        quiet=quiet,
    )


def _settings(text: str | None) -> dict[str, float]:
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    try:
        return {name.strip().replace("-", "_"): float(value) for name, _, value in pairs}
    except ValueError:
        raise RequestError(
            f"--settings {text!r} is no list of names and numbers such as alpha=2,beta=0.5"
        ) from None
