"""The whole run: one tree from demonstrations to report, and the rules that cross its sections."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.config.alarms import Action, AlarmsConfig
from rlhf_ray.config.algorithm import MAX_EXACT_KL_VOCABULARY
from rlhf_ray.config.checkpoints import CheckpointConfig
from rlhf_ray.config.checks import require
from rlhf_ray.config.cluster import ClusterConfig, WeightSyncConfig
from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.evaluation import EvaluationConfig
from rlhf_ray.config.faults import FaultsConfig
from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.config.iteration import IterationConfig
from rlhf_ray.config.judge import JudgeConfig, RevisionConfig
from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.raft import RaftConfig
from rlhf_ray.config.reward_model import ComparisonConfig, RewardModelConfig
from rlhf_ray.config.rewards import RewardsConfig, RewardSourceConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.sft import SftConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics.registry import UnknownMetricError, describe

Method = Literal["ppo", "dpo", "raft", "best_of_n"]
BEST_OF_N: Method = "best_of_n"
OF_REWARDS: tuple[Method, ...] = ("ppo", "raft", "best_of_n")  # they follow a reward
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # of vLLM's attention on CPUs


@dataclass(frozen=True)
class RunConfig:
    """``device: auto`` uses GPUs where there are any. ``methods`` make aligned models, each from the SFT model."""

    name: str = "run"
    seed: int = 0
    output_dir: str = "runs/${name}"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    methods: tuple[Method, ...] = ("ppo",)

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reference: ServerConfig = field(default_factory=ServerConfig)
    reward_server: ServerConfig = field(default_factory=ServerConfig)
    weight_sync: WeightSyncConfig = field(default_factory=WeightSyncConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    sft: SftConfig = field(default_factory=SftConfig)
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    revision: RevisionConfig = field(default_factory=RevisionConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    raft: RaftConfig = field(default_factory=RaftConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    iteration: IterationConfig = field(default_factory=IterationConfig)

    def __post_init__(self) -> None:
        require(
            0 <= self.seed < 2**31,
            field="seed",
            value=self.seed,
            rule="must lie between 0 and 2**31 - 1",
            remedy="choose a seed in that range",
        )
        require(
            len(self.methods) > 0 and len(set(self.methods)) == len(self.methods),
            field="methods",
            value=tuple(self.methods),
            rule="must name one or more methods, each once",
            remedy="use for example [ppo], [dpo] or [ppo, dpo, raft, best_of_n]",
        )
        self._require_lengths()
        self._require_rewards()
        self._require_exact_kl()
        self._require_best_metric()
        self._require_alarms_can_act()
        if self.model.path is None:
            self._require_head_size()

    def _require_lengths(self) -> None:
        """Prompt and response, micro-batches, engines and positions hold ``model.max_length`` tokens."""
        self._require_room("ppo.max_response_tokens", self.ppo.max_response_tokens)
        self._require_room("evaluation.max_response_tokens", self.evaluation.max_response_tokens)
        require(
            self.model.max_length <= self.training.max_tokens_per_micro_batch,
            field="training.max_tokens_per_micro_batch",
            value=self.training.max_tokens_per_micro_batch,
            rule=f"must hold at least one sequence of model.max_length ({self.model.max_length})",
            remedy="raise it",
        )
        longest_served = self.generation.max_model_len
        require(
            longest_served is None or longest_served >= self.model.max_length,
            field="generation.max_model_len",
            value=longest_served,
            rule=f"must not be below model.max_length ({self.model.max_length})",
            remedy="raise it, or leave it out",
        )
        longest = self.model.scratch.max_position_embeddings
        require(
            self.model.path is not None or self.model.max_length <= longest,
            field="model.max_length",
            value=self.model.max_length,
            rule=f"must not exceed model.scratch.max_position_embeddings ({longest})",
            remedy="lower one or raise the other",
        )

    def _require_rewards(self) -> None:
        """Whoever follows a reward has one, and no source may take longer than an actor is waited for."""
        require(
            self.follows_reward or not any(source.is_own_model for source in self.rewards.sources.values()),
            field="rewards.sources",
            value=sorted(self.rewards.sources),
            rule=f"ask for the run's own reward model, and no method follows it ({', '.join(self.methods)})",
            remedy="add ppo, raft or best_of_n to methods, set dpo.online.num_steps, or give the source a path",
        )
        starts_critic = "ppo" in self.methods and self.ppo.has_critic
        require(
            self.rewards.uses_own_model or not starts_critic or self.ppo.critic_initialise_from != "reward_model",
            field="ppo.critic_initialise_from",
            value=self.ppo.critic_initialise_from,
            rule="needs the run's own reward model, and none of rewards.sources is it",
            remedy="use ppo.critic_initialise_from=sft, or add a source of kind=model without a path",
        )
        self._require_reward_model_fits(starts_critic)
        for name, source in self.rewards.sources.items():
            require(
                source.kind == "model" or source.longest_call_s < self.cluster.actor_timeout_s,
                field=f"rewards.sources.{name}.timeout_s",
                value=source.timeout_s,
                rule=f"lets one call take {source.longest_call_s:g} s, and an actor must answer within "
                f"cluster.actor_timeout_s ({self.cluster.actor_timeout_s:g})",
                remedy="lower one or raise the other",
            )

    def _require_reward_model_fits(self, starts_critic: bool) -> None:
        """A critic starts from one head, and only an ensemble disagrees."""
        require(
            not (starts_critic and self.trains_reward_model and self.reward_model.axes)
            or self.ppo.critic_initialise_from != "reward_model",
            field="ppo.critic_initialise_from",
            value=self.ppo.critic_initialise_from,
            rule=f"needs a reward model with one head, and reward_model.axes give it {len(self.reward_model.axes)}",
            remedy="use ppo.critic_initialise_from=sft",
        )
        require(
            not self.judge.by_axis or bool(self.judge.store) or bool(self.reward_model.axes),
            field="judge.by_axis",
            value=self.judge.by_axis,
            rule="keeps comparisons for heads of their own, and reward_model.axes names none: nobody would learn them",
            remedy="set it to false, or reward_model.axes to the principles' axes",
        )
        require(
            self.rewards.uncertainty_penalty == 0 or (self.reward_model.ensemble > 1 and self.trains_reward_model),
            field="rewards.uncertainty_penalty",
            value=self.rewards.uncertainty_penalty,
            rule=f"needs members of the run's own reward model that disagree, and there are "
            f"{self.reward_model.ensemble if self.trains_reward_model else 0}",
            remedy="set reward_model.ensemble=4, or leave the penalty at 0",
        )

    def _require_best_metric(self) -> None:
        """A state can only be the best by a number that is measured."""
        metric = self.checkpoints.best_metric
        if not metric:
            return
        try:
            describe(metric)
        except UnknownMetricError as error:
            raise ConfigError(
                "checkpoints.best_metric", metric, f"is no metric ({error})", "name one that the run logs"
            ) from error
        require(
            not metric.startswith(("gold/", "grade/")) or self.ppo.eval_every > 0,
            field="checkpoints.best_metric",
            value=metric,
            rule="is measured on held-out prompts, and ppo.eval_every is 0: no step would ever be the best",
            remedy="set ppo.eval_every, or name another metric",
        )

    def _require_alarms_can_act(self) -> None:
        """What an alarm is to do must be possible in this run."""
        has_ppo = "ppo" in self.methods or not self.dpo_is_online  # online DPO saves whenever it is asked to
        saves = not has_ppo or self.ppo.checkpoint_every > 0 or self.checkpoints.every_minutes > 0
        of_ppo = "is of PPO alone, and the run trains by online DPO", "use warn, save or pause"
        rules: tuple[tuple[Action, bool, str, str], ...] = (
            ("raise_kl", has_ppo, *of_ppo),
            ("stop_keep_best", has_ppo, *of_ppo),
            ("save", saves, "needs saved states, and the run saves none", "set ppo.checkpoint_every"),
            (
                "stop_keep_best",
                saves and bool(self.checkpoints.best_metric),
                "keeps the best of the saved states, and the run saves none or does not know which is the best",
                "set ppo.checkpoint_every, ppo.eval_every and checkpoints.best_metric=gold/heldout_mean",
            ),
            ("raise_kl", self.ppo.kl.coef > 0, "multiplies ppo.kl.coef, which is 0", "give it a value above 0"),
        )
        for action, holds, rule, remedy in rules:
            for name in self.alarms.acting(action):
                require(holds, field=f"alarms.rules.{name}.action", value=action, rule=rule, remedy=remedy)

    def step_separator(self, source: RewardSourceConfig) -> str:
        """What ends the steps that ``source`` scores one by one; empty where it scores whole responses."""
        if source.is_own_model and self.reward_model.kind == "process":
            return self.reward_model.step_separator
        return str(source.arguments.get("step_separator", ""))

    @property
    def follows_reward(self) -> bool:
        return self.dpo_is_online or any(method in OF_REWARDS for method in self.methods)

    @property
    def dpo_is_online(self) -> bool:
        return "dpo" in self.methods and self.dpo.online.enabled

    @property
    def trains_reward_model(self) -> bool:
        return self.follows_reward and self.rewards.uses_own_model

    @property
    def collects_comparisons(self) -> bool:
        offline = "dpo" in self.methods and not self.dpo_is_online
        return offline or (self.trains_reward_model and self.reward_model.kind == "outcome")

    @property
    def scores_responses(self) -> bool:
        """Whether there is any reward that evaluations could report: with DPO alone there need not be one."""
        return self.trains_reward_model or bool(self.rewards.sources)

    def _require_head_size(self) -> None:
        """Without this the first generator would find it out, after SFT."""
        scratch = self.model.scratch
        head_size = scratch.hidden_size // scratch.num_heads
        require(
            self.device == "cuda" or head_size in CPU_HEAD_SIZES,
            field="model.scratch.num_heads",
            value=scratch.num_heads,
            rule=f"gives heads of size hidden_size / num_heads = {head_size}, and generators on a CPU can do "
            f"{', '.join(str(size) for size in CPU_HEAD_SIZES)}",
            remedy="choose another num_heads or hidden_size, or device=cuda",
        )

    def _require_exact_kl(self) -> None:
        """Whole distributions come from a reference server, and only where the vocabulary is small."""
        vocabulary = self.model.scratch.vocab_size if self.model.path is None else 0  # of a loaded model: see scoring
        for field_name, value, holds, rule in (
            (
                "ppo.kl.estimator",
                self.ppo.kl.estimator,
                not self.training.lora.enabled,
                f"needs a reference server, and with adapters (training.lora.rank={self.training.lora.rank}) the "
                "trainer computes the reference",
            ),
            (
                "model.scratch.vocab_size",
                vocabulary,
                vocabulary <= MAX_EXACT_KL_VOCABULARY,
                f"must not exceed {MAX_EXACT_KL_VOCABULARY} with ppo.kl.estimator=exact, which sends the whole "
                "distribution of every sampled token",
            ),
        ):
            require(
                holds or self.ppo.kl.estimator != "exact",
                field=field_name,
                value=value,
                rule=rule,
                remedy="use ppo.kl.estimator=k1 in the reward, or k2 in the loss",
            )

    def _require_room(self, field_name: str, tokens: int) -> None:
        require(
            tokens < self.model.max_length,
            field=field_name,
            value=tokens,
            rule=f"must leave room for a prompt within model.max_length ({self.model.max_length})",
            remedy="lower it or raise model.max_length",
        )
