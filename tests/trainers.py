"""What test ranks are asked to do: build a learner, take steps, tell what became of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import OptimizerConfig, TrainingConfig
from rlhf_ray.data.collate import TokenSequence, collate
from rlhf_ray.engines import training
from rlhf_ray.engines.models import DTYPES, PolicyModule, backbone, load_causal, own_part
from rlhf_ray.engines.ranks import RankInfo
from rlhf_ray.engines.training import TrainingEngine
from rlhf_ray.errors import ConfigError, NumericsError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.records import AdaptersOff, FloatArray, Rollout
from rlhf_ray.stages.dpo import DpoSpec
from rlhf_ray.stages.ppo import PpoLearner, PpoSpec
from rlhf_ray.stages.ppo_plan import PpoWork, StepRewards, plan_ppo
from rlhf_ray.stages.process_reward import ProcessRewardSpec
from rlhf_ray.stages.sft import SftSpec
from rlhf_ray.stages.work import LabelledSteps, RawScores, plan_preferences, plan_rankings, plan_sequences, plan_steps
from tests import tiny

Weights: TypeAlias = dict[str, npt.NDArray[np.float32]]
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, weight_decay=0.01, warmup_fraction=0.0, decay="linear", floor=0.1)
PPO = PpoConfig(
    num_steps=4,
    rollouts_per_step=6,
    num_epochs=2,
    num_minibatches=2,
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
    logprobs: tuple[float, ...] = ()


def means(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    """The metrics of each step, over all ranks."""
    return [MetricSums.merged(parts).means() for parts in zip(*(o.metrics for o in outcomes), strict=True)]


def whole_weights(engine: TrainingEngine) -> Weights:
    """Every weight in float32; a collective. Empty on ranks above 0."""
    export = engine.export("float32")
    walked = export.tensors([meta.name for meta in export.metas])
    weights = {name: tensor.detach().numpy().copy() for name, tensor in walked}
    return weights if engine.info.rank == 0 else {}


def critic_weights(learner: PpoLearner) -> Weights:
    return {} if learner.critic is None else whole_weights(learner.critic)


@dataclass(frozen=True)
class PpoCase:
    """A PPO trainer and its rollouts. Three rows a minibatch, one a micro-batch: one of two ranks has an empty one."""

    policy_path: str
    critic_path: str
    rollouts: Sequence[Rollout]
    references: Sequence[FloatArray]
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_tokens_per_micro_batch=1))
    ppo: PpoConfig = PPO
    kl_coef: float = 0.1
    score_scale: float = 1.0
    demonstrations: Sequence[TokenSequence] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    step_rewards: Mapping[int, StepRewards] = field(default_factory=dict)
    reference_path: str = ""
    saved_steps: str = ""

    @property
    def spec(self) -> PpoSpec:
        return PpoSpec(
            policy_path=self.policy_path,
            critic_path=self.critic_path,
            policy_model=ModelConfig(),
            critic_model=ModelConfig(),
            training=self.training,
            ppo=self.ppo,
            reference_path=self.reference_path,
            saved_steps=self.saved_steps,
        )

    @property
    def scores(self) -> list[float]:
        return [self.score_scale * float(np.sin(3.0 * r.order)) for r in self.rollouts]

    def works(self, num_ranks: int, step: int) -> tuple[PpoWork, ...]:
        limit = self.training.max_tokens_per_micro_batch
        ptx = (
            [plan_sequences(self.demonstrations, num_ranks=num_ranks, max_tokens=limit)] if self.demonstrations else []
        )
        return plan_ppo(
            summaries=[r.summary for r in self.rollouts],
            scores=self.scores,
            config=self.ppo,
            num_ranks=num_ranks,
            max_tokens=limit,
            step=step,
            kl_coef=self.kl_coef,
            seed=7,
            ptx=ptx * self.ppo.num_minibatches,
            baselines=self.baselines,
            step_rewards=self.step_rewards,
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
    return Outcome(whole_weights(learner.policy), critic_weights(learner), tuple(metrics))


def resumed_ppo_steps(
    info: RankInfo, case: PpoCase, directory: str, until: Sequence[int], then: Sequence[int]
) -> Outcome:
    """Take steps, save; build anew, load, take the others."""
    shard_everything()
    learner = case.spec.build(info)
    for step in until:
        ppo_step(learner, case, step)
    learner.save_state(directory, "last")
    fresh = case.spec.build(info)
    fresh.load_state(directory, "last")
    metrics = tuple(ppo_step(fresh, case, step) for step in then)
    return Outcome(whole_weights(fresh.policy), critic_weights(fresh), metrics)


def saved_ppo_steps(info: RankInfo, case: PpoCase, directory: str, steps: Sequence[int]) -> None:
    """Take steps, save."""
    shard_everything()
    learner = case.spec.build(info)
    for step in steps:
        ppo_step(learner, case, step)
    learner.save_state(directory, "last")


def loaded_ppo_steps(
    info: RankInfo, case: PpoCase, directory: str, steps: Sequence[int], forgetful: bool = False
) -> Outcome:
    """Load, take the steps; a forgetful one loses the moments of Adam."""
    shard_everything()
    learner = case.spec.build(info)
    learner.load_state(directory, "last")
    if forgetful:
        learner.policy.engine.optimizer.state.clear()
    metrics = tuple(ppo_step(learner, case, step) for step in steps)
    return Outcome(whole_weights(learner.policy), critic_weights(learner), metrics)


def ppo_step(learner: PpoLearner, case: PpoCase, step: int) -> MetricSums:
    info = learner.policy.info
    work = case.works(info.world_size, step)[info.rank]
    reference = AdaptersOff() if case.training.lora.enabled else tuple(case.references)
    return learner.update(work, list(case.rollouts), reference)


def ppo_step_in_blocks(info: RankInfo, case: PpoCase, *bounds: tuple[int, int]) -> Outcome:
    """The first step, the rollouts given in the blocks [start, end)."""
    learner = case.spec.build(info)
    parts = [(list(case.rollouts[a:b]), tuple(case.references[a:b])) for a, b in bounds]
    metrics = learner.update(case.works(info.world_size, 1)[info.rank], *(block for part in parts for block in part))
    return Outcome(whole_weights(learner.policy), critic_weights(learner), (metrics,))


def refused_ppo_step(
    info: RankInfo, case: PpoCase, step: int = 1, dropout_on: int | None = None
) -> tuple[str, Weights]:
    """Take a step that must fail; the message and the weights after it. A rank may be given a layer with dropout."""
    learner = case.spec.build(info)
    if info.rank == dropout_on:
        backbone(learner.policy.module.model).layers[0].mlp.register_forward_hook(_dropout)
    try:
        ppo_step(learner, case, step)
    except NumericsError as error:
        return str(error), whole_weights(learner.policy)
    raise AssertionError("the step was taken")


def _dropout(module: Any, _inputs: Any, output: Any) -> Any:
    return torch.nn.functional.dropout(output, 0.1, module.training)


def has_critic(info: RankInfo, case: PpoCase) -> bool:
    return case.spec.build(info).critic is not None


def probe(info: RankInfo, case: PpoCase, token_ids: Sequence[int]) -> list[float]:
    shard_everything()
    return case.spec.build(info).probe(token_ids)


def largest_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The largest absolute difference of two sets of weights with the same names."""
    assert a.keys() == b.keys()
    return max((float(np.abs(a[name] - b[name]).max()) for name in a), default=0.0)


