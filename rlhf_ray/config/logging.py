"""Where a run's metrics go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.errors import ConfigError


@dataclass(frozen=True)
class LoggingConfig:
    """Which sinks receive the metrics. With the defaults nothing leaves the machine."""

    console: bool = True  # one line a step
    jsonl: bool = True  # metrics.jsonl in the stage's directory: what the report is made from
    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"  # offline: files in the run's directory, for `wandb sync` later
    wandb_project: str = "rlhf-ray"

    def __post_init__(self) -> None:
        if self.wandb != "off" and not self.wandb_project:
            raise ConfigError(
                "logging.wandb_project",
                self.wandb_project,
                f"must be a name while logging.wandb is {self.wandb!r}",
                "give a project name, or set logging.wandb=off",
            )
