"""Which task a run is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.checks import require
from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.files import FilesConfig
from rlhf_ray.data.hh_rlhf import HhRlhfConfig
from rlhf_ray.data.movie_sentiment import MovieSentimentConfig


@dataclass(frozen=True)
class DataConfig:
    """``task`` names the section that is used; the others may stay empty."""

    task: Literal["world", "movie_sentiment", "hh_rlhf", "files"] = "world"
    world: WorldConfig = field(default_factory=WorldConfig)
    movie_sentiment: MovieSentimentConfig | None = None
    hh_rlhf: HhRlhfConfig | None = None
    files: FilesConfig | None = None

    def __post_init__(self) -> None:
        require(
            getattr(self, self.task) is not None,
            field="data.task",
            value=self.task,
            rule=f"needs the section data.{self.task}",
            remedy=f"add data.{self.task} with its paths, or choose another task",
        )
