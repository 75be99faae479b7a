"""Rounds: what each starts from, what is done again, and who is waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.dpo import DpoConfig, OnlineDpoConfig
from rlhf_ray.config.iteration import IterationConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reward_model import ComparisonConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import LoraConfig, TrainingConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.errors import ConfigError
from rlhf_ray.feedback.records import Judgement
from rlhf_ray.feedback.store import open_store
from rlhf_ray.metrics.evaluation import GradedResponse, write_graded
from rlhf_ray.metrics.rounds import plot_rounds, rounds_table
from rlhf_ray.pipeline import rounds as rounds_module
from rlhf_ray.pipeline import run as run_module
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.collecting import collect
from rlhf_ray.pipeline.comparison import read_rankings
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.rounds import Round, require_iterable, require_labels, run_rounds, summarise_rounds
from rlhf_ray.pipeline.run import STAGES, RunStage
from rlhf_ray.records import Score
from rlhf_ray.roles import RolloutShard
from tests.pipeline.fakes import FakeTask, SamplingFleet, make_context, prompt


def artefact(stage: str, **results: Any) -> Artefact:
    return Artefact(stage, f"key of {stage}", {}, {}, "d", "v", "now", 2.0, results)


# --------------------------------------------------------------------------------------------------------------- stages
class Rounds:
    """The real order of things; each stage only notes what it was given."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.ran: list[str] = []
        self.started: list[str] = []
        self.seeds: dict[str, int] = {}
        monkeypatch.setattr(run_module, "STAGES", tuple(replace(s, run=self.stage(s.name)) for s in STAGES))
        monkeypatch.setattr(rounds_module, "collect", self._collect)
        monkeypatch.setattr(rounds_module, "evaluate_rounds", self._evaluate)
        monkeypatch.setattr(rounds_module, "run_stages", self._before)

    def stage(self, name: str) -> RunStage:
        async def note(context: Context) -> dict[str, Any]:
            self._note(context, name)
            return {"policy": str(context.directory(name)), "accuracy": 0.7}

        return note

    def _note(self, context: Context, name: str) -> None:
        self.ran.append(f"{context.store.root.name}/{name}")
        self.seeds[self.ran[-1]] = context.config.seed
        start = context.results("start")["policy"] if "start" in context.finished else "sft"
        self.started.append(start.removeprefix(f"{self.root}/"))

    async def _collect(self, context: Context, number: int) -> dict[str, Any]:
        self._note(context, "comparison")
        return {"train": "t", "heldout": "h", "train_rankings": 10 * number, "new_train_rankings": 10}

    async def _evaluate(self, context: Context, *, method: str, earlier: Sequence[str]) -> dict[str, Any]:
        self._note(context, f"evaluation of {', '.join(['sft', *earlier, method])}")
        return {}

    async def _before(self, context: Context, until: str) -> None:
        context.finished |= {"model": artefact("model"), "sft": artefact("sft", policy="sft")}

    async def run(self, **changes: Any) -> list[str]:
        """What ran, in order."""
        self.ran.clear()
        self.started.clear()
        config = replace(RunConfig(), iteration=IterationConfig(**{"num_rounds": 2, **changes}))
        self.root.mkdir(exist_ok=True)
        self.rounds = await run_rounds(make_context(self.root, config, FakeTask()))
        return list(self.ran)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return Rounds(tmp_path / "run", monkeypatch)


FIRST = [f"round_1/{name}" for name in ("comparison", "reward_model", "ppo", "evaluation of sft, ppo")]
SECOND = [f"round_2/{name}" for name in ("comparison", "reward_model", "ppo", "evaluation of sft, round_1, ppo")]


async def test_every_round_starts_from_the_policy_of_the_one_before(chain: Rounds) -> None:
    assert await chain.run() == [*FIRST, *SECOND]
    assert chain.started == ["sft"] * 4 + ["round_1/ppo"] * 4
    first, second = chain.rounds
    assert second.comparison.parents["earlier"] == first.comparison.key
    assert second.comparison.parents["start"] == first.policy.key
    assert second.policy.parents["start"] == first.policy.key


async def test_every_round_s_method_draws_anew_and_the_first_as_a_run_without_rounds(chain: Rounds) -> None:
    await chain.run(num_rounds=3)
    drawn = [chain.seeds[f"round_{number}/ppo"] for number in (1, 2, 3)]
    assert drawn[0] == RunConfig().seed
    assert len(set(drawn)) == 3
    assert {seed for stage, seed in chain.seeds.items() if not stage.endswith("/ppo")} == {RunConfig().seed}


async def test_policies_may_all_start_from_sft_while_labels_come_from_the_newest(chain: Rounds) -> None:
    await chain.run(start_from="sft")
    assert chain.started[4:] == ["round_1/ppo", "round_1/ppo", "sft", "round_1/ppo"]


