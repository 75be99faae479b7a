"""The frozen models, as plain transformers forwards: the reference's log-probabilities, the reward model's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_ray.config.algorithm import MAX_EXACT_KL_VOCABULARY
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.data.batching import pack_micro_batches
from rlhf_ray.data.collate import TokenBatch, TokenSequence, collate, response_sequence
from rlhf_ray.engines.models import (
    DTYPES,
    PolicyModule,
    RewardModule,
    StepRewardModule,
    load_causal,
    load_scalar,
)
from rlhf_ray.errors import ConfigError
from rlhf_ray.records import FloatArray, Graded, IntArray, Rollout
from rlhf_ray.rewards.ensemble import combine_members
from rlhf_ray.rewards.heads import WHOLE, Raw, read_heads

T = TypeVar("T")
Device = Literal["cpu", "cuda"]


class _FrozenEngine:
    """A model in evaluation mode that walks sequences in micro-batches of bounded size."""

    def __init__(self, module: nn.Module, config: ServerConfig, device: Device) -> None:
        torch.set_num_threads(config.threads_per_replica)
        self._device = torch.device(device)
        self._module = module.to(self._device).eval().requires_grad_(False)
        self._max_tokens = config.max_tokens_per_batch

    @torch.inference_mode()
    def _map(
        self,
        sequences: Sequence[TokenSequence],
        forward: Callable[[TokenBatch], Tensor],
        read: Callable[[Tensor, int], T],
    ) -> tuple[T, ...]:
        """Apply ``forward`` to all sequences; ``read(row of the output, index of the sequence)`` makes each result."""
        results: dict[int, T] = {}
        for rows in pack_micro_batches([len(s) for s in sequences], self._max_tokens):
            output = forward(collate([sequences[i] for i in rows]).to(self._device)).cpu()
            results.update({i: read(output[row], i) for row, i in enumerate(rows)})
        return tuple(results[i] for i in range(len(sequences)))


class ReferenceEngine(_FrozenEngine):
    """The frozen reference policy."""

    def __init__(
        self, *, path: str, model: ModelConfig, config: ServerConfig, device: Device, temperature: float
    ) -> None:
        super().__init__(PolicyModule(load_causal(path, model, DTYPES[config.dtype])), config, device)
        self._temperature = temperature

    def logprobs(self, rollouts: Sequence[Rollout]) -> tuple[FloatArray, ...]:
        """Log-probabilities [R] of each rollout's response tokens, at the temperature they were sampled with."""
        sequences = [response_sequence(r.prompt_ids, r.response_ids) for r in rollouts]

        def read(row: Tensor, index: int) -> FloatArray:
            return row[: len(sequences[index])][torch.from_numpy(sequences[index].mask)].numpy().astype(np.float32)

        return self._map(sequences, lambda batch: self._module(batch, self._temperature)[0], read)

    def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]:
        """Log-probability of each sequence's tokens that count, summed."""
        return self._map(
            sequences, lambda batch: self._module(batch, self._temperature)[0], lambda row, _: float(row.sum())
        )

    @torch.inference_mode()
    def distributions(self, rollouts: Sequence[Rollout]) -> tuple[FloatArray, ...]:
        """Log-probabilities [R, V] of the whole vocabulary at each response token.

        Raises ConfigError for a vocabulary so large that they would not fit through the object store.
        """
        self._require_small_vocabulary()
        found: dict[int, FloatArray] = {}
        for rows in pack_micro_batches([len(r.prompt_ids) + len(r.response_ids) for r in rollouts], self._max_tokens):
            batch = collate([response_sequence(rollouts[i].prompt_ids, rollouts[i].response_ids) for i in rows])
            whole = cast(PolicyModule, self._module).distributions(batch.to(self._device), self._temperature).cpu()
            parts = torch.split(whole, [len(rollouts[i].response_ids) for i in rows])
            found |= {i: part.numpy() for i, part in zip(rows, parts, strict=True)}
        return tuple(found[i] for i in range(len(rollouts)))

    def _require_small_vocabulary(self) -> None:
        size = int(cast(PolicyModule, self._module).model.config.vocab_size)
        if size > MAX_EXACT_KL_VOCABULARY:
            raise ConfigError(
                "ppo.kl.estimator",
                "exact",
                f"sends the whole distribution of every sampled token, and the vocabulary has {size} tokens, more than "
                f"{MAX_EXACT_KL_VOCABULARY}",
                "use k1 in the reward, or k2 in the loss",
            )


