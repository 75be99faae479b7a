"""A trainer whose ranks die: what it is given again, and that nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from actors.answers import ActorDiedError
from actors.lasting import LastingFit, LastingTrainer
from actors.restarts import RestartsExhaustedError
from rlhf_ray.errors import BlockLostError, NumericsError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.roles import ScoredShard
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit
from rlhf_ray.supervision.journal import Journal, NoWayBackError


class Ranks:
    """One number as weights. Dies at the calls in ``dies_at``, counted over all its lives."""

    def __init__(self, dies_at: Sequence[int] = (), loses_at: Sequence[int] = ()) -> None:
        self.weight, self.disk, self.dies_at, self.loses_at = 1.0, {}, set(dies_at), set(loses_at)
        self.calls, self.lives, self.events = 0, 1, []
        self.ranks: list[Any] = []
        self.recoveries: list[tuple[int, int]] = []  # the calls before each, and those until its end

    def _called(self, event: str) -> None:
        self.calls += 1
        self.events.append(event)
        if self.calls in self.dies_at:
            raise ActorDiedError("trainer rank 1", f"trainer rank 1 died in '{event}'")
        if self.calls in self.loses_at:
            raise BlockLostError(f"trainer rank 1 cannot begin '{event}'")

    async def update(
        self, *, step: int, shards: Sequence[ScoredShard], kl_coef: float, baselines: Mapping[str, float]
    ) -> Mapping[str, float]:
        self.weight = self.weight * 3.0 + step + kl_coef  # moved before the death: the new life must not inherit it
        await asyncio.sleep(0)
        self._called(f"update {step}")
        if step == 13:
            raise NumericsError("not finite")
        return {"weight": self.weight}

    async def save_state(self, directory: str, tag: str) -> None:
        self._called("save")
        self.disk[directory, tag] = self.weight

    async def load_state(self, directory: str, tag: str) -> None:
        self._called("load")
        self.weight = self.disk[directory, tag]

    async def restart(self, reason: str) -> None:
        self.lives += 1
        self.weight = 1.0
        self._called("restart")

    @contextmanager
    def recovering(self) -> Iterator[None]:
        before = self.calls
        yield
        self.recoveries.append((before, self.calls))


def lasting(ranks: Ranks, *, max_restarts: int = 5, max_kept_steps: int = 9) -> LastingTrainer:
    limit = RestartLimit(max_restarts, window_s=60.0, backoff_s=0.0)
    budget = RestartBudget(infrastructure=limit, data=limit, clock=time.monotonic)
    return LastingTrainer(
        ranks,  # type: ignore[arg-type]
        restart=ranks.restart,
        budget=budget,
        journal=Journal(max_kept_steps),
        recovering=ranks.recovering,
    )


async def weights(trainer: LastingTrainer, steps: Sequence[int] = (1, 2, 3, 4), save_after: int = 2) -> list[float]:
    """Take steps, save after one of them; the weight after each."""
    found = []
    for step in steps:
        metrics = await trainer.update(step=step, shards=(), kl_coef=0.5, baselines={})
        found.append(metrics["weight"])
        if step == save_after:
            await trainer.save_state("aside", "tag")
            trainer.checkpointed("aside", "tag", step)
    return found


@pytest.mark.parametrize("call", range(1, 6))
async def test_a_death_in_any_call_leaves_the_trajectory_as_it_is(call: int) -> None:
    expected = await weights(lasting(Ranks()))
    ranks = Ranks(dies_at=[call])
    assert await weights(lasting(ranks)) == expected
    assert ranks.lives == 2


async def test_a_recovery_is_known_as_one_from_the_restart_to_the_last_step_that_is_taken_again() -> None:
    ranks = Ranks(dies_at=[5])
    await weights(lasting(ranks))
    assert ranks.recoveries == [(5, 8)]
    assert ranks.events[5:8] == ["restart", "load", "update 3"]


async def test_deaths_during_the_recovery_are_mended_as_well() -> None:
    expected = await weights(lasting(Ranks()))
    ranks = Ranks(dies_at=[4, 5, 7])  # in an update, in the restart, in the load
    assert await weights(lasting(ranks)) == expected
    assert ranks.lives == 4


async def test_a_new_trainer_loads_the_last_state_and_takes_only_the_steps_since() -> None:
    ranks = Ranks(dies_at=[5])
    await weights(lasting(ranks))
    assert ranks.events[4:] == ["update 4", "restart", "load", "update 3", "update 4"]


async def test_without_a_state_it_begins_with_the_first_models() -> None:
    ranks = Ranks(dies_at=[3])
    await weights(lasting(ranks), save_after=99)
    assert ranks.events[2:6] == ["update 3", "restart", "update 1", "update 2"]


async def test_a_step_that_was_skipped_for_bad_numbers_is_taken_again_too() -> None:
    ranks = Ranks(dies_at=[3])
    trainer = lasting(ranks)
    await trainer.update(step=1, shards=(), kl_coef=0.5, baselines={})
    with pytest.raises(NumericsError):
        await trainer.update(step=13, shards=(), kl_coef=0.5, baselines={})
    metrics = await trainer.update(step=3, shards=(), kl_coef=0.5, baselines={})
    assert metrics["weight"] == ((1.0 * 3 + 1.5) * 3 + 13.5) * 3 + 3.5


async def test_several_that_notice_the_same_death_cause_one_restart() -> None:
    ranks = Ranks(dies_at=[1, 2])
    trainer = lasting(ranks)
    first, second = trainer.save_state("a", "t"), trainer.save_state("b", "t")
    await asyncio.gather(first, second)
    assert ranks.lives == 2
    assert set(ranks.disk) == {("a", "t"), ("b", "t")}


async def test_a_generator_s_death_is_no_business_of_the_trainer() -> None:
    async def sync() -> None:
        raise ActorDiedError("generator 0", "generator 0 died in 'receive_weights'")

    ranks = Ranks()
    with pytest.raises(ActorDiedError):
        await lasting(ranks).lasting(sync)
    assert ranks.lives == 1


async def test_a_trainer_that_dies_again_and_again_ends_the_run() -> None:
    with pytest.raises(RestartsExhaustedError, match="the trainer is not started again: 2 restarts"):
        await weights(lasting(Ranks(dies_at=range(1, 99)), max_restarts=2))


async def test_where_too_few_steps_are_kept_the_error_says_so() -> None:
    with pytest.raises(NoWayBackError):
        await weights(lasting(Ranks(dies_at=[4]), max_kept_steps=2), save_after=99)


async def test_where_rollouts_are_gone_the_ranks_begin_anew_and_the_step_can_be_taken_again() -> None:
    expected = await weights(lasting(Ranks()))
    ranks = Ranks(loses_at=[4])
    trainer = lasting(ranks)
    found = await weights(trainer, steps=(1, 2), save_after=2)
    with pytest.raises(BlockLostError):
        await weights(trainer, steps=(3,))
    assert ranks.lives == 2
    assert found + await weights(trainer, steps=(3, 4)) == expected


async def test_where_kept_rollouts_are_gone_too_the_error_says_how_to_go_on() -> None:
    with pytest.raises(NoWayBackError, match=r"since its last state are lost .* The same command resumes"):
        await weights(lasting(Ranks(dies_at=[3], loses_at=[5])), save_after=99)


def of_one(name: str, value: float) -> MetricSums:
    sums = MetricSums()
    sums.add(name, value, 1.0)
    return sums


class FitRanks(Ranks):
    """The same, for batches."""

    async def update(self, works: Sequence[Any]) -> Any:  # type: ignore[override]
        self.weight = self.weight * 3.0 + sum(works)
        await asyncio.sleep(0)
        self._called(f"update {works}")
        return of_one("sft/loss", self.weight)

    async def evaluate(self, works: Sequence[Any]) -> Any:
        self._called("evaluate")
        return of_one("sft/heldout_loss", self.weight)

    async def save(self, directory: str, *arguments: Any) -> None:
        self._called("save model")
        self.disk[directory, arguments] = self.weight


async def fitted(ranks: FitRanks) -> list[float]:
    """Three batches with a state after the second, an evaluation, the model saved: what each said."""
    limit = RestartLimit(5, window_s=60.0, backoff_s=0.0)
    budget = RestartBudget(infrastructure=limit, data=limit, clock=time.monotonic)
    trainer = LastingFit(ranks, restart=ranks.restart, budget=budget, journal=Journal(9))  # type: ignore[type-var]
    found = []
    for step in (1, 2, 3):
        found.append((await trainer.update([step, 10])).means()["sft/loss"])
        if step == 2:
            await trainer.save_state("aside", "tag")
            trainer.checkpointed("aside", "tag", step)
    found.append((await trainer.evaluate([])).means()["sft/heldout_loss"])
    await trainer.save("model", "settings")
    return [*found, ranks.disk["model", ("settings",)]]


@pytest.mark.parametrize("call", range(1, 7))
async def test_batches_of_a_fit_are_taken_again_like_steps_of_ppo(call: int) -> None:
    expected = await fitted(FitRanks())
    ranks = FitRanks(dies_at=[call])
    assert await fitted(ranks) == expected
    assert ranks.lives == 2