# --------------------------------------------------------------------------------------------- SFT and the reward model
@dataclass(frozen=True)
class SupervisedCase:
    """A learner of SFT, of the reward model or of DPO, and its batches, one a step."""

    spec: Any
    batches: Sequence[Sequence[Any]]

    def works(self, num_ranks: int, step: int) -> tuple[Any, ...]:
        split = {"num_ranks": num_ranks, "max_tokens": self.spec.training.max_tokens_per_micro_batch}
        if isinstance(self.spec, DpoSpec):
            single = self.spec.dpo.loss == "kto"
            return plan_preferences(self.batches[step], single_responses=single, **split)
        if isinstance(self.spec, ProcessRewardSpec):
            return plan_steps(self.batches[step], **split)
        plan = plan_sequences if isinstance(self.spec, SftSpec) else plan_rankings
        return plan(self.batches[step], **split)


def supervised_steps(info: RankInfo, case: SupervisedCase) -> Outcome:
    """Build the learner, take a step on each batch."""
    shard_everything()
    learner = case.spec.build(info)
    metrics = [learner.update(case.works(info.world_size, step)[info.rank]) for step in range(len(case.batches))]
    engine = learner.reward_model if hasattr(learner, "reward_model") else learner.policy
    return Outcome(whole_weights(engine), {}, tuple(metrics))


def evaluate_then_step(info: RankInfo, case: SupervisedCase) -> Outcome:
    shard_everything()
    learner = case.spec.build(info)
    work = case.works(info.world_size, 0)[info.rank]
    return Outcome(metrics=(learner.evaluate(work), learner.update(work)))


