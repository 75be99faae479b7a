"""The time that state machines are told, so that a test decides what time it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Seconds since some fixed moment, never backwards: ``time.monotonic``, or a number that a test moves."""
