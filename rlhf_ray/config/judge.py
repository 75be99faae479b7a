"""A judge: who answers, how its answers are read, and what they may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive

LAST_VERDICT = r"(?i)\b(A|B|tie)\b"
OF_KIND = (  # fields that belong to one kind
    ("model", "path"),
    ("endpoint", "url"),
    ("endpoint", "model"),
    ("endpoint", "key_env"),
    ("simulated", "error_rate"),
    ("simulated", "position_bias"),
)


@dataclass(frozen=True)
class BudgetConfig:
    """What a run may spend on its judge, over all attempts; None for no limit. Prices are for a million tokens."""

    max_tokens: int | None = None
    max_money: float | None = None
    price_read: float = 0.0
    price_written: float = 0.0

    def __post_init__(self) -> None:
        require_not_negative(judge__budget__price_read=self.price_read, judge__budget__price_written=self.price_written)
        if self.max_tokens is not None:
            require_not_negative(judge__budget__max_tokens=self.max_tokens)
        if self.max_money is not None:
            require_not_negative(judge__budget__max_money=self.max_money)
            require(
                self.price_read > 0 or self.price_written > 0,
                field="judge.budget.max_money",
                value=self.max_money,
                rule="needs a price, or nothing would ever cost anything",
                remedy="set judge.budget.price_read and judge.budget.price_written, for a million tokens",
            )


@dataclass(frozen=True)
class JudgeConfig:
    """``model`` is served by the fleet, ``endpoint`` speaks OpenAI's chat protocol, ``simulated`` knows what is true.

    In a run the judge takes the place of people for a ``share`` of the training comparisons.
    """

    kind: Literal["none", "model", "endpoint", "simulated"] = "none"
    name: str = "judge"  # as whom it judges in the preference store
    store: str = ""  # a preference store whose items `judge run` judges; empty: the run's own comparisons
    share: float = 1.0  # of a run's training prompts; people judge the rest

    path: str = ""  # of a model: a checkpoint; empty: the run's own SFT model
    url: str = ""  # of an endpoint: up to and with /v1
    model: str = ""  # as the endpoint knows it
    key_env: str = ""  # the environment variable with the endpoint's key; a key itself is never a setting
    error_rate: float = 0.0  # of a simulated judge: how often the truth is turned around
    position_bias: float = 0.0  # of a simulated judge: how often it says A whatever is shown

    template: str = ""  # a Jinja file; empty: the built-in one
    constitution: str = ""  # a YAML file of principles, one of which is drawn for each comparison
    by_axis: bool = False  # a comparison counts for its principle's axis alone (reward_model.axes), not for the whole
    verdict: Literal["logprobs", "text"] = "logprobs"
    pattern: str = LAST_VERDICT  # of a verdict in text: its last match's first group is A, B or tie
    min_mass: float = 0.05  # A and B together must have this much probability as the first token
    num_votes: int = 1  # answers to each order of a pair
    on_disagreement: Literal["tie", "vote"] = "tie"  # where the two orders name different winners
    temperature: float = 0.0  # of answers as text
    max_tokens: int = 256  # of an answer as text

    batch_size: int = 256  # questions asked at a time
    num_parallel: int = 8  # requests to an endpoint at the same time
    timeout_s: float = 60.0
    max_retries: int = 5
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        require_between(0, 1, judge__share=self.share, judge__min_mass=self.min_mass)
        require_between(0, 0.5, judge__error_rate=self.error_rate)
        require_between(0, 1, judge__position_bias=self.position_bias)
        require_between(0, 100, judge__max_retries=self.max_retries)
        require_not_negative(judge__temperature=self.temperature)
        require_positive(
            judge__num_votes=self.num_votes,
            judge__max_tokens=self.max_tokens,
            judge__batch_size=self.batch_size,
            judge__num_parallel=self.num_parallel,
            judge__timeout_s=self.timeout_s,
        )
        self._require_kind()
        self._require_verdict()

    @property
    def is_there(self) -> bool:
        return self.kind != "none"

    def _require_kind(self) -> None:
        for kind, name in OF_KIND:
            require(
                not getattr(self, name) or self.kind == kind,
                field=f"judge.{name}",
                value=getattr(self, name),
                rule=f"belongs to judge.kind={kind}, and judge.kind is {self.kind}",
                remedy=f"leave it out, or set judge.kind={kind}",
            )
        if self.kind != "endpoint":
            return
        parts = urlsplit(self.url)
        require(
            parts.scheme in ("http", "https") and bool(parts.netloc),
            field="judge.url",
            value=self.url,
            rule="must be an address that begins with http:// or https://",
            remedy="give the endpoint's base, for example http://judge:8000/v1",
        )
        require(
            bool(self.model),
            field="judge.model",
            value=self.model,
            rule="must name the model for judge.kind=endpoint",
            remedy="give the name that the endpoint lists under /models",
        )

    def _require_verdict(self) -> None:
        require(
            self.num_votes == 1 or (self.verdict == "text" and self.temperature > 0),
            field="judge.num_votes",
            value=self.num_votes,
            rule=f"must be 1 with verdict={self.verdict} at temperature {self.temperature:g}: all votes would be equal",
            remedy="use verdict=text and a temperature above 0, or one vote",
        )
        try:
            groups = re.compile(self.pattern).groups
        except re.error:
            groups = 0
        require(
            groups >= 1,
            field="judge.pattern",
            value=self.pattern,
            rule="must be a regular expression with a group for the verdict",
            remedy=f"use for example {LAST_VERDICT}",
        )


@dataclass(frozen=True)
class RevisionConfig:
    """Respond, criticise, revise (``rlhf-ray constitution revise``): demonstrations for SFT."""

    num_prompts: int = 500
    num_rounds: int = 2  # of critique and revision, each by a principle of its own
    temperature: float = 1.0  # of the first response

    def __post_init__(self) -> None:
        require_positive(revision__num_prompts=self.num_prompts, revision__num_rounds=self.num_rounds)
        require_not_negative(revision__temperature=self.temperature)