def step_and_save(info: RankInfo, case: SupervisedCase, directory: str) -> Outcome:
    """Take the first step, save; tell the log-probabilities of a text."""
    shard_everything()
    learner = case.spec.build(info)
    learner.update(case.works(info.world_size, 0)[info.rank])
    learner.save(directory)
    text = np.array([5, 17, 33, 2, 60, 9], dtype=np.int32)
    with learner.policy.inference():
        logprobs = learner.policy.forward(collate([TokenSequence(text, np.arange(6) > 0)]))[0]
    return Outcome(whole_weights(learner.policy), logprobs=tuple(logprobs[0, 1:].tolist()))


def score_and_save(
    info: RankInfo, case: SupervisedCase, directory: str, settings: Mapping[str, Any]
) -> tuple[tuple[int, RawScores], ...]:
    """Take the first step, score its rankings, save."""
    shard_everything()
    learner = case.spec.build(info)
    work = case.works(info.world_size, 0)[info.rank]
    learner.update(work)
    learner.save(directory, settings)
    scores: tuple[tuple[int, RawScores], ...] = learner.score(work)
    return scores


def learn_score_and_save(
    info: RankInfo, case: SupervisedCase, heldout: Sequence[LabelledSteps], directory: str
) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """Train a process reward model on every batch, ask it about others, save it with mean 0.5 and deviation 2."""
    shard_everything()
    learner = case.spec.build(info)
    for step in range(len(case.batches)):
        learner.update(case.works(info.world_size, step)[info.rank])
    (work,) = plan_steps(heldout, num_ranks=1, max_tokens=100_000)
    learner.save(directory, {"score_mean": 0.5, "score_std": 2.0})
    rewards: tuple[tuple[int, tuple[float, ...]], ...] = learner.score(work)
    return rewards


# ------------------------------------------------------------------------------------------------------- engines alone
@dataclass(frozen=True)
class EngineCase:
    """A policy's engine and how it is set up."""

    path: str
    training: TrainingConfig
    optimizer: OptimizerConfig = OPTIMIZER
    num_steps: int = 4
    whole_elements: int = 0  # parameters up to this size stay whole under ZeRO-3

    def build(self, info: RankInfo) -> TrainingEngine:
        shard_everything()
        training.WHOLE_PARAMETER_ELEMENTS = self.whole_elements
        with training.sharded_loading(self.training):
            model = load_causal(self.path, ModelConfig(), DTYPES[self.training.dtype], self.training.lora)
        return TrainingEngine(
            module=PolicyModule(model),
            info=info,
            config=self.training,
            optimizer=self.optimizer,
            num_steps=self.num_steps,
        )


def backward(engine: TrainingEngine, factor: float = 1.0) -> None:
    """The gradient of the mean log-likelihood of two sequences; with two ranks each has one."""
    sequences = tiny.sequences(2, seed=4)
    own = [s for i, s in enumerate(sequences) if i % engine.info.world_size == engine.info.rank]
    batch = collate(own)
    logprobs = engine.forward(batch)[0]
    engine.backward(-factor * logprobs.sum(), sum(int(s.mask.sum()) for s in sequences))


def poisoned_step(info: RankInfo, case: EngineCase, poison: str) -> tuple[str, bool]:
    """One good step, then one with what is not finite on the last rank; the message, and whether no weight changed."""
    engine = case.build(info)
    backward(engine)
    engine.step()
    before = local_weights(engine)
    last = info.rank == info.world_size - 1
    hook = None
    if last and poison == "gradient":
        hook = engine.module.model.get_output_embeddings().register_full_backward_hook(_nan_gradient)
    backward(engine, math.nan if last and poison == "loss" else 1.0)
    if hook is not None:
        hook.remove()
    try:
        engine.step()
    except NumericsError as error:
        after = local_weights(engine)
        return str(error), all(np.array_equal(after[name], before[name]) for name in before)
    raise AssertionError("the step was taken")


def weights_around_a_refusal(info: RankInfo, case: EngineCase, poison: str) -> tuple[str, Weights, Weights]:
    """A good step, what ``poison`` says, a good step; the refusal, and the weights with and without what it says."""
    said, ends = "", []
    for tries in (True, False):
        engine = case.build(info)
        good_step(engine)
        if tries:
            said = refused(engine, poison)
        good_step(engine)
        good_step(engine)
        ends.append(whole_weights(engine))
    return said, ends[0], ends[1]


def good_step(engine: TrainingEngine) -> None:
    """A step over two micro-batches, so that gradients are added up."""
    backward(engine)
    backward(engine, 0.5)
    engine.step()


