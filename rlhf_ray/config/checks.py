"""Range checks shared by every stage's configuration."""

from __future__ import annotations

import math

from rlhf_ray.errors import ConfigError


def require(condition: bool, *, field: str, value: object, rule: str, remedy: str) -> None:
    """Raise :class:`ConfigError` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(field, value, rule, remedy)


def require_positive(**fields: float) -> None:
    """Every value is > 0. A field's name is given with ``__`` for the dot: ``ppo__num_steps=3``."""
    for name, value in fields.items():
        require(
            0 < value < math.inf,
            field=name.replace("__", "."),
            value=value,
            rule="must be positive",
            remedy="give a number above 0",
        )


def require_not_negative(**fields: float) -> None:
    """Every value is >= 0."""
    for name, value in fields.items():
        require(
            0 <= value < math.inf,
            field=name.replace("__", "."),
            value=value,
            rule="must not be negative",
            remedy="use 0 for none",
        )


def require_between(low: float, high: float, **fields: float) -> None:
    """Every value lies in [low, high]."""
    for name, value in fields.items():
        require(
            low <= value <= high,
            field=name.replace("__", "."),
            value=value,
            rule=f"must lie between {low:g} and {high:g}",
            remedy="choose a value in that range",
        )
