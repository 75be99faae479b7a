"""Rollouts as text, in batches, for whoever scores text: functions and services."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Protocol

from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Graded, Rollout, TextPrompt

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class PromptText:
    """What a reward may know of a prompt: the text of its messages, a line each, and the facts of the task."""

    text: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: TextPrompt) -> PromptText:
        return cls("\n".join(message.content for message in prompt.messages), prompt.facts)


@dataclass(frozen=True)
class ResponseText:
    """One rollout as text. ``tokens`` are the response's one by one, special ones empty; only where they are wanted."""

    prompt: PromptText
    response: str
    tokens: tuple[str, ...] = ()


class TextReward(Protocol):
    """A function or a service."""

    wants_tokens: bool

    def grade(self, texts: Sequence[ResponseText]) -> tuple[Graded, ...]:
        """One answer a text. What cannot be scored is marked as failed, with the reason."""
        ...

    def close(self) -> None: ...


class RolloutReward:
    """Scores rollouts by their text, ``batch_size`` at a time."""

    def __init__(
        self, reward: TextReward, *, prompts: Mapping[str, PromptText], decode: Decode, batch_size: int
    ) -> None:
        self._reward = reward
        self._prompts = prompts
        self._decode = decode
        self._batch_size = batch_size

    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        """One answer a rollout. Raises RlhfError for a prompt that nobody has told of."""
        texts = [self._text(rollout) for rollout in rollouts]
        batches = [texts[i : i + self._batch_size] for i in range(0, len(texts), self._batch_size)]
        return tuple(graded for batch in batches for graded in self._reward.grade(batch))

    def _text(self, rollout: Rollout) -> ResponseText:
        if rollout.prompt_id not in self._prompts:
            raise RlhfError(f"rollout {rollout.rollout_id!r} answers a prompt of which its reward knows no text")
        ids = rollout.response_ids.tolist()
        tokens = tuple(self._decode([token]) for token in ids) if self._reward.wants_tokens else ()
        return ResponseText(self._prompts[rollout.prompt_id], self._decode(ids), tokens)

    def close(self) -> None:
        self._reward.close()


# -------------------------------------------------------------------------------------------------------------- answers
class WrongShapeError(RlhfError):
    """A reward answered something other than a list of one element for each response."""


def read_answer(answer: object, expected: int) -> list[Graded]:
    """What a reward answered, as one Graded for each of ``expected`` responses.

    An element may be a number, None for no score, or Graded; one that is anything else has failed. Raises
    WrongShapeError where nobody can say which element is whose.
    """
    if hasattr(answer, "tolist"):  # an array or a tensor
        answer = answer.tolist()
    if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
        raise WrongShapeError(f"answered {_shown(answer)} where a list of {expected} scores was expected")
    items = list(answer)
    if len(items) != expected:
        raise WrongShapeError(f"answered {len(items)} scores for {expected} responses")
    return [_graded(item) for item in items]


def _graded(item: object) -> Graded:
    if item is None or isinstance(item, Real):
        return Graded(None if item is None else float(item))
    if not isinstance(item, Graded) or not isinstance(item.score, Real | None):
        return Graded(None, failed=f"answered {_shown(item)} where a number was expected")
    return with_steps(_graded(item.score).score, item.step_rewards, failed=str(item.failed))


def with_steps(score: float | None, steps: object, *, failed: str = "") -> Graded:
    """A score with step rewards: pairs of a token's index and a value. Failed where they are anything else."""
    read: list[tuple[int, float]] = []
    for pair in steps if isinstance(steps, list | tuple) else [steps]:
        match pair:
            case [Integral() as index, Real() as value]:
                read.append((int(index), float(value)))
            case _:
                return Graded(None, failed=f"answered {_shown(pair)} where a step reward, (index, value), was expected")
    return Graded(score, tuple(read), failed)


def _shown(value: object) -> str:
    return f"{value!r:.80} ({type(value).__name__})"
