"""When the whole state of a run is saved beside its steps, which states are kept, and where they are copied to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.checks import require, require_not_negative, require_positive


@dataclass(frozen=True)
class CheckpointConfig:
    """``ppo.checkpoint_every`` counts steps; the minutes here count beside them. Neither: no state is ever saved.

    ``fit_every`` counts the optimizer steps of SFT, reward models, DPO and rejection sampling.

    Where any state is saved, so is one at the end of the stage, and one when the run is told to stop (SIGTERM).
    """

    every_minutes: float = 0.0  # 0: by steps alone
    fit_every: int = 0  # 0: by minutes alone
    keep: int = 2  # the newest states
    best_metric: str = ""  # keep the state of its best step too, for example gold/heldout_mean
    best: Literal["highest", "lowest"] = "highest"
    mirror: str = ""  # every complete state is copied there: s3://bucket/run, gs://..., file:///mnt/run
    grace_s: float = 60.0  # from SIGTERM until the run ends, whatever it has saved by then

    def __post_init__(self) -> None:
        require_not_negative(checkpoints__every_minutes=self.every_minutes, checkpoints__fit_every=self.fit_every)
        require_positive(checkpoints__keep=self.keep, checkpoints__grace_s=self.grace_s)
        require(
            not self.mirror or "://" in self.mirror,
            field="checkpoints.mirror",
            value=self.mirror,
            rule="must be a URL, with a scheme",
            remedy="write for example s3://bucket/run or file:///mnt/run",
        )
