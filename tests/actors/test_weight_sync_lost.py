"""A weight sync in which the trainer is lost: the round begins again with the ranks that took their places."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from actors.generators import GeneratorGroup
from actors.groups import PpoTrainerGroup, TrainerGroup
from actors.lasting import LastingTrainer
from actors.weight_sync import FleetWeightSync
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit
from rlhf_ray.supervision.journal import Journal
from tests.actors.fakes import FakeHandle, died


class Rank:
    """One bucket. ``dies_in`` names a verb; ``life`` tells which of its lives a rank is of."""

    def __init__(self, life: int, dies_in: str = "") -> None:
        self.life, self.dies_in = life, dies_in

    def _called(self, verb: str) -> None:
        if verb == self.dies_in:
            raise died()

    def open_sync(self, backend: str, dtype: str, bucket_bytes: int) -> tuple[int, int]:
        return 1, 8

    def free_address(self) -> str:
        return "10.0.0.1:4000"

    def join_sync(self, group: Any) -> None:
        self._called("join_sync")

    def begin_sync(self) -> None:
        self._called("begin_sync")

    def offer_bucket(self, index: int) -> Mapping[str, int]:
        self._called("offer_bucket")
        return {"life": self.life}

    def transmit_bucket(self, index: int) -> None:
        self._called("transmit_bucket")

    def release_bucket(self, index: int) -> None:
        self._called("release_bucket")

    def sync_digest(self, version: int) -> str:
        self._called("sync_digest")
        return f"life {self.life}"

    def probe(self, token_ids: Any) -> list[float]:
        self._called("probe")
        return [-1.0]


class Engine:
    """Accepts only a round that one life of the trainer has sent from beginning to end."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.received: set[int] = set()
        self.serves = ""

    def init_weight_sync(self, init_info: Any) -> None: ...

    def begin_weight_sync(self, version: int) -> None:
        self.begun.append(version)
        self.received = set()

    def receive_weights(self, update_info: Mapping[str, int]) -> None:
        self.received.add(update_info["life"])

    def finish_weight_sync(self, version: int, expected_digest: str) -> None:
        assert {f"life {life}" for life in self.received} == {expected_digest}
        self.serves = expected_digest

    def prompt_logprobs(self, token_ids: Any) -> list[float]:
        return [-1.0]


@pytest.mark.parametrize(
    ("verb", "rounds"),
    [
        ("join_sync", 1),
        ("begin_sync", 2),
        ("offer_bucket", 2),
        ("transmit_bucket", 2),
        ("release_bucket", 2),
        ("sync_digest", 2),
        ("probe", 2),
    ],
)
async def test_a_round_that_loses_the_trainer_is_followed_by_a_whole_one_of_the_same_version(
    verb: str, rounds: int
) -> None:
    engine = Engine()
    group = TrainerGroup([FakeHandle(Rank(1, dies_in=verb))], TrainingConfig(), device="cpu", timeout_s=5)

    async def restart(reason: str) -> None:
        group.ranks = [FakeHandle(Rank(2))]

    limit = RestartLimit(1, window_s=60.0)
    trainer = LastingTrainer(
        PpoTrainerGroup(group, PpoConfig(), seed=0, demonstrations=lambda step: ()),
        restart=restart,
        budget=RestartBudget(infrastructure=limit, data=limit, clock=time.monotonic),
        journal=Journal(4),
    )
    sync = FleetWeightSync(
        trainer=trainer,
        generators=GeneratorGroup([FakeHandle(engine)], shard_size=1, max_running=1, timeout_s=5),
        probe=[1, 2],
        tolerance=0.01,
        timeout_s=5,
    )
    await sync.open(backend="shared_memory", dtype="float32", bucket_bytes=64, workers_per_engine=1)
    assert (await sync.sync(4)).digest == "life 2"
    assert engine.begun == [4] * rounds
    assert engine.serves == "life 2"
