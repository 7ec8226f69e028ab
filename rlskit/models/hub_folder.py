"""Image classifiers in the folders of Hugging Face's transformers: `hf:PATH`.

`save_pretrained` writes such a folder, and `hf download NAME --local-dir PATH` fetches one. Its
config says which network transformers builds, its preprocessor_config what images that takes. No
code in it is run, and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from rlskit.errors import RequestError, reason
from rlskit.models.stated import Stated
from rlskit.storage.files import parse_json
from rlskit.torchvision_ops import declare_missing_operators

PREFIX = "hf:"

_CONFIG = "config.json"
_SHOWN = 3
_UNSAID = "LABEL_"
"""What transformers calls a class that nobody named, with its number."""


def config_file(spec: str) -> Path:
    """Return the config of a folder, `hf:PATH`.

    Raises:
        RequestError: There is no such folder.
    """
    folder = Path(spec.removeprefix(PREFIX)).expanduser()
    if not (folder / _CONFIG).is_file():
        raise RequestError(
            f"{spec} is no folder with a {_CONFIG}, as save_pretrained writes it; "
            "fetch one into a folder of yours, as with Hugging Face's own command hf download"
        )
    return folder / _CONFIG


def read_folder(spec: str) -> Stated:
    """Return what a folder says of its images and classes.

    Raises:
        RequestError: It is unreadable, or wants images that rlskit cannot give.
    """
    folder = config_file(spec).parent
    config = _json(folder / _CONFIG)
    file = folder / "preprocessor_config.json"
    images = _json(file) if file.is_file() else {}
    try:
        mean, std = _constants(images, str(file))
        channels = config.get("num_channels")
        return Stated(
            size=_size(images) or _sides(config.get("image_size")),
            channels=None if channels is None else int(channels),
            mean=mean,
            std=std,
            class_names=_class_names(config.get("id2label") or {}),
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise RequestError(f"{folder} cannot be read ({reason(error)})") from error


def build_from_folder(path: str, *, pretrained: bool) -> nn.Module:
    """Return the network of a folder, with its weights or random ones.

    Raises:
        RequestError: transformers is not installed, knows no such image classifier, or would leave
            some of its tensors random.
    """
    declare_missing_operators()  # of torchvision, which transformers imports
    try:
        import transformers
    except ImportError:
        raise RequestError(f"{PREFIX}{path} needs transformers: pip install 'rlskit[hf]'") from None
    kind = transformers.AutoModelForImageClassification
    only: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    said = transformers.utils.logging
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()  # what it warns of is refused below
    said.disable_progress_bar()
    try:
        network: nn.Module
        if pretrained:
            network, found = kind.from_pretrained(path, output_loading_info=True, **only)
        else:
            config = transformers.AutoConfig.from_pretrained(path, **only)
            network, found = kind.from_config(config, trust_remote_code=False), {}
    except Exception as error:  # whatever transformers raises
        raise RequestError(
            f"{PREFIX}{path} is no image classifier of transformers ({reason(error)})"
        ) from error
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()
    _check_loaded(found, path)
    return network


def _check_loaded(found: Any, path: str) -> None:
    """Require that weights and network have the same tensors.

    Raises:
        RequestError: Some would stay random, or be left out.
    """
    for kind, what in (
        ("missing_keys", "lack"), ("mismatched_keys", "have another shape of"),
        ("unexpected_keys", "hold also"),
    ):  # fmt: skip
        names = sorted(map(str, found.get(kind) or ()))
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise RequestError(
                f"the weights in {path} {what} {', '.join(names[:_SHOWN])}{more}; name the folder "
                "of a trained image classifier"
            )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{file} cannot be read as JSON ({reason(error)})") from error
    if not isinstance(found, dict):
        raise RequestError(f"{file} holds no object")
    return found


def _size(images: dict[str, Any]) -> tuple[int, int] | None:
    """Return the size that a preprocessor brings images to: what it cuts out, or resizes to."""
    for step, key in (("do_center_crop", "crop_size"), ("do_resize", "size")):
        if images.get(step, key == "size") and (found := _sides(images.get(key))):
            return found
    return None


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        both = (size.get("height"), size.get("width"))
        size = size.get("shortest_edge") if None in both else both
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _constants(
    images: dict[str, Any], file: str
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and std; None where nothing says.

    Raises:
        RequestError: The network wants blue before red, or another range than [0, 1].
    """
    if not images:
        return None, None
    if images.get("do_flip_channel_order"):
        raise RequestError(
            f"{file} wants blue before red (do_flip_channel_order), which rlskit does not give; "
            "wrap the network in a factory that turns the channels round"
        )
    factor = float(images.get("rescale_factor", 1 / 255))
    if (
        not images.get("do_rescale", True)
        or abs(255 * factor - 1) > 1e-3
        or (images.get("rescale_offset") or images.get("offset"))
    ):
        raise RequestError(
            f"{file} wants other pixels than [0, 1] before mean and std; wrap the network in a "
            "factory that scales them"
        )
    if not images.get("do_normalize", True):
        return (0.0,), (1.0,)
    mean, std = (images.get(name) for name in ("image_mean", "image_std"))
    return tuple(map(float, mean)) if mean else None, tuple(map(float, std)) if std else None


def _class_names(labels: dict[str, Any]) -> tuple[str, ...]:
    """Return the names in the order of the logits.

    Raises:
        ValueError: The numbers have gaps.
    """
    numbered = {int(number): str(name) for number, name in labels.items()}
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError("the numbers in id2label have gaps")
    names = tuple(numbered[number] for number in range(len(numbered)))
    return () if all(name.startswith(_UNSAID) for name in names) else names