class RewardModelEngine(_FrozenEngine):
    """The frozen reward model; its scores are normalised by the mean and deviation saved with it."""

    def __init__(self, *, path: str, model: ModelConfig, config: ServerConfig, device: Device) -> None:
        network = load_scalar(path, model, DTYPES[config.dtype], num_heads=None)
        super().__init__(RewardModule(network), config, device)
        self._heads, self._scale = read_heads(network.config.to_dict(), path=path)

    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        """One normalised score a rollout, with those of the single axes where it has several."""
        return self.grade_sequences([response_sequence(r.prompt_ids, r.response_ids) for r in rollouts])

    def grade_sequences(self, sequences: Sequence[TokenSequence]) -> tuple[Graded, ...]:
        """The same of sequences (prompt and response together)."""
        return self._map(sequences, self._module, lambda row, _: self._graded(row))

    def _graded(self, row: Tensor) -> Graded:
        raw = row.double().numpy()
        parts = {axis: self._normalised(raw, axis) for axis in self._heads.axes}
        return Graded(self._normalised(raw, WHOLE), parts=parts)

    def _normalised(self, raw: Raw, axis: str) -> float:
        return float(self._scale.normalised(self._heads.score(raw, axis), axis))


class RewardEnsemble:
    """The members of an ensemble in one process, asked one after the other; one checkpoint alone is one member."""

    def __init__(self, *, paths: Sequence[str], uncertainty_penalty: float, **arguments: Any) -> None:
        self._members = [RewardModelEngine(path=path, **arguments) for path in paths]
        self._penalty = uncertainty_penalty

    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        """One score a rollout: the members' mean less the penalty on their disagreement."""
        answers = zip(*(member.grade(rollouts) for member in self._members), strict=True)
        return tuple(combine_members(own, penalty=self._penalty) for own in answers)


class ProcessRewardEngine(_FrozenEngine):
    """A frozen process reward model: its scalar head is read at the last token of every step of a response.

    A step ends with ``separator``, the last one with the response. Separators are read as the training of such models
    places them (TRL's PRMTrainer): they belong to the step before. The reward of the last step is the score, those of
    the others are step rewards, so that together they are what Math-Shepherd (Wang et al. 2024) gives PPO.
    """

    def __init__(
        self, *, path: str, model: ModelConfig, config: ServerConfig, device: Device, separator: Sequence[int]
    ) -> None:
        network = load_scalar(path, model, DTYPES[config.dtype])
        super().__init__(StepRewardModule(network), config, device)
        _, self._scale = read_heads(network.config.to_dict(), path=path)
        self._separator = tuple(separator)

    def grade(self, rollouts: Sequence[Rollout]) -> tuple[Graded, ...]:
        """One answer a rollout, normalised like those of RewardModelEngine; a response without tokens has failed."""
        ends = [step_ends(rollout.response_ids, self._separator) for rollout in rollouts]
        scored = [row for row, found in enumerate(ends) if found]
        sequences = [_marked(rollouts[row], ends[row]) for row in scored]

        def read(values: Tensor, index: int) -> tuple[float, ...]:
            at = torch.from_numpy(sequences[index].mask)
            return tuple(self._scale.normalised(values[: len(at)][at].double().numpy()).tolist())

        answers = dict(zip(scored, self._map(sequences, self._module, read), strict=True))
        return tuple(_graded(answers[row], ends[row]) if row in answers else NO_STEPS for row in range(len(rollouts)))


NO_STEPS = Graded(None, failed="the response has no tokens")


def step_ends(response_ids: IntArray, separator: Sequence[int]) -> tuple[int, ...]:
    """The index of the last token of every step; separators are found from the left and do not overlap."""
    ids, wanted, ends, position = response_ids.tolist(), list(separator), [], 0
    while position + len(wanted) <= len(ids):
        if ids[position : position + len(wanted)] == wanted:
            position += len(wanted)
            ends.append(position - 1)
        else:
            position += 1
    if ids and (not ends or ends[-1] != len(ids) - 1):
        ends.append(len(ids) - 1)
    return tuple(ends)


def _marked(rollout: Rollout, ends: Sequence[int]) -> TokenSequence:
    """The whole sequence, of which the last tokens of steps count."""
    sequence = response_sequence(rollout.prompt_ids, rollout.response_ids)
    mask = np.zeros(len(sequence), dtype=np.bool_)
    mask[[len(rollout.prompt_ids) + end for end in ends]] = True
    return TokenSequence(sequence.token_ids, mask)


def _graded(values: Sequence[float], ends: Sequence[int]) -> Graded:
    return Graded(values[-1], tuple(zip(ends[:-1], values[:-1], strict=True)))
