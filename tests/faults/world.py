"""A trainer of two ranks, a reference and a reward server on a tiny model, and what they do when nothing goes wrong.

Nothing is sampled: rollouts are made up. Weights are sent to an engine in this process that reads every byte, so that
two runs agree bit for bit exactly when the digests of their syncs do.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.generators import GeneratorGroup
from actors.lasting import LastingTrainer
from actors.scope import Scope
from actors.weight_sync import FleetWeightSync
from rlhf_ray.config.faults import FaultsConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.errors import WeightSyncError
from rlhf_ray.records import Rollout, Score
from rlhf_ray.roles import Reference, RewardModel, RolloutShard, ScoredShard
from rlhf_ray.supervision import injection
from rlhf_ray.weight_sync.checksum import bucket_digest, sync_digest
from rlhf_ray.weight_sync.message import BucketMessage
from rlhf_ray.weight_sync.shared_memory import map_bytes
from tests import tiny
from tests.actors.fakes import FakeHandle
from tests.trainers import PPO, PpoCase

TARGETS = """\
trainer rlhf_ray.engines.training:TrainingEngine.forward
trainer rlhf_ray.engines.training:TrainingEngine.backward
trainer rlhf_ray.engines.training:TrainingEngine.step
trainer rlhf_ray.engines.training:TrainingEngine.save_state
trainer rlhf_ray.weight_sync.sender:SharedMemorySender.offer
reference rlhf_ray.engines.scoring:ReferenceEngine.logprobs
reward_model rlhf_ray.engines.scoring:RewardEnsemble.grade
"""
STEPS = (1, 2, 3)
SAVED_AFTER = 1


@contextmanager
def injected(directory: Path) -> Iterator[Faults]:
    """Let every actor that starts inside take part in faults."""
    directory.mkdir()
    (directory / "targets").write_text(TARGETS)
    os.environ[injection.VARIABLE] = str(directory)
    try:
        yield Faults(directory)
    finally:
        del os.environ[injection.VARIABLE]


@dataclass(frozen=True)
class Faults:
    directory: Path

    def arm(self, actor: str, function: str, action: str, call: int) -> None:
        (self.directory / f"{actor}@{function}").write_text(f"{action} {call}")

    @property
    def num_done(self) -> int:
        done = self.directory / "done"
        return len(done.read_text().splitlines()) if done.exists() else 0


class Engine:
    """Takes part in a sync as a generator does."""

    def __init__(self) -> None:
        self.digests: list[str] = []

    def init_weight_sync(self, init_info: Mapping[str, Any]) -> None: ...

    def begin_weight_sync(self, version: int) -> None:
        self.digests = []

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        message = BucketMessage.from_wire(dict(update_info))
        data = map_bytes(Path(message.address["path"]), message.bucket.nbytes)
        self.digests.append(bucket_digest(message.bucket, data))

    def finish_weight_sync(self, version: int, expected_digest: str) -> None:
        if sync_digest(self.digests, version) != expected_digest:
            raise WeightSyncError("other weights arrived than were sent")

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        return [0.0] * (len(token_ids) - 1)


@dataclass(frozen=True)
class Trajectory:
    """What two runs are compared by, bit for bit."""

    scores: tuple[tuple[Score, ...], ...]
    metrics: tuple[Mapping[str, float], ...]
    digests: tuple[str, ...]


@dataclass
class World:
    """The roles of a run, started once; ``run`` begins with the same weights each time."""

    scope: Scope
    trainer: LastingTrainer
    reference: Reference
    rewards: RewardModel
    sync: FleetWeightSync
    rollouts: Sequence[Rollout]
    directory: Path

    async def run(self, steps: Sequence[int] = STEPS) -> Trajectory:
        await self.trainer.load_state(str(self.directory / "initial"), "trainer")
        scores, metrics, digests = [], [], []
        for step in steps:
            scored = await asyncio.gather(*(self.scored(shard) for shard in self.shards()))
            scores.append(tuple(score for shard in scored for score in shard.scores))
            metrics.append(await self.trainer.update(step=step, shards=scored, kl_coef=0.1, baselines={}))
            if step == SAVED_AFTER:
                directory = str(self.directory / f"step_{step}")
                await self.trainer.save_state(directory, "trainer")
                self.trainer.checkpointed(directory, "trainer", step)
            digests.append((await self.sync.sync(step)).digest)
        return Trajectory(tuple(scores), tuple(metrics), tuple(digests))

    def shards(self) -> list[RolloutShard]:
        import ray

        halves = (self.rollouts[:3], self.rollouts[3:])
        return [RolloutShard(tuple(r.summary for r in half), ray.put(tuple(half))) for half in halves]

    async def scored(self, shard: RolloutShard) -> ScoredShard:
        ref_logprobs, scores = await asyncio.gather(self.reference.logprobs(shard), self.rewards.score(shard))
        return ScoredShard(shard.summaries, shard.rollouts, ref_logprobs, scores)

    def process(self, actor: str) -> int:
        """The process of an actor, as its pulse tells."""
        process = self.scope.monitor.process(actor)
        assert process is not None, f"{actor} was never heard"
        return process


def config_for(directory: Path, *, heartbeat_timeout_s: float) -> RunConfig:
    return replace(
        RunConfig(),
        output_dir=str(directory),
        training=TrainingConfig(num_ranks=2, cpus_per_rank=0.5, zero_stage=2, max_tokens_per_micro_batch=512),
        reference=ServerConfig(cpus_per_replica=0.5),
        reward_server=ServerConfig(cpus_per_replica=0.5),
        faults=FaultsConfig(heartbeat_timeout_s=heartbeat_timeout_s, max_restarts=100),
        ppo=PPO,
    )


async def start(scope: Scope, config: RunConfig, directory: Path) -> World:
    """Start every role at once, and write down where the trainer begins."""
    policy = tiny.saved(tiny.causal_model(), directory / "policy")
    critic = tiny.saved(tiny.scalar_model(), directory / "critic")
    rollouts = tiny.rollouts(6, seed=5)
    case = PpoCase(policy, critic, rollouts, references=(), training=config.training, ppo=config.ppo)
    trainer, reference, rewards = await asyncio.gather(
        scope.ppo_trainer(case.spec, demonstrations=lambda step: ()),
        scope.reference(policy),
        scope.rewards(own_models=[critic], tokenizer="", prompts={}),
    )
    generators = GeneratorGroup([FakeHandle(Engine())], shard_size=4, max_running=9, timeout_s=600)
    sync = FleetWeightSync(trainer=trainer, generators=generators, probe=[5, 6, 7], tolerance=1e9, timeout_s=600)
    await sync.open(backend="shared_memory", dtype="float32", bucket_bytes=2**14, workers_per_engine=1)
    await trainer.save_state(str(directory / "initial"), "trainer")
    return World(scope, trainer, reference, rewards, sync, rollouts, directory)
