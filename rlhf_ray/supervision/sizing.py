"""How many generators a run should have, from who waits for whom.

The trainer waits for rollouts: grow. The generators have nothing to do, since the trainer is busy or the buffer is
full: shrink. Between the two thresholds nothing changes, neither does it for one step that is out of the ordinary, nor
soon after a change, whose effect is not measured yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.supervision.clock import Clock


@dataclass(frozen=True)
class SizingRule:
    """``patience`` steps in a row must say the same; after a change ``cooldown_s`` pass before the next."""

    min_size: int
    max_size: int
    grow_above: float = 0.5  # share of the time in which the trainer waits for rollouts
    shrink_above: float = 0.7  # share of the time in which a generator has nothing to do
    patience: int = 3
    cooldown_s: float = 120.0
    step: float = 0.25  # of the size that there is, at least one

    def __post_init__(self) -> None:
        require_positive(sizing__min_size=self.min_size, sizing__patience=self.patience, sizing__step=self.step)
        require_not_negative(sizing__cooldown_s=self.cooldown_s)
        require_between(0, 1, sizing__grow_above=self.grow_above, sizing__shrink_above=self.shrink_above)
        require(
            self.min_size <= self.max_size,
            field="sizing.max_size",
            value=self.max_size,
            rule=f"must not be below the least size ({self.min_size})",
            remedy="raise it",
        )


@dataclass(frozen=True)
class Waiting:
    """What one step showed, in seconds of its ``elapsed_s``."""

    trainer_s: float  # the trainer waited for rollouts
    idle_s: float  # a generator had nothing to do, mean over generators
    elapsed_s: float
    num_shards: int  # the most that could be sampled at a time: more generators than that are of no use


class Sizer:
    """Decides after each step."""

    def __init__(self, rule: SizingRule, clock: Clock) -> None:
        self._rule = rule
        self._clock = clock
        self._changed = -math.inf
        self._votes = 0  # steps in a row that say grow (above 0) or shrink (below)

    def wanted(self, size: int, waiting: Waiting) -> int:
        """The size to have from now on, where ``size`` is what there is."""
        bounded = min(max(size, self._rule.min_size), self._rule.max_size)
        vote = self._vote(waiting, bounded)
        self._votes = self._votes + vote if vote * self._votes > 0 else vote
        if self._clock() - self._changed < self._rule.cooldown_s or abs(self._votes) < self._rule.patience:
            return bounded
        change = max(1, math.floor(bounded * self._rule.step)) * (1 if self._votes > 0 else -1)
        target = min(max(bounded + change, self._rule.min_size), self._rule.max_size)
        if change > 0:
            target = max(bounded, min(target, waiting.num_shards))
        if target != bounded:
            self._changed, self._votes = self._clock(), 0
        return target

    def _vote(self, waiting: Waiting, size: int) -> int:
        if waiting.elapsed_s <= 0:
            return 0
        if waiting.trainer_s / waiting.elapsed_s > self._rule.grow_above:
            return 1 if size < waiting.num_shards else 0
        return -1 if waiting.idle_s / waiting.elapsed_s > self._rule.shrink_above else 0
