"""All checks over one record of facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rlhf_ray.doctor import machine, settings, stack, text
from rlhf_ray.doctor.facts import Facts
from rlhf_ray.doctor.findings import Finding

Check = Callable[[Facts], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (*stack.CHECKS, *machine.CHECKS, *text.CHECKS, *settings.CHECKS)


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Every finding, the worst first; what the door raised comes with them, each said once."""
    found = [*facts.raised, *(finding for check in CHECKS for finding in check(facts))]
    return tuple(sorted(dict.fromkeys(found), key=lambda finding: -finding.severity))
