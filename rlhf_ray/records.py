"""What flows: Prompt -> Rollout -> (scores, ref_logprobs) -> Experience -> minibatch -> metrics.

A stage of the flow is a type. All records are frozen; nothing is added to a record on its way.

**The alignment rule.** Every per-token tensor is [B, S], right padded; index t speaks about token t of ``input_ids``:

    logprobs[:, t]       log p(token t | tokens < t)
    values[:, t]         V(the state just before token t)
    rewards[:, t]        the reward for having sampled token t
    response_mask[:, t]  True where the policy sampled token t, EOS included

There is one mask. A rollout on its own keeps only the sampled part: its arrays are [R], R the response length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Role: TypeAlias = Literal["system", "user", "assistant"]
FinishReason: TypeAlias = Literal["stop", "length"]
IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float32]


# ---------------------------------------------------------------------------------------------------------------- text
@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Demonstration:
    """A conversation whose assistant turns are to be imitated; the last turn is the assistant's."""

    demonstration_id: str
    messages: tuple[Message, ...]
    kind: str = ""


@dataclass(frozen=True)
class TextPrompt:
    """A conversation that waits for the assistant. ``facts`` is for graders and annotators, never for a model."""

    prompt_id: str
    messages: tuple[Message, ...]
    kind: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SoftLabel:
    """How likely it is that one response of a ranking is better than another: ``probability`` in [0, 1]."""

    first: int
    second: int
    probability: float  # that `first` is the better

    @property
    def likelier_first(self) -> SoftLabel:
        """The same label, turned where need be so that ``first`` is at least as likely to be the better."""
        if self.probability >= 0.5:
            return self
        return SoftLabel(self.second, self.first, 1.0 - self.probability)


@dataclass(frozen=True)
class Ranking:
    """One annotator's judgement of K responses to one prompt.

    ``ranks[i]`` is the rank of response i: lower is better, equal is a tie. Pairs follow from it: i beats j where
    ranks[i] < ranks[j]; a tie gives no pair. ``response_token_ids`` holds the tokens that were sampled, and is empty
    where the responses never were tokens of this model (a downloaded file). ``soft`` labels, where there are any, say
    how sure the annotator (a judge, as a rule) is of pairs, and then the pairs are those. ``axis`` is what was
    compared (helpful, honest, harmless); empty where it was the whole.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    annotator: str
    response_token_ids: tuple[tuple[int, ...], ...] = ()
    kind: str = ""
    soft: tuple[SoftLabel, ...] = ()
    axis: str = ""

    @property
    def labels(self) -> tuple[SoftLabel, ...]:
        """Every pair that was compared, the likelier winner first.

        These are the soft labels where there are any. Else they are the decided pairs of the ranks, each certain, in
        order of the winner's index, then the loser's.
        """
        if self.soft:
            return tuple(label.likelier_first for label in self.soft)
        count = len(self.ranks)
        return tuple(SoftLabel(i, j, 1.0) for i in range(count) for j in range(count) if self.ranks[i] < self.ranks[j])

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(winner, loser) indices of every decided pair: those of ``labels`` but for even odds."""
        return tuple((label.first, label.second) for label in self.labels if label.probability > 0.5)


@dataclass(frozen=True)
class StepLabelled:
    """A response in steps, each of which somebody has found good or bad."""

    prompt_id: str
    messages: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[bool, ...]


# -------------------------------------------------------------------------------------------------------------- tokens
@dataclass(frozen=True)
class Prompt:
    """A prompt as the models see it. ``order`` is its place in the step's batch: results never depend on arrival."""

    prompt_id: str
    token_ids: IntArray  # [P]
    order: int
    kind: str = ""


@dataclass(frozen=True)
class SamplingSettings:
    """How a response is sampled. Top-k 0 and top-p 1 mean no truncation."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 64
    responses_per_prompt: int = 1
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One response to be sampled. Seed and weights alone decide the tokens: not the engine, not the batch."""

    rollout_id: str  # unique in a step, e.g. "<prompt_id>/<sample index>"
    prompt_id: str
    order: int  # place in the step's batch of rollouts
    prompt_ids: IntArray  # [P]
    seed: int


@dataclass(frozen=True)
class Rollout:
    """One prompt, its sampled response and the log-probabilities under the engine's weights."""

    rollout_id: str
    prompt_id: str
    order: int
    prompt_ids: IntArray  # [P]
    response_ids: IntArray  # [R], EOS included when finish_reason is "stop"
    rollout_logprobs: FloatArray  # [R], of the distribution that was sampled from (after temperature)
    policy_versions: IntArray  # [R], the weights that sampled each token
    finish_reason: FinishReason
    seed: int

    @property
    def summary(self) -> RolloutSummary:
        return RolloutSummary(
            rollout_id=self.rollout_id,
            prompt_id=self.prompt_id,
            order=self.order,
            prompt_length=len(self.prompt_ids),
            response_length=len(self.response_ids),
            finish_reason=self.finish_reason,
            policy_version=int(self.policy_versions.min()) if len(self.policy_versions) else 0,
        )


@dataclass(frozen=True)
class RolloutSummary:
    """What the driver knows of a rollout: all but its tokens. ``policy_version`` is the oldest of its tokens'."""

    rollout_id: str
    prompt_id: str
    order: int
    prompt_length: int
    response_length: int
    finish_reason: FinishReason
    policy_version: int

    @property
    def length(self) -> int:
        return self.prompt_length + self.response_length


@dataclass(frozen=True)
class Graded:
    """What one reward source says of one response: a score, or why there is none.

    ``step_rewards`` are for what the response does on its way: (index of a response token, value). They are earned at
    those tokens and come on top of ``score``, which is earned at the end. ``parts`` say what the score is made of, by
    name (axes, an ensemble's members): they are logged and shown, and count for nothing.
    """

    score: float | None
    step_rewards: tuple[tuple[int, float], ...] = ()
    failed: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What the reward sources say of one rollout.

    ``total`` is what the response earns at its end: the weighted sum of ``parts``, which are by source and before
    weights. What a source's score is made of stands beside it as ``source.part`` and is in no sum. The total is NaN
    where the rollout failed; ``failed`` then names the sources and their reasons. ``step_rewards`` are earned on the
    way and come on top of ``total``: (index into the response, value), weighted, in order of index.
    """

    total: float
    parts: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""
    step_rewards: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class AdaptersOff:
    """Stands where reference log-probabilities would: the reference is the policy without its adapters (LoRA)."""


ReferenceBlock: TypeAlias = tuple[FloatArray, ...] | AdaptersOff  # one [R] array a rollout of the block
