"""A finding: how bad, which setting or part, what was found, how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from rlhf_ray.errors import ConfigError, RlhfError


class Severity(IntEnum):
    """``WARNING``: the run starts and may disappoint. ``ERROR``: it cannot start, or will fail."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Finding:
    severity: Severity
    field: str
    found: str
    fix: str = ""

    def as_dict(self) -> dict[str, str]:
        return {"severity": self.severity.name.lower(), "field": self.field, "found": self.found, "fix": self.fix}


def ok(field: str, found: str) -> Finding:
    return Finding(Severity.OK, field, found)


def note(field: str, found: str, fix: str = "") -> Finding:
    return Finding(Severity.NOTE, field, found, fix)


def warning(field: str, found: str, fix: str) -> Finding:
    return Finding(Severity.WARNING, field, found, fix)


def error(field: str, found: str, fix: str) -> Finding:
    return Finding(Severity.ERROR, field, found, fix)


def of_exception(raised: RlhfError, *, field: str) -> Finding:
    """An error that we raise on purpose, as a finding. ``field`` names the part where the error does not."""
    if isinstance(raised, ConfigError):
        return error(raised.field, f"{raised.value!r} {raised.rule}", raised.remedy)
    found, _, fix = str(raised).rpartition("; ")
    return error(field, found or fix, fix if found else "see the message")


def worst(findings: Iterable[Finding]) -> Severity:
    return max((finding.severity for finding in findings), default=Severity.OK)
