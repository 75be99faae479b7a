"""Online DPO round by round, with fakes: fresh answers of the weights that were just synced, ranked, trained on."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.alarms import AlarmRule, AlarmsConfig
from rlhf_ray.config.dpo import DpoConfig, OnlineDpoConfig
from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.errors import RewardError, WeightSyncError
from rlhf_ray.hacking.log import ALARMS_FILE, read_alarms
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.dpo_online import require_version, summarise, train_dpo_online
from rlhf_ray.pipeline.watching import PAUSED_FILE, resume_paused
from rlhf_ray.records import GenerationRequest, Rollout, RolloutSummary, SamplingSettings, Score
from rlhf_ray.roles import RolloutShard, SyncReport
from rlhf_ray.stages.work import PreferenceWork
from tests.pipeline.fakes import FakeTask, make_context, prompt

LETTERS = tuple(range(100, 110))  # token ids of a few letters


class World:
    """All roles in one: an answer has as many letters as its seed says, and the longer one is worth more."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.works: list[PreferenceWork] = []
        self.seeds: list[int] = []
        self.served = 0
        self.lag = 0
        self.fails_at = 0  # the version at which no more can be sampled
        self.fails: set[int] = set()  # by order, the answers that cannot be scored
        self.worth = float  # of the number of tokens
        self.spec: Any = None

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[World]:
        yield self

    async def trainer(self, spec: Any) -> World:
        self.spec = spec
        return self

    async def generators(self, model_path: str) -> World:
        return self

    async def rewards(self, **arguments: Any) -> World:
        return self

    async def reference_servers(self, model_path: str, temperature: float) -> World:
        return self

    async def weight_sync(self, trainer: Any, generators: Any, probe: Sequence[int]) -> World:
        return self

    async def sync(self, version: int, *, waited_s: float | None = None) -> SyncReport:
        self.events.append(f"sync {version}")
        self.served = version
        return SyncReport(version, "digest", 1, 0.0)

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        self.events.append(f"sample {len(requests)} at {self.served}")
        if self.served == self.fails_at:
            raise RuntimeError("the machine is gone")
        self.seeds += [request.seed for request in requests]
        assert len({request.rollout_id for request in requests}) == len(requests)
        for start in reversed(range(0, len(requests), 3)):
            rollouts = tuple(self._rollout(request) for request in requests[start : start + 3])
            yield RolloutShard(tuple(r.summary for r in rollouts), rollouts)

    def _rollout(self, request: GenerationRequest) -> Rollout:
        ids = np.array([*LETTERS[: 1 + request.seed % 9], 1], dtype=np.int32)
        zeros = np.zeros(len(ids), dtype=np.float32)
        versions = np.full(len(ids), self.served - self.lag, dtype=np.int32)
        return Rollout(
            request.rollout_id, request.prompt_id, request.order, request.prompt_ids, ids, zeros, versions, "stop", 0
        )

    async def fetch(self, ref: Any) -> Any:
        return ref

    async def put(self, block: Any) -> Any:
        return block

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        return tuple(self._scored(summary) for summary in shard.summaries)

    def _scored(self, summary: RolloutSummary) -> Score:
        if summary.order in self.fails:
            return Score(math.nan, failed="late")
        value = self.worth(summary.response_length)
        return Score(value, {"learned": value})

    async def logprobs(self, shard: RolloutShard) -> Any:
        return [rollout.rollout_logprobs for rollout in shard.rollouts]

    async def save_state(self, directory: str, tag: str) -> None:
        self.events.append("save state")
        (Path(directory) / "weights").write_text(tag)

    async def load_state(self, directory: str, tag: str) -> None:
        self.events.append(f"load state of {Path(directory).name}")

    def resumed(self, step: int) -> None: ...

    def checkpointed(self, directory: str, tag: str, step: int) -> None:
        assert (Path(directory) / "weights").is_file()

    async def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]:
        return tuple(-float(s.mask.sum()) for s in sequences)

    async def update(self, works: Sequence[PreferenceWork]) -> MetricSums:
        self.events.append(f"train on {works[0].num_rankings}")
        self.works += works
        sums = MetricSums()
        sums.add("dpo/loss", 0.5, 1)
        return sums

    async def save(self, directory: str) -> None:
        self.events.append("save")


@pytest.fixture
def world() -> World:
    return World()


def context_for(
    root: Path, tokenizer: PreTrainedTokenizerFast, world: World, rule: AlarmRule | None = None, **dpo: Any
) -> Context:
    set_chat_template(tokenizer, "compact")
    tokenizer.save_pretrained(root / "chat")
    task = FakeTask()
    task.asked = {"train": [prompt(n) for n in range(6)], "heldout": [prompt(9)]}
    config = replace(
        RunConfig(),
        methods=("dpo",),
        model=ModelConfig(path=str(root / "chat"), chat_template="compact", max_length=60),
        ppo=PpoConfig(max_response_tokens=12, eval_prompts=1),
        dpo=DpoConfig(**({"batch_size": 2, "online": OnlineDpoConfig(num_steps=3, every=2)} | dpo)),
        logging=LoggingConfig(tensorboard=False),
        alarms=AlarmsConfig(rules={"mine": rule} if rule else {}, pause_poll_s=0.001),
    )
    context = make_context(root / "run", config, task)
    context.fleet = world
    for name, results in (
        ("model", {"tokenizer": str(root / "chat")}),
        ("sft", {"policy": "sft"}),
        ("reward_model", {"model": "rm"}),
    ):
        context.finished[name] = Artefact(name, "k", {}, {}, "d", "v", "now", 0.0, results)
    context.directory("dpo").mkdir(parents=True)
    return context


