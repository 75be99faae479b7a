"""PPO as in "Learning to summarize from human feedback" and InstructGPT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.algorithm import (
    GROUPED,
    WHITENED,
    ContractConfig,
    CorrectionConfig,
    Estimator,
    FilterConfig,
    KlConfig,
    LossConfig,
)
from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.config.training import OptimizerConfig


@dataclass(frozen=True)
class PpoRewardConfig:
    """What happens to a score before it becomes a reward, in this order. A clip or a penalty of 0 means none."""

    normalise_scores: bool = False  # by the mean and deviation of all scores of the run so far
    score_clip: float = 0.0
    missing_eos_penalty: float = 0.0
    overlong_penalty: float = 0.0  # at ppo.max_response_tokens; grows linearly over the last overlong_tokens
    overlong_tokens: int = 0
    whiten_rewards: bool = False

    def __post_init__(self) -> None:
        require_between(0, 1e6, ppo__reward__score_clip=self.score_clip)
        require_between(0, 1e6, ppo__reward__missing_eos_penalty=self.missing_eos_penalty)
        require_between(0, 1e6, ppo__reward__overlong_penalty=self.overlong_penalty)
        require(
            (self.overlong_tokens > 0) == (self.overlong_penalty > 0),
            field="ppo.reward.overlong_tokens",
            value=self.overlong_tokens,
            rule=f"and ppo.reward.overlong_penalty ({self.overlong_penalty:g}) must both be positive or both be 0",
            remedy="set both: over how many of the last tokens the penalty grows, and how large it becomes",
        )


def _constant(learning_rate: float) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=learning_rate, decay="constant")


@dataclass(frozen=True)
class PpoConfig:
    """A step samples ``rollouts_per_step`` responses and trains ``num_epochs`` passes in ``num_minibatches`` pieces."""

    schedule: Literal["sync", "colocate", "one_step_off", "async"] = "sync"
    max_staleness: int = 1  # async: updates between the weights that sampled a token and those that train on it
    num_steps: int = 30
    rollouts_per_step: int = 128
    responses_per_prompt: int = 1
    num_epochs: int = 1
    num_minibatches: int = 2
    max_response_tokens: int = 48
    ignore_eos: bool = False  # sample to that limit whatever comes: equal work in every step, for measurements
    temperature: float = 1.0
    top_p: float = 1.0  # these three are here to be refused, with the reason
    top_k: int = 0
    repetition_penalty: float = 1.0

    advantages: Estimator = "gae"
    gamma: float = 1.0
    lam: float = 0.95
    critic_lam: float | None = None  # lambda of the critic's targets (decoupled GAE); None: lam
    value_clip: float = 0.2  # 0: none
    vf_coef: float = 1.0
    whiten_advantages: bool | None = None  # None: as the estimator's authors do
    entropy_coef: float = 0.0

    loss: LossConfig = field(default_factory=LossConfig)
    kl: KlConfig = field(default_factory=KlConfig)
    reward: PpoRewardConfig = field(default_factory=PpoRewardConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    contracts: ContractConfig = field(default_factory=ContractConfig)
    policy_optimizer: OptimizerConfig = field(default_factory=lambda: _constant(1e-4))
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: _constant(3e-4))
    critic_initialise_from: Literal["reward_model", "sft"] = "reward_model"
    critic_warmup_steps: int = 0  # steps in which only the critic learns
    ptx_coef: float = 0.0  # weight of the demonstrations' loss, PPO-ptx
    ptx_batch_size: int = 32

    checkpoint_every: int = 0  # steps between saved states; 0 saves none
    eval_every: int = 0  # steps between evaluations on held-out prompts; 0 never
    eval_prompts: int = 128
    eval_responses: int = 1  # to each of these prompts
    save_rollouts: bool = False  # of every step, for `rlhf-ray replay`

    def __post_init__(self) -> None:
        require_positive(
            ppo__num_steps=self.num_steps,
            ppo__rollouts_per_step=self.rollouts_per_step,
            ppo__responses_per_prompt=self.responses_per_prompt,
            ppo__num_epochs=self.num_epochs,
            ppo__num_minibatches=self.num_minibatches,
            ppo__max_response_tokens=self.max_response_tokens,
            ppo__temperature=self.temperature,
            ppo__ptx_batch_size=self.ptx_batch_size,
            ppo__eval_prompts=self.eval_prompts,
            ppo__eval_responses=self.eval_responses,
        )
        require_between(0, 1, ppo__gamma=self.gamma, ppo__lam=self.lam)
        if self.critic_lam is not None:
            require_between(0, 1, ppo__critic_lam=self.critic_lam)
        require_not_negative(
            ppo__value_clip=self.value_clip,
            ppo__vf_coef=self.vf_coef,
            ppo__entropy_coef=self.entropy_coef,
            ppo__ptx_coef=self.ptx_coef,
            ppo__critic_warmup_steps=self.critic_warmup_steps,
            ppo__checkpoint_every=self.checkpoint_every,
            ppo__eval_every=self.eval_every,
        )
        require(
            not self.ignore_eos or self.reward.missing_eos_penalty == 0,
            field="ppo.ignore_eos",
            value=self.ignore_eos,
            rule="lets no response end, and ppo.reward.missing_eos_penalty would punish all of them",
            remedy="leave one of them out",
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

        self._require_group()
        self._require_whole_distribution()
        self._require_correction()

    def _require_whole_distribution(self) -> None:
        """The trainer computes with the whole softmax: tokens sampled from another distribution have other ratios."""
        sharpen = "lower ppo.temperature for likelier tokens: the trainer applies it too"
        for name, value, neutral, effect, remedy in (
            ("top_p", self.top_p, 1.0, "leaves out unlikely tokens", sharpen),
            ("top_k", self.top_k, 0, "leaves out unlikely tokens", sharpen),
            (
                "repetition_penalty",
                self.repetition_penalty,
                1.0,
                "changes every logit",
                "score repetition in rewards.sources instead",
            ),
        ):
            require(
                value == neutral,
                field=f"ppo.{name}",
                value=value,
                rule=f"{effect} when sampling, while the trainer's log-probabilities are of the whole softmax: the "
                f"ratio and the KL would be biased; only {neutral:g} is unbiased",
                remedy=remedy,
            )

    def _require_correction(self) -> None:
        require_between(0, 1000, ppo__max_staleness=self.max_staleness)
        require(
            self.staleness_bound == 0 or self.correction.level != "none",
            field="ppo.correction.level",
            value=self.correction.level,
            rule=f"leaves out the importance weights, and with ppo.schedule={self.schedule} tokens are up to "
            f"{self.staleness_bound} updates old when they are trained on",
            remedy="set it to token (weights cut off at ppo.correction.high), or ppo.schedule to sync",
        )

    def _require_group(self) -> None:
        least = 2 if self.advantages in GROUPED or self.filter.enabled else 1
        why = f"ppo.advantages={self.advantages}" if self.advantages in GROUPED else "ppo.filter"
        require(
            self.responses_per_prompt >= least,
            field="ppo.responses_per_prompt",
            value=self.responses_per_prompt,
            rule=f"must be 2 or more: {why} compares the responses to one prompt",
            remedy="try 4 or 8",
        )
        require(
            self.critic_warmup_steps == 0 or self.has_critic,
            field="ppo.critic_warmup_steps",
            value=self.critic_warmup_steps,
            rule=f"warms up a critic, and ppo.advantages={self.advantages} has none",
            remedy="set it to 0",
        )

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

    @property
    def staleness_bound(self) -> int:
        """Updates between the weights that sampled a token and those that train on it, at most."""
        return {"one_step_off": 1, "async": self.max_staleness}.get(self.schedule, 0)

    @property
    def has_critic(self) -> bool:
        return self.advantages == "gae"

    @property
    def whitens_advantages(self) -> bool:
        return self.advantages in WHITENED if self.whiten_advantages is None else self.whiten_advantages
