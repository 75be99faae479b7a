"""What a metric is: a name, a unit, and words that say how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Better: TypeAlias = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class MetricDefinition:
    """What a number means. ``better`` is empty where neither direction is good by itself.

    ``short`` is the label in the console's line for a step; a metric without one is not on that line.
    """

    name: str
    unit: str
    definition: str
    better: Better = ""
    short: str = ""
    source: str = ""
