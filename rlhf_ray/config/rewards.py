"""Where scores come from: learned models, python functions and services, each with a weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from rlhf_ray.config.checks import require, require_between, require_not_negative

LEARNED = "reward_model"  # the name of the only source where none are named
NAME = re.compile(r"[a-z0-9_]+")
LONGEST_WAIT_S = 20.0  # before a request is sent again, whatever the service asks for
KEYWORDS = frozenset({"prompts", "responses", "facts", "tokens"})  # what every reward function is given
MODEL_ARGUMENTS = frozenset({"step_separator"})


@dataclass(frozen=True)
class RewardSourceConfig:
    """One source of scores. What it breaks is said by RewardsConfig, which knows its name.

    ``model`` reads a scalar head: that of the run's own reward model, or of the checkpoint at ``path``. With the
    argument ``step_separator`` it is read after every step of a response, not at its end alone. ``function`` is
    ``package.module:name`` or the name of a built-in reward, called in a process of its own. ``http`` asks a service.
    """

    kind: Literal["model", "function", "http"] = "model"
    weight: float = 1.0
    path: str = ""  # of a model; empty: the run's own reward model
    function: str = ""
    url: str = ""
    token_env: str = ""  # the environment variable with a service's bearer token; a token itself is never a setting
    send_tokens: bool = False  # whether a service is told the responses' tokens too, for step rewards by token
    timeout_s: float = 30.0  # of one call
    max_retries: int = 3  # of a request to a service
    batch_size: int = 64  # responses in one call
    num_workers: int = 1  # actors that ask the function or the service
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_own_model(self) -> bool:
        return self.kind == "model" and not self.path

    @property
    def longest_call_s(self) -> float:
        """The longest that a function or a service may take for one batch, second attempts and pauses included."""
        if self.kind == "function":
            return 2 * self.timeout_s
        return self.timeout_s + self.max_retries * (self.timeout_s + LONGEST_WAIT_S)


@dataclass(frozen=True)
class RewardsConfig:
    """Sources by name; none means the run's own reward model alone.

    A rollout that a source cannot score is left out of the step; more than ``max_failed_fraction`` of them end the run.
    ``uncertainty_penalty`` takes so many deviations among the members of the run's own ensemble from its score.
    """

    sources: dict[str, RewardSourceConfig] = field(default_factory=dict)
    uncertainty_penalty: float = 0.0
    max_failed_fraction: float = 0.25

    def __post_init__(self) -> None:
        require_between(0, 1, rewards__max_failed_fraction=self.max_failed_fraction)
        require_not_negative(rewards__uncertainty_penalty=self.uncertainty_penalty)
        for name, source in self.sources.items():
            require(
                NAME.fullmatch(name) is not None,
                field="rewards.sources",
                value=name,
                rule="must have names of small letters, digits and _",
                remedy="metrics are logged under them: choose one like polite_2",
            )
            _check(source, f"rewards.sources.{name}")

    @property
    def used(self) -> Mapping[str, RewardSourceConfig]:
        """The sources that are asked."""
        return self.sources or {LEARNED: RewardSourceConfig()}

    @property
    def weights(self) -> dict[str, float]:
        return {name: source.weight for name, source in self.used.items()}

    @property
    def uses_own_model(self) -> bool:
        return any(source.is_own_model for source in self.used.values())


def _check(source: RewardSourceConfig, place: str) -> None:
    require(
        math.isfinite(source.weight) and source.weight != 0,
        field=f"{place}.weight",
        value=source.weight,
        rule="must be a finite number other than 0",
        remedy="leave the source out to not use it; below 0 it is a penalty",
    )
    require(
        source.kind == "http" or not source.send_tokens,
        field=f"{place}.send_tokens",
        value=source.send_tokens,
        rule=f"belongs to kind=http, and {place}.kind is {source.kind}",
        remedy="leave it out; a function is given tokens where it has a parameter `tokens`",
    )
    for name, value, least in (
        ("timeout_s", source.timeout_s, 1e-3),
        ("batch_size", source.batch_size, 1),
        ("num_workers", source.num_workers, 1),
        ("max_retries", source.max_retries, 0),
    ):
        require(
            least <= value < math.inf,
            field=f"{place}.{name}",
            value=value,
            rule=f"must be {least:g} or more",
            remedy="raise it",
        )
    for kind, name in (("model", "path"), ("function", "function"), ("http", "url"), ("http", "token_env")):
        value = getattr(source, name)
        require(
            not value or source.kind == kind,
            field=f"{place}.{name}",
            value=value,
            rule=f"belongs to kind={kind}, and {place}.kind is {source.kind}",
            remedy=f"leave it out, or set {place}.kind={kind}",
        )
    {"model": _check_model, "function": _check_function, "http": _check_http}[source.kind](source, place)


def _check_model(source: RewardSourceConfig, place: str) -> None:
    unknown = sorted(source.arguments.keys() - MODEL_ARGUMENTS)
    require(
        not unknown,
        field=f"{place}.arguments",
        value=unknown,
        rule="are not arguments of a model",
        remedy=f"a model takes {', '.join(sorted(MODEL_ARGUMENTS))} and no other",
    )
    separator = source.arguments.get("step_separator", "\n")
    require(
        isinstance(separator, str) and separator != "",
        field=f"{place}.arguments.step_separator",
        value=separator,
        rule="must be the text that ends a step",
        remedy='use "\\n\\n", or leave it out for one score a response',
    )


def _check_function(source: RewardSourceConfig, place: str) -> None:
    require(
        bool(source.function),
        field=f"{place}.function",
        value=source.function,
        rule="must be given for kind=function",
        remedy="name a function of yours as package.module:name, or a built-in one like exact_answer",
    )
    taken = sorted(source.arguments.keys() & KEYWORDS)
    require(
        not taken,
        field=f"{place}.arguments",
        value=taken,
        rule="are what every reward function is given by the run",
        remedy="give the arguments other names",
    )


def _check_http(source: RewardSourceConfig, place: str) -> None:
    parts = urlsplit(source.url)
    require(
        parts.scheme in ("http", "https") and bool(parts.netloc),
        field=f"{place}.url",
        value=source.url,
        rule="must be an address that begins with http:// or https://",
        remedy="give the whole address, for example http://scorer:8000/score",
    )