def refused(engine: TrainingEngine, poison: str) -> str:
    """Two backward passes of which one may be poisoned, then a step that is refused, or none ("nothing")."""
    last = engine.info.rank == engine.info.world_size - 1
    layer = engine.module.model.get_output_embeddings()
    hook = layer.register_full_backward_hook(_nan_gradient) if last and poison == "gradient" else None
    backward(engine, math.nan if last and poison == "loss" else 7.0)
    if hook is not None:
        hook.remove()
    backward(engine, 3.0)
    said = ""
    if poison != "nothing":
        try:
            engine.step()
        except NumericsError as error:
            said = str(error)
    engine.discard_gradients()
    return said


def poisoned_parameters(info: RankInfo, case: EngineCase, layer: int) -> list[str]:
    """Names of the parameters whose gradient is not finite when that of one layer's output is not."""
    engine = case.build(info)
    with engine.watched_gradients() as found:
        backward(engine)
        assert not found
        block = backbone(engine.module.model).layers[layer].mlp.down_proj
        hook = block.register_full_backward_hook(_nan_gradient)
        backward(engine)
        hook.remove()
    backward(engine)
    engine.discard_gradients()
    return [name for name in engine.parameter_names if name in found]


def _nan_gradient(_module: Any, gradients: Any, _outputs: Any) -> Any:
    return tuple(gradient * math.nan for gradient in gradients)


def local_weights(engine: TrainingEngine) -> Weights:
    """What this rank holds, without asking the others."""
    named = engine.module.named_parameters()
    return {name: own_part(parameter).float().numpy().copy() for name, parameter in named}


def norm_and_movement(info: RankInfo, case: EngineCase) -> tuple[float, float]:
    """The norm that one step reports, and how far it moved the weights (rank 0)."""
    engine = case.build(info)
    before = whole_weights(engine)
    backward(engine)
    norm = engine.step()
    after = whole_weights(engine)
    squares = [float(((after[name] - before[name]).astype(np.float64) ** 2).sum()) for name in before]
    return norm, math.sqrt(sum(squares))


def layer_calls(info: RankInfo, case: EngineCase) -> int:
    """How often the first layer runs in one forward and backward pass."""
    engine, calls = case.build(info), []
    layer = backbone(engine.module.model).layers[0].mlp
    with layer.register_forward_pre_hook(lambda *_: calls.append(1)):
        backward(engine)
    return len(calls)


def learning_rates(info: RankInfo, case: EngineCase, num_steps: int) -> list[float]:
    """The rate that the optimizer was given at each step."""
    engine, rates = case.build(info), []
    for _ in range(num_steps):
        backward(engine)
        engine.step()
        rates.append(float(engine.engine.optimizer.param_groups[0]["lr"]))
    return rates


def failed_load(info: RankInfo, case: EngineCase, directory: str) -> str:
    try:
        case.build(info).load_state(Path(directory), "step-7")
    except ConfigError as error:
        return str(error)
    raise AssertionError("something was loaded")


def trained_and_saved(info: RankInfo, case: EngineCase, state: str, checkpoint: str) -> None:
    """Three steps, then the state and the Hugging Face checkpoint of the same weights."""
    engine = case.build(info)
    for _ in range(3):
        backward(engine)
        engine.step()
    engine.save_state(Path(state), "trainer")
    engine.save_pretrained(Path(checkpoint))


def weights_after_steps(info: RankInfo, case: EngineCase, num_steps: int) -> Weights:
    engine = case.build(info)
    for _ in range(num_steps):
        backward(engine)
        engine.step()
    return whole_weights(engine)


def loaded_engine(info: RankInfo, path: str, config: TrainingConfig) -> TrainingEngine:
    """An engine around the model at ``path``; adapters are stirred before they are sharded."""
    shard_everything()
    with training.sharded_loading(config):
        model = load_causal(path, ModelConfig(), DTYPES[config.dtype], config.lora)
    module = PolicyModule(tiny.stirred(model))
    return TrainingEngine(module=module, info=info, config=config, optimizer=OPTIMIZER, num_steps=4)


def loaded_weights(info: RankInfo, path: str, config: TrainingConfig) -> tuple[dict[str, tuple[int, ...]], Weights]:
    """Shapes as announced and weights as exported, on every rank."""
    export = loaded_engine(info, path, config).export("float32")
    shapes = {meta.name: meta.shape for meta in export.metas}
    return shapes, {name: tensor.detach().numpy().copy() for name, tensor in export.tensors(list(shapes))}


def load_and_save(info: RankInfo, path: str, config: TrainingConfig, directory: str) -> None:
    loaded_engine(info, path, config).save_pretrained(Path(directory))
