"""What a result is about: a model, and the images that it is scored on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlskit.data import MEMORY, Data, are_numbers, load
from rlskit.data.adversarial_file import SavedAdversarial, SavedData, SavedFacts, read_adversarial
from rlskit.defenses import defense_of
from rlskit.documents import from_json, to_json
from rlskit.errors import RequestError, RlskitError, reason
from rlskit.models import checkpoint
from rlskit.models.banks import BankedModel
from rlskit.results.result import AttackFacts, CheckpointFacts, ImageFacts, ModelFacts
from rlskit.threat.preflight import check_weights

LIBRARIES = ("rlskit", "torch", "torchvision", "timm", "torchattacks", "adv-lib")
"""What a number depends on."""

version = cache(metadata.version)  # which reads a file each time


def library_versions() -> dict[str, str]:
    """Return the version of each of `LIBRARIES`, but of extras that are absent."""
    return {name: version(name) for name in LIBRARIES if find_spec(name.replace("-", "_"))}


@dataclass(frozen=True)
class Subject:
    """A model and the images that it is scored on.

    Attributes:
        model: The model, on the device it runs on.
        data: The images as the model takes them.
        digest: The model's sha256, of `checkpoint.digest_of`.
        saved: What a file of adversarial images says of itself; None for an ordinary data set.
        attack: What made them, as the file says.
        clean: The data; of saved adversarial images the clean ones, where they are known by name.
    """

    model: BankedModel
    data: Data
    digest: str
    saved: SavedFacts | None = None
    attack: AttackFacts | None = None
    clean: Data | None = None

    @property
    def made_here(self) -> bool:
        """Whether saved images were made against this very model."""
        return self.saved is not None and self.saved.checkpoint_sha256 == self.digest

    def facts(self) -> dict[str, Any]:
        """Return the fields of a `Result` that do not depend on what is measured."""
        return {
            "checkpoint": CheckpointFacts(path=self.model.path, sha256=self.digest),
            "model": self._model_facts(),
            "defense": self.model.card.defense,
            "data": self.image_facts(),
            "protocol": "clean" if self.saved is None else self.saved.protocol,
            "attack": self.attack,
            "n_attacked": None if self.saved is None else self.saved.n_attacked,
            "device": self.model.device.type,
            "versions": library_versions(),
            "warnings": self._warnings(),
        }

    def identity(self) -> dict[str, Any]:
        """Return all of `facts` that decides numbers, and the model's digest, as JSON values."""
        facts = {k: v for k, v in self.facts().items() if k not in ("checkpoint", "warnings")}
        # What was left out is not in the numbers: the run goes on when it is repaired or removed.
        facts["data"] = replace(facts["data"], skipped=None)
        return {**{k: to_json(v) for k, v in facts.items()}, "checkpoint_sha256": self.digest}

    def image_facts(self) -> ImageFacts:
        """Return what stands as `data` in a result.

        Saved adversarial images are named by the data set that they were made from, and by their
        own digest as `adversarial_sha256`.
        """
        data = self.data
        return ImageFacts(
            name=data.name,
            split=data.split,
            n=len(data),
            sha256=data.sha256 if self.saved is None else self.saved.data.sha256,
            adversarial_sha256=None if self.saved is None else data.sha256,
            skipped=data.skipped or None,
            order=data.order,
        )

    def _model_facts(self) -> ModelFacts:
        model = self.model
        return ModelFacts(
            architecture=model.card.architecture.label,
            banks=model.num_banks,
            layers=model.num_layers,
            granularity=model.partition.granularity,
            settings=model.card.settings,
            parameters=sum(p.numel() for p in model.banks[0].parameters()),
            trained=model.card.trained,
            outputs=model.card.outputs or "logits",
            draws=defense_of(model).distinct(model),
        )

    def _warnings(self) -> tuple[str, ...]:
        """Return what a reader of numbers about this model on this data must know first."""
        card, data, found = self.model.card, self.image_facts(), [*self.model.warnings]
        if not card.trained:
            found.append("UNTRAINED MODEL: its weights are random and these numbers mean nothing.")
        elif card.data and not self._has_moved():
            found.append(f"The model was made for {card.data}, but this is {data.name}.")
        elif not card.data and self._is_named_otherwise():
            found.append(
                f"The classes of {data.name} ({', '.join(self.data.class_names[:3])}, ...) are "
                f"called otherwise than the model's ({', '.join(card.names[:3])}, ...): their "
                "order is taken to be the same."
            )
        found += [*card.assumed, *self.data.alterations]
        if self.data.among is not None:
            found.append(
                f"SUBSET: the images are of {self.data.among} of the model's {card.classes} "
                "classes, and any of these may be the answer: all logits are scored and attacked."
            )
        if skipped := self.data.skipped:
            verb = "counts" if skipped == 1 else "count"
            what = f"{skipped} image{'s'[: skipped != 1]}"
            found.append(f"SKIPPED: {what} could not be read and {verb} in no number.")
        if any(_trained_on(record, data) for record in card.training):
            found.append("TRAINING IMAGES: the model was trained on the images it is scored on.")
        if self.saved is not None and not self.made_here:
            found.append("These images were made against another checkpoint: a transfer test.")
        return tuple(found)

    def _is_named_otherwise(self) -> bool:
        own, head = self.data.class_names, self.model.card.names
        return bool(head) and own != head and not are_numbers(own) and not are_numbers(head)

    def _has_moved(self) -> bool:
        """Whether the data are those that the model was made for, under another path.

        Folders are told by the names of their classes; where those are numbers, and of files, the
        last part of the path must be the same.
        """
        card, data, name = self.model.card, self.data, self.image_facts().name
        if card.data == name or MEMORY in (card.data, name):
            return True
        if data.class_names == card.names and not are_numbers(card.names):
            return True
        (kind, before), (other, after) = (one.partition(":")[::2] for one in (card.data, name))
        return bool(before) and kind == other and Path(before).name == Path(after).name


