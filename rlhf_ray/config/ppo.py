"""PPO as in "Learning to summarize from human feedback" and InstructGPT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.config.training import OptimizerConfig


@dataclass(frozen=True)
class KlConfig:
    """The penalty on leaving the reference. ``adaptive`` moves the coefficient towards ``target`` nats a response."""

    coef: float = 0.05
    estimator: Literal["k1", "k2", "k3"] = "k1"
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: float = 6.0
    horizon: int = 10_000

    def __post_init__(self) -> None:
        require(
            self.coef >= 0,
            field="ppo.kl.coef",
            value=self.coef,
            rule="must not be negative",
            remedy="use 0 for none",
        )
        require_positive(ppo__kl__target=self.target, ppo__kl__horizon=self.horizon)


@dataclass(frozen=True)
class PpoRewardConfig:
    """What happens to a score before it becomes a reward. A clip of 0 means none."""

    score_clip: float = 0.0
    whiten_rewards: bool = False
    missing_eos_penalty: float = 0.0

    def __post_init__(self) -> None:
        require_between(0, 1e6, ppo__reward__score_clip=self.score_clip)
        require_between(0, 1e6, ppo__reward__missing_eos_penalty=self.missing_eos_penalty)


def _constant(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, decay="constant")


@dataclass(frozen=True)
class PpoConfig:
    """A step samples ``rollouts_per_step`` responses and trains ``num_epochs`` passes in ``num_minibatches`` pieces."""

    num_steps: int = 30
    rollouts_per_step: int = 128
    responses_per_prompt: int = 1
    num_epochs: int = 1
    num_minibatches: int = 2
    max_response_tokens: int = 48
    temperature: float = 1.0

    gamma: float = 1.0
    lam: float = 0.95
    clip_ratio: float = 0.2
    value_clip: float = 0.2
    vf_coef: float = 1.0
    whiten_advantages: bool = True
    entropy_coef: float = 0.0

    kl: KlConfig = field(default_factory=KlConfig)
    reward: PpoRewardConfig = field(default_factory=PpoRewardConfig)
    policy_optimizer: OptimizerConfig = field(default_factory=lambda: _constant(1e-4))
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: _constant(3e-4))
    critic_initialise_from: Literal["reward_model", "sft"] = "reward_model"
    critic_warmup_steps: int = 0  # steps in which only the critic learns
    ptx_coef: float = 0.0  # weight of the demonstrations' loss, PPO-ptx
    ptx_batch_size: int = 32

    checkpoint_every: int = 0  # steps between saved states; 0 saves none
    eval_every: int = 0  # steps between evaluations on held-out prompts; 0 never
    eval_prompts: int = 128
    max_logprob_difference: float = 0.01  # mean |engine - trainer|; more stops the run

    def __post_init__(self) -> None:
        require_positive(
            ppo__num_steps=self.num_steps,
            ppo__rollouts_per_step=self.rollouts_per_step,
            ppo__responses_per_prompt=self.responses_per_prompt,
            ppo__num_epochs=self.num_epochs,
            ppo__num_minibatches=self.num_minibatches,
            ppo__max_response_tokens=self.max_response_tokens,
            ppo__temperature=self.temperature,
            ppo__clip_ratio=self.clip_ratio,
            ppo__value_clip=self.value_clip,
            ppo__ptx_batch_size=self.ptx_batch_size,
            ppo__eval_prompts=self.eval_prompts,
            ppo__max_logprob_difference=self.max_logprob_difference,
        )
        require_between(0, 1, ppo__gamma=self.gamma, ppo__lam=self.lam)
        require_not_negative(
            ppo__vf_coef=self.vf_coef,
            ppo__entropy_coef=self.entropy_coef,
            ppo__ptx_coef=self.ptx_coef,
            ppo__critic_warmup_steps=self.critic_warmup_steps,
            ppo__checkpoint_every=self.checkpoint_every,
            ppo__eval_every=self.eval_every,
        )
        # One step of the controller may change the coefficient by a factor of 1 - 0.2 * rollouts_per_step / horizon.
        require(
            self.kl.controller == "fixed" or self.rollouts_per_step < 5 * self.kl.horizon,
            field="ppo.kl.horizon",
            value=self.kl.horizon,
            rule=f"must exceed a fifth of ppo.rollouts_per_step ({self.rollouts_per_step}), or one step could bring "
            "the coefficient to 0",
            remedy=f"try {100 * self.rollouts_per_step}",
        )
        self._require_divisor("num_minibatches", self.num_minibatches)
        self._require_divisor("responses_per_prompt", self.responses_per_prompt)

    def _require_divisor(self, name: str, value: int) -> None:
        divisors = [d for d in range(1, self.rollouts_per_step + 1) if self.rollouts_per_step % d == 0]
        nearest = sorted(divisors, key=lambda d: (abs(d - value), d))[:2]
        require(
            self.rollouts_per_step % value == 0,
            field=f"ppo.{name}",
            value=value,
            rule=f"must divide ppo.rollouts_per_step ({self.rollouts_per_step})",
            remedy=f"try {' or '.join(str(d) for d in nearest)}",
        )

    @property
    def prompts_per_step(self) -> int:
        return self.rollouts_per_step // self.responses_per_prompt
