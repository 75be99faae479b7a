"""From a source's configuration to whoever scores text for it."""

from __future__ import annotations

from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.rewards.http import HttpReward
from rlhf_ray.rewards.process import FunctionReward
from rlhf_ray.rewards.texts import TextReward


def open_source(source: RewardSourceConfig, *, seed: int) -> TextReward:
    """The function, loaded in its process, or the service; ``seed`` is that of the pauses between requests.

    Raises FunctionLoadError.
    """
    if source.kind == "function":
        return FunctionReward(source.function, arguments=source.arguments, timeout_s=source.timeout_s)
    return HttpReward(
        source.url,
        arguments=source.arguments,
        timeout_s=source.timeout_s,
        max_retries=source.max_retries,
        seed=seed,
    )
