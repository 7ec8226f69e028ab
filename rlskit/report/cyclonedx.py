"""A model as a component of a CycloneDX 1.6 bill of materials, with its performance metrics.

https://cyclonedx.org/docs/1.6/json/#components_items_modelCard.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from rlskit.report.carded import Card, Metric


def bill_of_materials(card: Card) -> str:
    """Return the JSON; the same card gives the same."""
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": card.digest,
        "name": card.name,
        "modelCard": {
            "modelParameters": {
                "task": "image-classification",
                "modelArchitecture": card.result.model.architecture,
                "datasets": _datasets(card),
            },
            "quantitativeAnalysis": {"performanceMetrics": list(map(_metric, card.metrics))},
        },
        "properties": [
            {"name": "rlskit:sha256-of-tensors-and-definition", "value": card.digest},
            {"name": "rlskit:defense", "value": card.result.defense},
        ],
    }
    if card.file_sha256 is not None:
        component["hashes"] = [{"alg": "SHA-256", "content": card.file_sha256}]
    if card.warnings:
        considered = {"technicalLimitations": list(card.warnings)}
        component["modelCard"]["considerations"] = considered
    version = card.result.versions.get("rlskit", "")
    tool = {"type": "application", "name": "rlskit", **({"version": version} if version else {})}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"tools": {"components": [tool]}},
        "components": [component],
    }
    number = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(document, sort_keys=True))
    return json.dumps({**document, "serialNumber": f"urn:uuid:{number}"}, indent=2) + "\n"


def _metric(metric: Metric) -> dict[str, Any]:
    low, high = metric.interval
    return {
        "type": metric.type,
        "value": f"{metric.value.mean:.6f}",
        "slice": f"{metric.name}; {metric.data} ({metric.split})",
        "confidenceInterval": {"lowerBound": f"{low:.6f}", "upperBound": f"{high:.6f}"},
    }


def _datasets(card: Card) -> list[dict[str, Any]]:
    """Return what the model was measured on."""
    names = dict.fromkeys((one.data, one.split) for one in card.metrics)
    return [{"type": "dataset", "name": f"{name} ({split})"} for name, split in names]