async def test_every_round_samples_from_the_weights_of_the_last_and_trains_in_so_many_steps(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    results = await train_dpo_online(context_for(tmp_path, tokenizer, world))
    sampled = [event for event in world.events if not event.startswith("train")]
    assert sampled == ["sync 1", "sample 1 at 1", "sample 8 at 1", "sync 2", "sample 8 at 2", "save"]
    assert world.events[3].startswith("train")
    assert (results["steps"], results["rounds"], results["responses"]) == (3, 2, 16)
    assert len(set(world.seeds)) == 17  # no two answers share a seed, in any round or evaluation
    assert world.spec.num_steps == 3


async def test_pairs_are_the_policys_own_answers_and_the_higher_score_wins(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    context = context_for(tmp_path, tokenizer, world)
    await train_dpo_online(context)
    for item in (item for work in world.works for batch in work.micro_batches for item in batch):
        lengths = [int(sequence.mask.sum()) for sequence in item.ranking.sequences]
        assert all(lengths[winner] > lengths[loser] for winner, loser in item.ranking.pairs)
        assert item.reference_logprobs == tuple(-float(length) for length in lengths)
    rows = [json.loads(line) for line in (context.directory("dpo") / "round_1.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(len(row["responses"]) == 2 and row["annotator"] == "rewards" for row in rows)
    logged = [json.loads(line) for line in (context.directory("dpo") / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["dpo/policy_version"] == 1.0
    assert {"dpo/score_mean", "dpo/score_gap", "reward/learned", "dpo/loss"} <= logged[0].keys()


async def test_held_out_prompts_are_answered_before_the_first_step_and_at_every_so_many(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    online = OnlineDpoConfig(num_steps=6, every=2)
    context = context_for(tmp_path, tokenizer, world, online=online, eval_every=3)
    await train_dpo_online(context)
    logged = [json.loads(line) for line in (context.directory("dpo") / "metrics.jsonl").read_text().splitlines()]
    # Round 1 begins at step 0; round 2 after step 2, which is before 3; round 3 after step 4.
    assert ["gold/heldout_mean" in row for row in logged] == [True, True, False, False, True, True]


async def test_a_run_that_was_stopped_goes_on_after_its_last_whole_round_as_if_it_had_not_been(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    online = OnlineDpoConfig(num_steps=6, every=2, checkpoint_every=1)
    await train_dpo_online(context_for(tmp_path / "whole", tokenizer, world, online=online))
    stopped, again = World(), World()
    stopped.fails_at = 3
    context = context_for(tmp_path / "stopped", tokenizer, stopped, online=online)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        await train_dpo_online(context)
    assert stopped.events[-2:] == ["sync 3", "sample 8 at 3"]
    context.fleet = again
    results = await train_dpo_online(context)
    assert again.events[:2] == ["load state of step_00000004", "sync 3"]
    assert (results["steps"], results["rounds"], results["responses"]) == (6, 3, 24)
    assert stopped.seeds[:17] + again.seeds == world.seeds
    logged = (context.directory("dpo") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3, 4, 5, 6]


async def test_a_generator_that_missed_a_sync_stops_the_run(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    world.lag = 1
    with pytest.raises(
        WeightSyncError, match=r"8 of 8 responses, '1/0' first, .* than version 1, which was just synced"
    ):
        await train_dpo_online(context_for(tmp_path, tokenizer, world))
    assert "train on 2" not in world.events


async def test_answers_that_cannot_be_scored_are_left_out_and_too_many_end_the_run(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    world.fails = {0}
    context = context_for(tmp_path, tokenizer, world)
    await train_dpo_online(context)
    rows = [json.loads(line) for line in (context.directory("dpo") / "round_1.jsonl").read_text().splitlines()]
    assert [len(row["responses"]) for row in rows] == [1, 2, 2, 2]
    world.fails = {0, 1, 2}
    with pytest.raises(
        RewardError, match=r"3 of 8 rollouts .* rewards\.max_failed_fraction \(0\.25\); the first: late"
    ):
        await train_dpo_online(context)


async def test_answers_that_are_all_alike_teach_nothing_and_the_run_still_ends(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.worth = lambda length: 1.0
    results = await train_dpo_online(context_for(tmp_path, tokenizer, world))
    assert (results["steps"], world.works) == (3, [])
    assert capsys.readouterr().out.count("ranks nothing") == 2


# --------------------------------------------------------------------------------------------------------------- alarms
SIX = OnlineDpoConfig(num_steps=6, every=2, checkpoint_every=1)


def alarms_in(context: Context) -> list[tuple[int, str]]:
    return [(alarm.step, alarm.action) for alarm in read_alarms(context.directory("dpo") / ALARMS_FILE)]


async def test_held_out_answers_and_steps_are_watched_each_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    always = AlarmRule("gold/heldout_mean", limit=-1.0, again_after=1)
    context = context_for(tmp_path / "answers", tokenizer, world, always, online=SIX, eval_every=2)
    results = await train_dpo_online(context)
    assert alarms_in(context) == [(1, "warn"), (3, "warn"), (5, "warn")]
    assert results["alarms"] == 3
    rows = [json.loads(line) for line in (context.directory("dpo") / "metrics.jsonl").read_text().splitlines()]
    assert all("hacking/common_answer" in row for row in rows)
    of_steps = context_for(tmp_path / "steps", tokenizer, World(), replace(always, metric="dpo/loss"), online=SIX)
    await train_dpo_online(of_steps)
    assert [step for step, _ in alarms_in(of_steps)] == [1, 2, 3, 4, 5, 6]


async def test_a_run_that_goes_on_has_the_alarms_of_one_that_was_not_cut(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    rule = AlarmRule("gold/heldout_mean", limit=-1.0, patience=2, again_after=1)
    whole = context_for(tmp_path / "whole", tokenizer, world, rule, online=SIX, eval_every=2)
    await train_dpo_online(whole)
    stopped = World()

    async def lost(works: Sequence[PreferenceWork]) -> MetricSums:
        if stopped.served == 3:  # its evaluation has raised an alarm
            raise RuntimeError("the trainer is gone")
        return await World.update(stopped, works)

    stopped.update = lost  # type: ignore[method-assign]
    cut = context_for(tmp_path / "cut", tokenizer, stopped, rule, online=SIX, eval_every=2)
    with pytest.raises(RuntimeError, match="the trainer is gone"):
        await train_dpo_online(cut)
    assert alarms_in(cut) == [(3, "warn"), (5, "warn")]
    cut.fleet = World()
    await train_dpo_online(cut)
    assert alarms_in(cut) == alarms_in(whole) == [(3, "warn"), (5, "warn")]


async def test_what_has_no_meaning_without_a_kl_coefficient_only_warns(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    rule = AlarmRule("gold/heldout_mean", limit=-1.0, action="raise_kl")
    context = context_for(tmp_path, tokenizer, world, online=SIX)
    context.config = replace(context.config, methods=("dpo", "ppo"), alarms=AlarmsConfig(rules={"mine": rule}))
    await train_dpo_online(context)
    assert alarms_in(context) == [(1, "warn")]


async def test_a_paused_run_saves_its_round_and_waits_for_a_person(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    rule = AlarmRule("dpo/loss", limit=0.0, action="pause")
    online = replace(SIX, checkpoint_every=0)
    context = context_for(tmp_path, tokenizer, world, rule, online=online)
    training = asyncio.create_task(train_dpo_online(context))
    while not (context.directory("dpo") / PAUSED_FILE).exists():
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    assert world.events[-1] == "save state"
    assert world.served == 1
    training.cancel()
    await asyncio.gather(training, return_exceptions=True)
    context.fleet = again = World()
    training = asyncio.create_task(train_dpo_online(context))
    await asyncio.sleep(0.1)
    assert again.events == ["load state of step_00000002"]
    assert resume_paused(context.store.root) == "after step 2 by mine"
    assert (await training)["steps"] == 6


async def test_a_loss_without_a_reference_asks_none(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, world: World
) -> None:
    await train_dpo_online(context_for(tmp_path, tokenizer, world, loss="simpo"))
    assert {item.reference_logprobs for work in world.works for batch in work.micro_batches for item in batch} == {()}


def test_one_stale_token_is_enough() -> None:
    ids = np.array([1, 2], dtype=np.int32)
    zeros = np.zeros(2, dtype=np.float32)
    mixed = Rollout("r", "p", 0, ids, ids, zeros, np.array([2, 3], dtype=np.int32), "stop", 0)
    with pytest.raises(WeightSyncError, match="1 of 1 responses"):
        require_version([mixed], 3)
    require_version([replace(mixed, policy_versions=np.array([3, 3], dtype=np.int32))], 3)


def test_a_round_is_measured_by_prompt() -> None:
    ids = np.array([1, 2], dtype=np.int32)
    rollout = Rollout("r", "p", 0, ids, ids, np.zeros(2, dtype=np.float32), ids, "stop", 0)
    scores = [Score(1.0), Score(3.0), Score(2.0), Score(float("nan"), failed="late")]
    assert summarise([(rollout, score) for score in scores], 2, 7) == {
        "dpo/policy_version": 7.0,
        "dpo/response_length": 2.0,
        "dpo/decided_fraction": 0.5,
        "dpo/score_mean": 2.0,
        "dpo/score_gap": 1.0,
    }
