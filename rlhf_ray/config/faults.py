"""What a run survives: how soon a fault is noticed, how often it is mended, and how much is kept to mend it with."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.checks import require_positive


@dataclass(frozen=True)
class FaultsConfig:
    """Restarts are counted by role. Batches that servers die with are counted apart, and end the run sooner."""

    heartbeat_timeout_s: float = 60.0  # silence after which an actor that was heard before is taken for dead
    max_restarts: int = 8  # of the servers of one kind, or of the trainer, within ...
    restarts_within_s: float = 3600.0
    max_deaths_per_batch: int = 3  # of servers that die with the same rollouts
    max_kept_steps: int = 64  # whose rollouts a trainer keeps, since its last checkpoint, to take them again

    def __post_init__(self) -> None:
        require_positive(
            faults__heartbeat_timeout_s=self.heartbeat_timeout_s,
            faults__max_restarts=self.max_restarts,
            faults__restarts_within_s=self.restarts_within_s,
            faults__max_deaths_per_batch=self.max_deaths_per_batch,
            faults__max_kept_steps=self.max_kept_steps,
        )
