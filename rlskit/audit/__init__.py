"""The audit: thirteen checks that tell robustness from an attack that does not work."""

from rlskit.audit.audit_result import SCHEMA, AuditResult, Check
from rlskit.audit.auditing import audit_model
from rlskit.audit.checks import CHECKS

__all__ = ["CHECKS", "SCHEMA", "AuditResult", "Check", "audit_model"]
