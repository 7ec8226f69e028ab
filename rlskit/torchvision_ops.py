"""Make `import torchvision` work beside a CPU build of torch.

The compiled operators of torchvision cannot load there, and its import then fails on registering a
fake kernel for them ("operator torchvision::nms does not exist"). rlskit uses none of them, so
their schemas are declared, and only when they are missing.
"""

from __future__ import annotations

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # a torch.library.Library takes its schemas along when it is collected


def declare_missing_operators() -> None:
    """Declare torchvision's operator schemas unless its compiled operators can be loaded.

    Call it before the first import of torchvision or timm; a second call does nothing.
    """
    if _declared or _operators_load():
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _operators_load() -> bool:
    """Say whether torchvision's own shared library gives the operators; it is loaded if so."""
    import importlib.util
    from pathlib import Path

    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for path in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
        except OSError:
            return False
        return hasattr(torch.ops.torchvision, "nms")
    return False
