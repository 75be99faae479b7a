"""What one PPO step asks of each role, read off the configuration."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.planning.flops import forward_flops, training_flops
from rlhf_ray.planning.memory import BYTES
from rlhf_ray.planning.shapes import ModelShape

TYPICAL_RESPONSE = 0.6  # of ppo.max_response_tokens, where nobody says how long responses are
TYPICAL_PROMPT = 0.5  # of the room that is left for a prompt


@dataclass(frozen=True)
class Workload:
    """One step: ``rollouts`` of a mean ``prompt`` and ``response``; the longest response decides how long all wait."""

    shape: ModelShape
    training: TrainingConfig
    rollouts: int
    prompt: int
    response: int
    longest: int
    epochs: int
    minibatches: int
    critic: bool
    reference_server: bool  # False with LoRA: the trainer computes the reference
    reward_shape: ModelShape | None  # None: no reward model is served
    engine_dtype: str
    max_num_seqs: int
    max_length: int

    @property
    def tokens(self) -> int:
        return self.rollouts * (self.prompt + self.response)

    @property
    def wire_bytes(self) -> float:
        """What one weight sync sends, adapters merged."""
        return float(self.shape.parameters * BYTES[self.engine_dtype])

    @property
    def reference_flops(self) -> float:
        return self.rollouts * forward_flops(self.shape, prompt=self.prompt, response=self.response)

    @property
    def reward_flops(self) -> float:
        if self.reward_shape is None:
            return 0.0
        return self.rollouts * forward_flops(self.reward_shape, prompt=self.prompt, response=self.response, head=False)

    @property
    def scoring_flops(self) -> float:
        return (self.reference_flops if self.reference_server else 0.0) + self.reward_flops

    @property
    def old_logprobs_flops(self) -> float:
        """Old log-probabilities, values, and with LoRA the reference: forwards of the trainer before the epochs."""
        passes = 1 if self.reference_server else 2
        return passes * self.reference_flops + (self._critic_forward if self.critic else 0.0)

    @property
    def update_flops(self) -> float:
        """All epochs of policy and critic."""
        how = {"checkpointing": self.training.gradient_checkpointing, "frozen": self.training.lora.enabled}
        once = training_flops(self.reference_flops, **how)
        if self.critic:
            once += training_flops(self._critic_forward, **how)
        return self.epochs * once

    @property
    def _critic_forward(self) -> float:
        return self.rollouts * forward_flops(self.shape, prompt=self.prompt, response=self.response, head=False)


def workload_of(
    config: RunConfig,
    shape: ModelShape,
    *,
    reward_shape: ModelShape | None = None,
    prompt: int | None = None,
    response: int | None = None,
) -> Workload:
    """The step that ``config`` describes; without lengths, typical shares of what the settings allow."""
    ppo = config.ppo
    dtype = config.training.dtype if config.generation.dtype == "auto" else config.generation.dtype
    serves_model = any(source.kind == "model" for source in config.rewards.used.values())
    return Workload(
        shape=shape,
        training=config.training,
        rollouts=ppo.rollouts_per_step,
        prompt=prompt or max(1, round(TYPICAL_PROMPT * (config.model.max_length - ppo.max_response_tokens))),
        response=response or max(1, round(TYPICAL_RESPONSE * ppo.max_response_tokens)),
        longest=ppo.max_response_tokens,
        epochs=ppo.num_epochs,
        minibatches=ppo.num_minibatches,
        critic=ppo.has_critic,
        reference_server=not config.training.lora.enabled,
        reward_shape=(reward_shape or shape) if serves_model else None,
        engine_dtype=dtype,
        max_num_seqs=config.generation.max_num_seqs,
        max_length=config.model.max_length,
    )
