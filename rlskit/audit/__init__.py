"""The audit: thirteen checks that tell robustness from an attack that does not work."""

from rlskit.audit.audit_cost import audit_passes
from rlskit.audit.audit_result import SCHEMA, AuditResult, Check
from rlskit.audit.auditing import LIMIT, audit_model, audited_attack
from rlskit.audit.checks import CHECKS

__all__ = [
    "CHECKS", "LIMIT", "SCHEMA", "AuditResult", "Check", "audit_model", "audit_passes",
    "audited_attack",
]  # fmt: skip
