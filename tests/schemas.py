"""The JSON Schemas in docs/, made of the types and their docstrings.

python tests/schemas.py     # writes them again
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from rlskit.audit.audit_result import SCHEMA as AUDIT
from rlskit.audit.audit_result import AuditResult
from rlskit.documents import json_schema
from rlskit.results.comparison import COMPARISON_SCHEMA, Comparison, ComparisonDocument
from rlskit.results.result import SCHEMA, Result

DOCS = Path(__file__).resolve().parents[1] / "docs"

DOCUMENTS: dict[Any, str] = {Result: "result", AuditResult: "audit", Comparison: "comparison"}
"""What is written as JSON -> the name of its schema."""


def schemas() -> Iterator[tuple[Path, str]]:
    """Yield each file and what it must hold."""
    for name, kind, more in (
        ("result", Result, {"schema": {"const": SCHEMA}}),
        ("audit", AuditResult, {"schema": {"const": AUDIT}, "passed": {"type": "boolean"}}),
        ("comparison", ComparisonDocument, {"schema": {"const": COMPARISON_SCHEMA}}),
    ):
        found = json_schema(kind, **more)
        for one in found["$defs"].values():
            _explain(one)
        yield DOCS / f"{name}.schema.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def validator(name: str) -> Draft202012Validator:
    """Return what checks documents against the file in docs/."""
    return Draft202012Validator(json.loads((DOCS / f"{name}.schema.json").read_text()))


def _explain(kind: dict[str, Any]) -> None:
    """Put what a docstring says of each attribute beside the property."""
    text, _, attributes = inspect.cleandoc(kind["description"]).partition("\n\nAttributes:\n")
    kind["description"] = " ".join(text.split())
    for name, said in re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE):
        if name in kind["properties"]:
            kind["properties"][name]["description"] = " ".join(said.split())


if __name__ == "__main__":
    for file, text in schemas():
        file.write_text(text)