def _trained_on(record: dict[str, Any], data: ImageFacts) -> bool:
    """Whether a training had these images, or others of the same split of the same data set."""
    same_split = (record.get("data"), record.get("split")) == (data.name, data.split)
    return same_split or record.get("data_sha256") == data.sha256


def subject_of(
    model: BankedModel, data: str | Data | None, adversarial: str | Path | None = None
) -> Subject:
    """Return a model with finite weights and the images to score it on, fitted to it.

    Args:
        model: From `convert` or `load`.
        data: A data set's name, or data from `load_data`; by default what the model was made for.
        adversarial: A file that an attack saved; its images take the place of the data, which may
            be given as the clean images that they were made from.

    Raises:
        RequestError: The data or the file is unknown, or does not fit the model.
        UntrustedError: The weights are not finite.
    """
    check_weights(model)
    digest = checkpoint.digest_of(model)
    if adversarial is not None:
        file = read_adversarial(adversarial, model.card.pixels.shape, model.card.classes)
        clean = _clean_images(file.about.data, model, data)
        return Subject(model, file.data, digest, file.about, _attack(file, adversarial), clean)
    if not isinstance(data, Data):
        data = load(data or model.card.default_data(), "test")
    card = model.card
    data = data.adapted(card.pixels, card.classes, card.names)
    return Subject(model, data, digest, clean=data)


def _attack(file: SavedAdversarial, path: str | Path) -> AttackFacts:
    """Return what a file of adversarial images says of the attack that made them.

    Raises:
        RequestError: It is none of rlskit's.
    """
    try:
        return from_json(file.about.attack, AttackFacts)
    except ValueError as error:
        raise RequestError(f"{path}: its metadata is unreadable ({reason(error)})") from error


def _clean_images(about: SavedData, model: BankedModel, data: str | Data | None) -> Data | None:
    """Return the images that adversarial ones were made from; None where they are not at hand.

    Args:
        about: What their file says of them; a path in it is not followed.
        model: What they are fitted to.
        data: What may be them; else the data set of that name.
    """
    if ":" in about.name and not isinstance(data, Data):
        return None
    try:
        if not isinstance(data, Data):
            data = load(about.name, about.split, limit=about.n, order=about.order)
        card = model.card
        data = data.adapted(card.pixels, card.classes, card.names)
        return data if data.sha256 == about.sha256 else None
    except RlskitError:
        return None
