"""What test ranks are asked to do: build a learner, take steps, tell what became of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.engines import training
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import FloatArray, Rollout
from rlhf_ray.stages.ppo import PpoLearner, PpoSpec
from rlhf_ray.stages.ppo_plan import PpoWork, plan_ppo

Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, warmup_fraction=0.0, decay="linear", floor=0.1)
PPO = PpoConfig(
    num_steps=4,
    rollouts_per_step=12,
    num_epochs=2,
    num_minibatches=3,
    temperature=0.8,
    policy_optimizer=OPTIMIZER,
    critic_optimizer=OPTIMIZER,
)


@dataclass(frozen=True)
class Outcome:
    """What a rank answers after training: whole weights (rank 0 only), and the metrics of each step."""

    policy: Weights = field(default_factory=dict)
    critic: Weights = field(default_factory=dict)
    metrics: tuple[MetricSums, ...] = ()


def means(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    """The metrics of each step, over all ranks."""
    return [MetricSums.merged(parts).means() for parts in zip(*(o.metrics for o in outcomes), strict=True)]


def whole_weights(engine: TrainingEngine) -> Weights:
    """Every weight in float32; a collective. Empty on ranks above 0."""
    export = engine.export("float32")
    walked = export.tensors([meta.name for meta in export.metas])
    weights = {name: tensor.detach().numpy().copy() for name, tensor in walked}
    return weights if engine.info.rank == 0 else {}


@dataclass(frozen=True)
class PpoCase:
    """A PPO trainer and what it is fed."""

    policy_path: str
    critic_path: str
    rollouts: Sequence[Rollout]
    references: Sequence[FloatArray]
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_tokens_per_micro_batch=40))
    ppo: PpoConfig = PPO
    kl_coef: float = 0.1

    @property
    def spec(self) -> PpoSpec:
        return PpoSpec(
            policy_path=self.policy_path,
            critic_path=self.critic_path,
            policy_model=ModelConfig(),
            critic_model=ModelConfig(),
            training=self.training,
            ppo=self.ppo,
        )

    @property
    def scores(self) -> list[float]:
        return [float(np.sin(3.0 * r.order)) for r in self.rollouts]

    def works(self, num_ranks: int, step: int, **changes: Any) -> tuple[PpoWork, ...]:
        return plan_ppo(
            summaries=[r.summary for r in self.rollouts],
            scores=self.scores,
            config=self.ppo,
            num_ranks=num_ranks,
            max_tokens=self.training.max_tokens_per_micro_batch,
            step=step,
            kl_coef=self.kl_coef,
            seed=7,
            **changes,
        )


def shard_everything() -> None:
    """Let ZeRO treat these small models as large ones: nothing stays whole, gradients fill several buckets."""
    training.WHOLE_PARAMETER_ELEMENTS = 0
    training.BUCKET_ELEMENTS = 3000


def ppo_steps(info: RankInfo, case: PpoCase, steps: Sequence[int]) -> Outcome:
    """Build both engines, take the steps."""
    shard_everything()
    learner = case.spec.build(info)
    metrics = [ppo_step(learner, case, step) for step in steps]
    return Outcome(whole_weights(learner.policy), whole_weights(learner.critic), tuple(metrics))


def ppo_step(learner: PpoLearner, case: PpoCase, step: int, **changes: Any) -> MetricSums:
    info = learner.policy.info
    work = case.works(info.world_size, step, **changes)[info.rank]
    return learner.update(work, list(case.rollouts), tuple(case.references))


def largest_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The largest absolute difference of two sets of weights with the same names."""
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)
