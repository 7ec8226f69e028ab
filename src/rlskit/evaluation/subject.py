"""What a result is about: a model, and the images that it is scored on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlskit import checkpoint
from rlskit.adversarial import read_adversarial
from rlskit.data import MEMORY, Data, load
from rlskit.errors import RequestError, RlskitError
from rlskit.models.banks import BankedModel
from rlskit.preflight import check_weights

LIBRARIES = ("rlskit", "torch", "torchvision", "timm", "torchattacks")
"""What a number depends on."""


@dataclass(frozen=True)
class Subject:
    """A model and the images that it is scored on.

    Attributes:
        model: The model, on the device it runs on.
        data: The images as the model takes them.
        digest: The sha256 of the model's tensors.
        saved: What a file of adversarial images says of itself; None for an ordinary data set.
        clean: The data; of saved adversarial images the clean ones, where they are known by name.
    """

    model: BankedModel
    data: Data
    digest: str
    saved: dict[str, Any] | None = None
    clean: Data | None = None

    @property
    def made_here(self) -> bool:
        """Whether saved images were made against this very model."""
        return self.saved is not None and self.saved["checkpoint_sha256"] == self.digest

    def facts(self) -> dict[str, Any]:
        """Return the fields of a `Result` that do not depend on what is measured."""
        return {
            "checkpoint": {"path": self.model.path, "sha256": self.digest},
            "model": self._model_json(),
            "defense": self.model.card.defense,
            "data": self.data_json(),
            "protocol": "clean" if self.saved is None else self.saved["protocol"],
            "attack": None if self.saved is None else self.saved["attack"],
            "n_attacked": None if self.saved is None else self.saved["n_attacked"],
            "device": self.model.device.type,
            "versions": {name: version(name) for name in LIBRARIES},
            "warnings": self._warnings(),
        }

    def identity(self) -> dict[str, Any]:
        """Return all of `facts` that decides numbers, and what of the model no tensor shows."""
        card = self.model.card
        definition = [
            card.architecture.to_json(), card.pixels.to_json(), self.model.partition.to_json()
        ]  # fmt: skip
        text = json.dumps(definition, sort_keys=True)
        facts = {k: v for k, v in self.facts().items() if k not in ("checkpoint", "warnings")}
        return {
            **facts,
            "checkpoint_sha256": self.digest,
            "definition_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }

    def data_json(self) -> dict[str, Any]:
        """Return the JSON object that stands as `data` in a result.

        Saved adversarial images are named by the data set that they were made from, and by their
        own digest as `adversarial_sha256`.
        """
        data = self.data
        if self.saved is not None:
            own = {"n": len(data), "adversarial_sha256": data.sha256}
            return {**self.saved["data"], **own}
        return {"name": data.name, "split": data.split, "n": len(data), "sha256": data.sha256}

    def _model_json(self) -> dict[str, Any]:
        model = self.model
        return {
            "architecture": model.card.architecture.label,
            "banks": model.num_banks,
            "layers": model.num_layers,
            "granularity": model.partition.granularity,
            "settings": model.card.settings,
            "parameters": sum(p.numel() for p in model.banks[0].parameters()),
            "trained": model.card.trained,
            "outputs": model.card.outputs or "logits",
        }

    def _warnings(self) -> tuple[str, ...]:
        """Return what a reader of numbers about this model on this data must know first."""
        card, data, found = self.model.card, self.data_json(), [*self.model.warnings]
        if not card.trained:
            found.append("UNTRAINED MODEL: its weights are random and these numbers mean nothing.")
        elif card.data and card.data != data["name"] and MEMORY not in (card.data, data["name"]):
            found.append(f"The model was made for {card.data}, but this is {data['name']}.")
        if any(_trained_on(record, data) for record in card.training):
            found.append("TRAINING IMAGES: the model was trained on the images it is scored on.")
        if self.saved is not None and not self.made_here:
            found.append("These images were made against another checkpoint: a transfer test.")
        return tuple(found)


def _trained_on(record: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a training had these images, or others of the same split of the same data set."""
    same_split = (record.get("data"), record.get("split")) == (data["name"], data["split"])
    return same_split or record.get("data_sha256") == data["sha256"]


def subject_of(
    model: BankedModel, data: str | Data | None, adversarial: str | Path | None = None
) -> Subject:
    """Return a model with finite weights and the images to score it on, fitted to it.

    Args:
        model: From `convert` or `load`.
        data: A `--data` name, or data from `load_data`; by default what the model was made for.
        adversarial: A file that an attack saved; its images take the place of the data, which may
            be given as the clean images that they were made from.

    Raises:
        RequestError: The data or the file is unknown, or does not fit the model.
        UntrustedError: The weights are not finite.
    """
    check_weights(model)
    digest = checkpoint.fingerprint(checkpoint.stored_tensors(model))
    if adversarial is not None:
        file = read_adversarial(adversarial, model.card)
        clean = _clean_images(file.about["data"], model, data)
        return Subject(model, file.data, digest, file.about, clean)
    if not isinstance(data, Data):
        data = load(data or model.card.default_data(), "test")
    _require_order_of_classes(model, data)
    data = data.adapted(model.card.pixels, model.card.classes)
    return Subject(model, data, digest, clean=data)


def _clean_images(
    about: dict[str, Any], model: BankedModel, data: str | Data | None
) -> Data | None:
    """Return the images that adversarial ones were made from; None where they are not at hand.

    Args:
        about: What their file says of them; a path in it is not followed.
        model: What they are fitted to.
        data: What may be them; else the data set of that name.
    """
    if ":" in about["name"] and not isinstance(data, Data):
        return None
    try:
        if not isinstance(data, Data):
            data = load(about["name"], about["split"], limit=about["n"])
        if data.sha256 != about["sha256"]:
            return None
        return data.adapted(model.card.pixels, model.card.classes)
    except RlskitError:
        return None


def _require_order_of_classes(model: BankedModel, data: Data) -> None:
    """Require that a class whose name the training data had, too, has the same number here.

    Raises:
        RequestError: It has another, as where a folder lacks a class or has one more.
    """
    record = model.card.training[-1] if model.card.training else {}
    if MEMORY in (data.name, record.get("data")):  # whose classes have numbers only
        return
    numbers = {str(name): number for number, name in enumerate(record.get("class_names", []))}
    for number, name in enumerate(data.class_names):
        if numbers.get(name, number) != number:
            raise RequestError(
                f"{data.name} has other classes than the model was trained on: {name!r} is class "
                f"{number} here and was {numbers[name]}; use data of the same classes"
            )
