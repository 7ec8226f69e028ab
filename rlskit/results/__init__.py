"""Results: what was found, written, read back, compared and gated. Knows nothing of models."""

from rlskit.results.comparing import compare
from rlskit.results.comparison import Comparison, Difference, Pair
from rlskit.results.exported import check_table, write_table
from rlskit.results.finished import Finished, read_answers, read_run, unconfirmed
from rlskit.results.gate import NOT_MET, gate_sentence, gated
from rlskit.results.gathering import Gathered, gather, part_names, require_all
from rlskit.results.journal import (
    ADVERSARIAL,
    PARTS,
    PROOF,
    RESULTS,
    Journal,
    claim,
    clear,
    digest,
    free_folder,
    refuse_finished,
    write_results,
)
from rlskit.results.reading import read_results
from rlskit.results.result import SCHEMA, Result, dump
from rlskit.results.shard_notes import ShardNote, note_shard, read_notes

__all__ = [
    "ADVERSARIAL",
    "NOT_MET",
    "PARTS",
    "PROOF",
    "RESULTS",
    "SCHEMA",
    "Comparison",
    "Difference",
    "Finished",
    "Gathered",
    "Journal",
    "Pair",
    "Result",
    "ShardNote",
    "check_table",
    "claim",
    "clear",
    "compare",
    "digest",
    "dump",
    "free_folder",
    "gate_sentence",
    "gated",
    "gather",
    "note_shard",
    "part_names",
    "read_answers",
    "read_notes",
    "read_results",
    "read_run",
    "refuse_finished",
    "require_all",
    "unconfirmed",
    "write_results",
    "write_table",
]
