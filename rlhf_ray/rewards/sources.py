"""From a source's configuration to whoever scores text for it."""

from __future__ import annotations

import os

from rlhf_ray.config.rewards import RewardSourceConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.rewards.http import HttpReward
from rlhf_ray.rewards.process import FunctionReward
from rlhf_ray.rewards.texts import TextReward


def open_source(source: RewardSourceConfig, *, seed: int) -> TextReward:
    """The function, loaded in its process, or the service; ``seed`` is that of the pauses between requests.

    Raises FunctionLoadError, and ConfigError where the variable of a service's token is not set in this process.
    """
    if source.kind == "function":
        return FunctionReward(source.function, arguments=source.arguments, timeout_s=source.timeout_s)
    return HttpReward(
        source.url,
        token=service_token(source),
        wants_tokens=source.send_tokens,
        arguments=source.arguments,
        timeout_s=source.timeout_s,
        max_retries=source.max_retries,
        seed=seed,
    )


def service_token(source: RewardSourceConfig) -> str:
    """The bearer token that ``token_env`` names; empty where it names none. Raises ConfigError where it is not set."""
    token = os.environ.get(source.token_env, "") if source.token_env else ""
    if source.token_env and not token:
        raise ConfigError(
            "token_env",
            source.token_env,
            f"must name a variable that is set where {source.url} is asked",
            "export it before the run; a job gets it with `rlhf-ray submit --env NAME`",
        )
    return token