async def test_rounds_that_are_done_are_not_done_again_and_more_may_follow(chain: Rounds) -> None:
    await chain.run(num_rounds=1)
    assert await chain.run() == SECOND
    assert await chain.run() == []
    assert [done.number for done in chain.rounds] == [1, 2]


async def test_rounds_train_the_stage_that_the_configuration_wants(
    chain: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = replace(run_module.ONLINE_DPO, run=chain.stage("online"))
    monkeypatch.setattr(run_module, "ONLINE_DPO", online)
    config = replace(
        RunConfig(),
        methods=("dpo",),
        dpo=DpoConfig(online=OnlineDpoConfig(num_steps=2)),
        iteration=IterationConfig(num_rounds=1),
    )
    chain.root.mkdir()
    await run_rounds(make_context(chain.root, config, FakeTask()))
    assert chain.ran[-2:] == ["round_1/online", "round_1/evaluation of sft, dpo"]


async def test_a_changed_setting_does_every_round_again(chain: Rounds) -> None:
    await chain.run()
    assert await chain.run(prompts_per_round=7) == [*FIRST, *SECOND]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("ppo", "dpo")}, r"^methods .*one method"),
        ({"methods": ("best_of_n",)}, r"^methods .*one method"),
        ({"methods": ("dpo",)}, r"^iteration\.choose .*train none"),
        ({"training": TrainingConfig(lora=LoraConfig(rank=4))}, r"^iteration\.start_from .*adapters"),
    ],
)
def test_what_cannot_be_iterated_is_refused_at_the_door(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_iterable(replace(RunConfig(), **changes))


def test_a_method_without_rewards_goes_with_a_random_choice_or_with_best_of_n() -> None:
    by_chance = IterationConfig(choose="random")
    assert require_iterable(replace(RunConfig(), methods=("dpo",), iteration=by_chance)) == "dpo"
    assert require_iterable(replace(RunConfig(), methods=("dpo", "best_of_n"))) == "dpo"


def test_a_task_without_annotators_needs_people() -> None:
    with pytest.raises(ConfigError, match=r"^iteration\.labels .*has none of its own"):
        require_labels(RunConfig(), FakeTask(has_annotators=False))
    people = IterationConfig(labels="people", store="labels.db")
    require_labels(replace(RunConfig(), iteration=people), FakeTask(has_annotators=False))


# --------------------------------------------------------------------------------------------------------------- labels
class LongerIsBetter:
    """A reward model whose normalised score is a tenth of the response's length."""

    def __init__(self) -> None:
        self.lengths: dict[str, list[int]] = {}  # of the responses that were scored, by prompt

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        for summary in shard.summaries:
            self.lengths.setdefault(summary.prompt_id, []).append(summary.response_length)
        values = [len(rollout.response_ids) / 10 for rollout in shard.rollouts]  # type: ignore[attr-defined]
        return tuple(Score(value, {"reward_model": value}) for value in values)


class ScoringFleet(SamplingFleet):
    def __init__(self) -> None:
        super().__init__()
        self.reward_model = LongerIsBetter()

    async def rewards(self, **_: Any) -> LongerIsBetter:
        return self.reward_model


@pytest.fixture
def run(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Context:
    """A round's context before anything is collected: 12 training prompts, 4 held-out ones."""
    set_chat_template(tokenizer, "compact")
    checkpoint = str(tmp_path / "chat")
    tokenizer.save_pretrained(checkpoint)
    task = FakeTask()
    task.asked = {"train": [prompt(n) for n in range(12)], "heldout": [prompt(n) for n in range(20, 24)]}
    config = replace(
        RunConfig(),
        model=ModelConfig(path=checkpoint, chat_template="compact", max_length=60),
        comparison=ComparisonConfig(responses_per_prompt=2),
        iteration=IterationConfig(prompts_per_round=3, heldout_prompts_per_round=2, pool=3, poll_s=0.01),
    )
    context = make_context(tmp_path / "round", config, task)
    context.fleet = ScoringFleet()
    context.finished |= {
        "model": artefact("model", tokenizer=checkpoint, weights=checkpoint),
        "sft": artefact("sft", policy=checkpoint),
    }
    context.directory("comparison").mkdir(parents=True)
    return context


def ids(path: str) -> list[str]:
    return [ranking.prompt_id for ranking in read_rankings(Path(path))]


async def collected(context: Context, number: int) -> dict[str, Any]:
    results = await collect(context, number)
    context.finished["earlier"] = artefact("comparison", **results)
    return results


async def test_no_prompt_is_labelled_in_two_rounds_and_all_rounds_labels_are_kept(run: Context) -> None:
    first = await collected(run, 1)
    before = ids(first["train"])
    assert (len(before), len(ids(first["heldout"]))) == (3, 2)
    second = await collected(run, 2)
    assert ids(second["train"])[:3] == before
    assert len(set(ids(second["train"]))) == 6
    assert (second["train_rankings"], second["new_train_rankings"]) == (6, 3)
    assert len(set(ids(second["heldout"]))) == 4


async def test_later_rounds_label_what_the_reward_model_is_least_sure_of(run: Context, tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "config.json").write_text('{"id2label": {"0": "LABEL_0"}, "score_mean": 0.5, "score_std": 2.0}')
    run.finished["reward_model"] = artefact("reward_model", model=str(tmp_path / "rm"))
    results = await collected(run, 2)
    sampled = [r for _, orders in run.fleet.generator.calls[:1] for r in orders]  # type: ignore[attr-defined]
    assert len(sampled) == 9 * 2  # three prompts for every one that is labelled
    chosen = read_rankings(Path(results["train"]))
    lengths = run.fleet.reward_model.lengths  # type: ignore[attr-defined]
    gaps = {prompt_id: abs(a - b) for prompt_id, (a, b) in lengths.items()}
    unsure = [gap for gap in sorted(gaps.values()) if gap > 0]  # of responses that are the same nobody can learn
    assert 0 in gaps.values()
    assert unsure[2] < unsure[3]
    assert sorted(gaps[r.prompt_id] for r in chosen) == unsure[:3]


async def test_more_prompts_than_there_are_is_an_error(run: Context) -> None:
    run.config = replace(run.config, iteration=replace(run.config.iteration, prompts_per_round=12))
    await collected(run, 1)
    with pytest.raises(ConfigError, match=r"^iteration\.num_rounds .*all 12 are labelled"):
        await collect(run, 2)


async def test_a_round_waits_for_people_and_a_restart_asks_nobody_twice(run: Context, tmp_path: Path) -> None:
    path = str(tmp_path / "labels.db")
    iteration = replace(run.config.iteration, labels="people", store=path)
    run.config = replace(run.config, iteration=iteration)
    waiting = asyncio.create_task(collect(run, 1))
    asked = run.directory("comparison") / "asked.json"
    while not asked.is_file():
        await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    calls = len(run.fleet.generator.calls)  # type: ignore[attr-defined]

    again = asyncio.create_task(collect(run, 1))
    with open_store(path) as store:
        items = store.items()
        store.add_annotators(["ann"], "human")
        store.judge(Judgement(next(iter(items)), "ann", verdict="skipped"))  # says nothing of it yet
        for number, item_id in enumerate(items):
            await asyncio.sleep(0.03)
            assert not again.done()
            store.judge(Judgement(item_id, "ann", ranks=(number % 2, 1 - number % 2)))
    results = await asyncio.wait_for(again, 5)
    assert len(run.fleet.generator.calls) == calls  # type: ignore[attr-defined]
    assert (results["train_rankings"], results["heldout_rankings"]) == (3, 2)
    labelled = read_rankings(Path(results["train"]))
    assert {r.annotator for r in labelled} == {"ann"}
    assert all(r.response_token_ids for r in labelled)
    first = next(iter(items.values())).candidates[0]
    assert (first.model, first.seed is not None, first.token_ids != ()) == ("sft", True, True)


# -------------------------------------------------------------------------------------------------------------- results
def graded(prompt_id: str, gold: float, score: float) -> GradedResponse:
    return GradedResponse(prompt_id, "k", "q", "a", {"gold": gold}, score, 0.5, 7, True)


def test_a_summary_holds_each_model_and_its_wins_against_those_before(tmp_path: Path) -> None:
    golds = {"sft": (0.2, 0.4), "round_1": (0.4, 0.4), "ppo": (0.3, 0.9)}
    files = {}
    for name, values in golds.items():
        files[name] = str(tmp_path / f"{name}.jsonl")
        write_graded(Path(files[name]), [graded(f"p{i}", value, 1.0) for i, value in enumerate(values)])
    rounds = [
        Round(
            number,
            artefact("comparison", train_rankings=10 * number, new_train_rankings=10),
            artefact("reward_model", accuracy=0.5 + number / 10),
            artefact("ppo"),
            artefact("evaluation", **files),
        )
        for number in (1, 2)
    ]
    summary = summarise_rounds(rounds, "ppo")
    assert [summary["models"][name]["gold"]["mean"] for name in ("sft", "round_1", "round_2")] == [
        pytest.approx(0.3),
        pytest.approx(0.4),
        pytest.approx(0.6),
    ]
    assert summary["wins"] == {"round_1": {"sft": 0.75}, "round_2": {"sft": 1.0, "round_1": 0.5}}
    assert [row["labels"] for row in summary["rounds"]] == [10, 20]
    assert [row["seconds"] for row in summary["rounds"]] == [8.0, 8.0]
    assert json.loads(json.dumps(summary)) == summary
    assert rounds_table(summary).row_count == 3
    plot_rounds(summary, tmp_path / "rounds.png")
    assert (tmp_path / "rounds.png").stat().st_size > 5_000
