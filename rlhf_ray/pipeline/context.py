"""What every stage is given: the configuration, the task, the fleet, and the artefacts before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.task import Task
from rlhf_ray.ledger.record import RunLedger, nowhere
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.pipeline.artefacts import Artefact, ArtefactStore
from rlhf_ray.planning.hardware import Accelerator
from rlhf_ray.records import IntArray
from rlhf_ray.rewards.texts import PromptText
from rlhf_ray.roles import Generator, PpoTrainer, Ref, Reference, RewardModel, ScoredShard, WeightSync
from rlhf_ray.stages.ppo_failure import Findings
from rlhf_ray.stages.work import SequenceWork
from rlhf_ray.stopping import Stop
from rlhf_ray.supervision.board import StatusBoard


class Trainer(Protocol):
    """A trainer group of SFT or of the reward model; lists hold one element a rank."""

    async def update(self, works: Sequence[Any]) -> MetricSums: ...

    async def evaluate(self, works: Sequence[Any]) -> MetricSums: ...

    async def score(self, works: Sequence[Any]) -> dict[int, Any]: ...

    async def save(self, directory: str, *arguments: Any) -> None: ...


class ResumableTrainer(Trainer, Protocol):
    """A trainer group whose state can be kept and restored."""

    async def save_state(self, directory: str, tag: str) -> None: ...

    async def load_state(self, directory: str, tag: str) -> None: ...

    def resumed(self, step: int) -> None:
        """What was loaded is the state after ``step``."""
        ...

    def checkpointed(self, directory: str, tag: str, step: int) -> None:
        """What was saved after ``step`` lies whole in ``directory``: ranks that are lost begin there again."""
        ...


class PpoTrainerRanks(PpoTrainer, Protocol):
    """The PPO trainer with what a replay asks of it."""

    async def examine(
        self,
        directory: str,
        *,
        step: int,
        shards: Sequence[ScoredShard],
        kl_coef: float,
        baselines: Mapping[str, float],
    ) -> tuple[Findings, ...]: ...


class GeneratorFleet(Generator, Protocol):
    """The engines, which may be given another model without being started again."""

    async def load(self, model_path: str) -> None:
        """Serve another checkpoint of the same architecture from now on."""
        ...

    async def next_token_logprobs(self, prompts: Sequence[IntArray], token_ids: Sequence[int]) -> list[list[float]]:
        """Log-probabilities of each of ``token_ids`` as the first token after each prompt."""
        ...

    async def sleep(self) -> None:
        """Give back what memory can be, until somebody asks for something."""
        ...


class ReferenceServers(Reference, Protocol):
    """The frozen reference as servers of its own, which also tell how likely whole responses are."""

    async def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]: ...


class Scope(Protocol):
    """Starts the actors of one stage; they end with it."""

    async def trainer(self, spec: Any) -> ResumableTrainer: ...

    async def ppo_trainer(
        self, spec: Any, *, demonstrations: Callable[[int], Sequence[Sequence[SequenceWork]]]
    ) -> PpoTrainerRanks: ...

    async def generators(self, model_path: str) -> GeneratorFleet: ...

    async def reference(self, model_path: str) -> Reference: ...

    async def reference_servers(self, model_path: str, temperature: float) -> ReferenceServers: ...

    async def rewards(
        self, *, own_models: Sequence[str], tokenizer: str, prompts: Mapping[str, PromptText]
    ) -> RewardModel: ...

    async def weight_sync(self, trainer: Any, generators: Any, probe: Sequence[int]) -> WeightSync: ...

    async def fetch(self, ref: Ref) -> Any:
        """Bring a block to the driver: for text that people will read, and for the disk."""
        ...

    async def put(self, block: Any) -> Ref:
        """Give a block from the driver to whoever will be given its reference."""
        ...


class Fleet(Protocol):
    def scope(self) -> AbstractAsyncContextManager[Scope]: ...


@dataclass
class Context:
    """One run. ``finished`` grows as stages end."""

    config: RunConfig
    task: Task
    fleet: Fleet
    store: ArtefactStore
    command: str
    finished: dict[str, Artefact] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    board: StatusBoard = field(default_factory=StatusBoard)  # what `rlhf-ray status` shows
    ledger: RunLedger = field(default_factory=lambda: RunLedger(nowhere))
    accelerator: Accelerator | None = None  # the cluster's GPUs, where their rates are known

    @property
    def samples_comparisons(self) -> bool:
        """Whether the SFT model's own responses are compared: not where there are recorded comparisons."""
        return self.task.has_annotators or (self.config.judge.is_there and not self.task.rankings("train"))

    def directory(self, stage: str) -> Path:
        return self.store.directory(stage)

    def results(self, stage: str) -> Mapping[str, Any]:
        return self.finished[stage].results


def ranks_of(config: RunConfig) -> dict[str, int]:
    """What the planners of stages/work.py ask about the trainer."""
    return {"num_ranks": config.training.num_ranks, "max_tokens": config.training.max_tokens_per_micro_batch}


def quiet(logging: LoggingConfig) -> LoggingConfig:
    """The same sinks without console lines, for stages that show a progress bar."""
    return replace(logging, console=False)


def warned(message: str) -> None:
    """Tell a person, in the run's output."""
    print(f"warning: {message}", flush=True)
