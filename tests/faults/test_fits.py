"""A rank that dies while SFT trains: its group takes the last state and the batches since, to the same bits."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from actors.fleet import Fleet
from actors.lasting import LastingFit
from actors.scope import Scope
from rlhf_ray.config.training import OptimizerConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.stages.sft import SftSpec
from tests import tiny
from tests.clusters import local_ray
from tests.faults.table import fault_case
from tests.faults.world import config_for
from tests.trainers import SupervisedCase

pytestmark = [pytest.mark.faults, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]
BATCHES, SAVED_AFTER, KILLED_IN = 5, 2, 4


def case_in(directory: Path) -> SupervisedCase:
    config = config_for(directory, heartbeat_timeout_s=60.0)
    spec = SftSpec(
        model_path=tiny.saved(tiny.causal_model(), directory / "policy"),
        model=config.model,
        training=config.training,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        num_steps=BATCHES,
    )
    draw = np.random.default_rng(3)
    rows = [draw.integers(3, 60, size=12).astype(np.int32) for _ in range(4 * BATCHES)]
    sequences = [TokenSequence(row, np.arange(12) > 3) for row in rows]
    return SupervisedCase(spec, [sequences[i::BATCHES] for i in range(BATCHES)])


async def trained(trainer: LastingFit, case: SupervisedCase, directory: Path, killed: int = 0) -> list[float]:
    """The loss of every batch and of an evaluation; ``killed`` is a process that ends while one is worked on."""
    losses = []
    for step in range(1, BATCHES + 1):
        update = asyncio.create_task(trainer.update(case.works(2, step - 1)))
        if killed and step == KILLED_IN:
            await asyncio.sleep(0.02)
            os.kill(killed, signal.SIGKILL)
        losses.append((await update).means()["sft/loss"])
        if step == SAVED_AFTER:
            await trainer.save_state(str(directory), "trainer")
            trainer.checkpointed(str(directory), "trainer", step)
    return [*losses, (await trainer.evaluate(case.works(2, 0))).means()["sft/heldout_loss"]]


async def test_a_rank_that_dies_in_a_batch_of_sft_changes_nothing(tmp_path: Path) -> None:
    case = case_in(tmp_path)
    config = config_for(tmp_path, heartbeat_timeout_s=60.0)
    with local_ray():
        async with Fleet(config, "cpu").scope() as scope:
            calm = await trained(await scope.trainer(case.spec), case, tmp_path / "calm")
        async with Fleet(config, "cpu").scope() as scope:
            trainer = await scope.trainer(case.spec)
            with fault_case("trainer rank", "batch of SFT", "same losses, to the bit") as watch:
                watch.struck()
                found = await trained(trainer, case, tmp_path / "disturbed", killed=process(scope, "trainer 1"))
                watch.recovered()
            assert trainer.incarnation == 1
    assert found == calm
    assert len(set(calm)) == BATCHES + 1


def process(scope: Scope, actor: str) -> int:
    found = scope.monitor.process(actor)
    assert found is not None, f"{actor} was never heard"
    return found
