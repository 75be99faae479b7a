"""A fit that is killed or told to stop goes on where its last state was saved, and ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.checkpoints import CheckpointConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.metrics.sinks import METRICS_FILE, read_metrics
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.fitting import FIT_STATE, forget_fit_states, take_steps
from rlhf_ray.stopping import StoppedError
from tests.pipeline.fakes import make_context

STEPS, ITEMS, BATCH = 7, 5, 2


def of_one(name: str, value: float) -> MetricSums:
    sums = MetricSums()
    sums.add(name, value, 1.0)
    return sums


class KilledError(Exception):
    """Stands for the end of the process."""


class Trainer:
    """Its weight follows from every batch and their order."""

    def __init__(self, killed_at: int = 0) -> None:
        self.weight, self.steps, self.killed_at = 1.0, 0, killed_at
        self.whole: list[int] = []

    async def update(self, works: Sequence[Any]) -> MetricSums:
        self.steps += 1
        if self.steps == self.killed_at:
            raise KilledError
        for item in works:
            self.weight = self.weight * 1.5 + item
        await asyncio.sleep(0)
        return of_one("sft/loss", self.weight)

    async def evaluate(self, works: Sequence[Any]) -> MetricSums:
        return of_one("sft/heldout_loss", -self.weight)

    async def score(self, works: Sequence[Any]) -> dict[int, Any]:
        return {}

    async def save(self, directory: str, *arguments: Any) -> None: ...

    async def save_state(self, directory: str, tag: str) -> None:
        (Path(directory) / tag).write_text(json.dumps(self.weight))

    async def load_state(self, directory: str, tag: str) -> None:
        self.weight = json.loads((Path(directory) / tag).read_text())

    def resumed(self, step: int) -> None:
        self.steps = step

    def checkpointed(self, directory: str, tag: str, step: int) -> None:
        assert (Path(directory) / tag).is_file()
        self.whole.append(step)


def context_in(root: Path, **checkpoints: Any) -> Context:
    return make_context(root, replace(RunConfig(), checkpoints=CheckpointConfig(**checkpoints)))


async def fit(context: Context, trainer: Trainer, data: str = "") -> dict[str, float]:
    async def evaluated(step: int) -> Mapping[str, float]:
        return (await trainer.evaluate([])).means() if step % 3 == 0 else {}

    return await take_steps(
        context,
        trainer,
        directory=context.directory("sft"),
        stage="sft",
        title="SFT",
        num_steps=STEPS,
        sampler=ResumableSampler(ITEMS, BATCH, seed=3),
        works_of=list,
        evaluated=evaluated,
        note=lambda metrics: "",
        data=data,
    )


def logged(context: Context) -> dict[int, Mapping[str, float]]:
    return {row.step: row.metrics for row in read_metrics(context.directory("sft") / METRICS_FILE)}


@pytest.mark.parametrize("killed_at", range(1, STEPS + 1))
@pytest.mark.parametrize("every", [0, 1, 2, 5])
async def test_one_that_is_killed_ends_like_one_that_is_not(tmp_path: Path, killed_at: int, every: int) -> None:
    calm, disturbed = context_in(tmp_path / "calm"), context_in(tmp_path / "killed", fit_every=every)
    trainer = Trainer()
    wanted = await fit(calm, trainer)
    with pytest.raises(KilledError):
        await fit(disturbed, Trainer(killed_at))
    again = Trainer()
    assert await fit(disturbed, again) == wanted
    assert again.weight == trainer.weight
    assert logged(disturbed) == logged(calm)
    assert again.steps == STEPS


async def test_states_are_saved_when_they_are_asked_for_and_the_trainer_is_told(tmp_path: Path) -> None:
    context, trainer = context_in(tmp_path, fit_every=3, keep=2), Trainer()
    await fit(context, trainer)
    assert trainer.whole == [3, 6, 7]
    states = context.directory("sft") / FIT_STATE
    assert sorted(path.name for path in states.iterdir()) == ["step_00000006", "step_00000007"]
    forget_fit_states(context.directory("sft"))
    assert not states.exists()


async def test_without_the_setting_nothing_is_written(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    await fit(context, Trainer())
    assert not (context.directory("sft") / FIT_STATE).exists()


async def test_told_to_stop_it_saves_and_goes_on_there(tmp_path: Path) -> None:
    calm, context = context_in(tmp_path / "calm"), context_in(tmp_path / "stopped", every_minutes=1e6)
    wanted = await fit(calm, Trainer())

    class Stopping(Trainer):
        async def update(self, works: Sequence[Any]) -> MetricSums:
            if self.steps == 3:
                assert context.stop.heard
                context.stop.ask()
            return await super().update(works)

    with pytest.raises(StoppedError, match=r"SFT was told to stop and has, after 4 of 7 steps; its state after step 4"):
        await fit(context, Stopping())
    assert not context.stop.heard
    later = context_in(tmp_path / "stopped", every_minutes=1e6)
    assert await fit(later, Trainer()) == wanted
    assert logged(later) == logged(calm)


async def test_where_nothing_is_saved_a_stop_is_not_heard(tmp_path: Path) -> None:
    context = context_in(tmp_path)

    class Listening(Trainer):
        async def update(self, works: Sequence[Any]) -> MetricSums:
            assert not context.stop.heard
            return await super().update(works)

    await fit(context, Listening())


async def test_a_state_of_other_data_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = context_in(tmp_path, fit_every=1)
    with pytest.raises(KilledError):
        await fit(context, Trainer(killed_at=4), data="some")
    trainer = Trainer()
    await fit(context, trainer, data="others")
    assert "belongs to other training data" in capsys.readouterr().out
    assert trainer.whole == list(range(1, STEPS + 1))
