"""What became of the gates, as an in-toto statement about the model's file.

https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md. It is not signed.
"""

from __future__ import annotations

import json

from rlskit.report.carded import Card
from rlskit.results.verdict import PASS

PASSED, WARNED, FAILED = "PASSED", "WARNED", "FAILED"


def test_result(card: Card) -> str | None:
    """Return the JSON; None where nothing was asked of the numbers, or there is no file.

    A gate that passed on numbers with a warning warns; one that is undecided failed.
    """
    if card.file_sha256 is None or not card.gates:
        return None
    tests: dict[str, list[str]] = {PASSED: [], WARNED: [], FAILED: []}
    for gate, warnings in card.gates:
        kind = FAILED if gate.verdict != PASS else WARNED if warnings else PASSED
        tests[kind].append(f"{gate.row}/{gate.name}")
    said = {
        "gates": [gate.sentence for gate, _ in card.gates],
        "warnings": list(dict.fromkeys(one for _, warnings in card.gates for one in warnings)),
    }
    sources = [{"name": name, "digest": {"sha256": digest}} for name, digest in card.sources]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": card.file, "digest": {"sha256": card.file_sha256}}],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": next((kind for kind in (FAILED, WARNED) if tests[kind]), PASSED),
            "configuration": [{**sources[0], "annotations": said}, *sources[1:]],
            "passedTests": tests[PASSED],
            "warnedTests": tests[WARNED],
            "failedTests": tests[FAILED],
        },
    }
    return json.dumps(statement, indent=2) + "\n"
