"""From the configuration to the task that a run is about."""

from __future__ import annotations

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.files import FilesTask
from rlhf_ray.data.hh_rlhf import HhRlhfTask
from rlhf_ray.data.movie_sentiment import MovieSentimentTask
from rlhf_ray.data.task import Task
from rlhf_ray.data.world import WorldTask


def build_task(config: DataConfig) -> Task:
    """Read the task's data; raises ConfigError or DataError when it cannot be used."""
    if config.task == "movie_sentiment" and config.movie_sentiment is not None:
        return MovieSentimentTask(config.movie_sentiment)
    if config.task == "hh_rlhf" and config.hh_rlhf is not None:
        return HhRlhfTask(config.hh_rlhf)
    if config.task == "files" and config.files is not None:
        return FilesTask(config.files)
    return WorldTask(config.world)
