"""One run, split in many ways: ranks, ZeRO, micro-batches, layout, checkpointing. How far do the results differ?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_ray.config.algorithm import KlConfig, LossConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.engines.scoring import ReferenceEngine
from tests import tiny, trainers
from tests.ranks import ranks
from tests.trainers import PpoCase, Weights, means

STEPS = (1, 2, 3, 4, 5)
LONGEST_RESPONSE = 24
MODEL = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 128,
    "initializer_range": 0.12,
}
OPTIMIZER = OptimizerConfig(learning_rate=3e-4, weight_decay=0.01, warmup_fraction=0.0, decay="linear", floor=0.1)
PPO = PpoConfig(
    num_steps=5,
    rollouts_per_step=16,
    responses_per_prompt=4,
    num_epochs=2,
    num_minibatches=2,
    temperature=0.8,
    policy_optimizer=OPTIMIZER,
    critic_optimizer=OPTIMIZER,
)
MEMBERS: Mapping[str, PpoConfig] = {
    "GAE-PPO": replace(PPO, loss=LossConfig(clip_ratio=0.1)),
    "GRPO": replace(
        PPO,
        advantages="grpo",
        loss=LossConfig(clip_ratio=0.1, aggregation="sequence_mean"),
        kl=KlConfig(estimator="k3", placement="loss"),
    ),
}
ONE_ROW, FOUR_ROWS, ALL = 1, 4 * (LONGEST_RESPONSE + 7), 100_000  # tokens a micro-batch may have
# What is left out: it says how the step was cut, and not what was learned.
OF_THE_CUT = frozenset({"ppo/padding_fraction"})
GROUPS: Mapping[str, tuple[str, ...]] = {
    "loss": ("ppo/policy_loss", "ppo/value_loss"),
    "KL": ("ppo/kl_per_token", "ppo/kl_k3", "ppo/kl_loss", "ppo/approx_kl", "ppo/first_kl"),
    "grad norm": ("ppo/policy_grad_norm", "ppo/critic_grad_norm"),
    "clip fraction": ("ppo/clip_fraction", "ppo/value_clip_fraction"),
}


@dataclass(frozen=True)
class Variant:
    """One way to run it."""

    world_size: int = 1
    zero_stage: int = 0
    max_tokens: int = ALL
    layout: str = "padded"
    gradient_checkpointing: bool = False

    @property
    def training(self) -> TrainingConfig:
        return TrainingConfig(
            num_ranks=self.world_size,
            zero_stage=self.zero_stage,
            max_tokens_per_micro_batch=self.max_tokens,
            layout=self.layout,  # type: ignore[arg-type]
            gradient_checkpointing=self.gradient_checkpointing,
        )


PLAIN = Variant()
MOVEMENT = "what five steps change"
CAPTION = (
    "Five PPO steps from the same rollouts, compared with one rank, no ZeRO, the padded layout and everything in one "
    "micro-batch: absolute differences of the final weights (largest and mean), and the largest difference of any step "
    "in the losses, the KL measures, the gradient norms, the clip fractions and all other metrics."
)
VARIANTS: Mapping[str, Variant] = {
    **{f"1 rank, ZeRO {stage}": Variant(zero_stage=stage) for stage in (1, 2, 3)},
    **{f"2 ranks, ZeRO {stage}": Variant(2, stage) for stage in (0, 1, 2, 3)},
    "1 row a micro-batch": Variant(max_tokens=ONE_ROW),
    "4 rows a micro-batch": Variant(max_tokens=FOUR_ROWS),
    "packed": Variant(layout="packed"),
    "packed, 4 rows a micro-batch": Variant(max_tokens=FOUR_ROWS, layout="packed"),
    "checkpointing": Variant(gradient_checkpointing=True),
    "2 ranks, ZeRO 2, 1 row a micro-batch": Variant(2, 2, ONE_ROW),
    "2 ranks, ZeRO 3, packed, 4 rows, checkpointing": Variant(2, 3, FOUR_ROWS, "packed", True),
}


@dataclass(frozen=True)
class Trajectory:
    """The metrics of every step, and the weights at the end."""

    metrics: Sequence[Mapping[str, float]]
    policy: Weights
    critic: Weights


@dataclass(frozen=True)
class Difference:
    """Of two trajectories, each absolute: over all weights, and over the steps for every metric."""

    policy: tuple[float, float]  # largest, mean
    critic: tuple[float, float]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def largest(self, group: str) -> float:
        """Over the metrics of a group of ``GROUPS``; "others" are those of none."""
        named = {name for names in GROUPS.values() for name in names}
        chosen = self.metrics.keys() - named if group == "others" else set(GROUPS[group])
        return max((self.metrics[name] for name in chosen if name in self.metrics), default=0.0)

    @property
    def numbers(self) -> dict[str, float]:
        """What the table shows, by column."""
        return {
            "policy, largest": self.policy[0],
            "policy, mean": self.policy[1],
            "critic, largest": self.critic[0],
            "critic, mean": self.critic[1],
            **{group: self.largest(group) for group in (*GROUPS, "others")},
        }


def cases(directory: Path) -> dict[str, PpoCase]:
    """The members on models of 90 000 weights, with 16 rollouts whose reference is the policy before any step."""
    policy = tiny.saved(tiny.causal_model(**MODEL), directory / "policy")
    critic = tiny.saved(tiny.scalar_model(**MODEL), directory / "critic")
    rollouts = tiny.rollouts(
        16, seed=2, longest_response=LONGEST_RESPONSE, responses_per_prompt=4, vocabulary=MODEL["vocab_size"]
    )
    engine = ReferenceEngine(
        path=policy, model=ModelConfig(), config=ServerConfig(), device="cpu", temperature=PPO.temperature
    )
    references = engine.logprobs(rollouts)
    return {name: PpoCase(policy, critic, rollouts, references, ppo=ppo, kl_coef=0.1) for name, ppo in MEMBERS.items()}


def trajectory(case: PpoCase, variant: Variant) -> Trajectory:
    outcomes = ranks(variant.world_size).run(trainers.ppo_steps, replace(case, training=variant.training), STEPS)
    return Trajectory(means(outcomes), outcomes[0].policy, outcomes[0].critic)


def measured(case: PpoCase) -> dict[str, dict[str, float]]:
    """The numbers of every variant against the plain one, under what training itself does to the same numbers."""
    plain = trajectory(case, PLAIN)
    rows = {MOVEMENT: movement(case, plain)}
    rows |= {name: difference(plain, trajectory(case, variant)) for name, variant in VARIANTS.items()}
    return {name: found.numbers for name, found in rows.items()}


def difference(one: Trajectory, other: Trajectory) -> Difference:
    metrics: dict[str, float] = {}
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - OF_THE_CUT:
            metrics[name] = max(metrics.get(name, 0.0), abs(a[name] - b[name]))
    return Difference(_of_weights(one.policy, other.policy), _of_weights(one.critic, other.critic), metrics)


def _of_weights(a: Weights, b: Weights) -> tuple[float, float]:
    assert a.keys() == b.keys()
    if not a:
        return 0.0, 0.0
    gaps = np.concatenate([np.abs(a[name].astype(np.float64) - b[name]).ravel() for name in a])
    return float(gaps.max()), float(gaps.mean())


def movement(case: PpoCase, trained: Trajectory) -> Difference:
    """How far training moved the weights and how far the metrics range: what differences are to be compared with."""
    start = AutoModelForCausalLM.from_pretrained(case.policy_path)
    critic = AutoModelForSequenceClassification.from_pretrained(case.critic_path) if trained.critic else None
    steps = [[step[name] for step in trained.metrics if name in step] for name in sorted(trained.metrics[0])]
    spans = [max(values) - min(values) for values in steps]
    return Difference(
        _of_weights(_by_name(start), trained.policy),
        _of_weights(_by_name(critic), trained.critic) if critic else (0.0, 0.0),
        {name: span for name, span in zip(sorted(trained.metrics[0]), spans, strict=True) if name not in OF_THE_CUT},
    )


def _by_name(model: PreTrainedModel) -> Weights:
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a line for each variant."""
    columns = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{found[c]:.1e}" for c in columns) + " |" for name, found in rows.items()]
    return "\n".join(lines)
