"""The audit: thirteen checks that tell robustness from an attack that does not work."""

from rlskit.audit.checks import CHECKS
from rlskit.audit.result import SCHEMA, AuditResult, Check
from rlskit.audit.run import audit_model
from rlskit.audit.table import audit_table

__all__ = ["CHECKS", "SCHEMA", "AuditResult", "Check", "audit_model", "audit_table"]
