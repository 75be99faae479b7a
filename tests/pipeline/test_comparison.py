"""Comparisons: which prompts, which temperatures, whose judgement, and the files that it is kept in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.judge import BudgetConfig, JudgeConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reward_model import ComparisonConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.errors import DataError
from rlhf_ray.feedback.store import open_store
from rlhf_ray.judging.budget import BudgetError
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.comparison import compare, read_rankings, spread, write_rankings
from rlhf_ray.pipeline.context import Context
from rlhf_ray.records import Message, Ranking, SoftLabel
from tests.pipeline.fakes import FakeTask, SamplingFleet, make_context, prompt, ranking


# ---------------------------------------------------------------------------------------------------------------- files
def test_rankings_survive_a_round_trip(tmp_path: Path) -> None:
    rankings = [
        Ranking(
            prompt_id="p1",
            messages=(Message("system", "be kind"), Message("user", "wie geht's? \u2028 \U0001f600")),
            responses=("gut", ""),
            ranks=(1, 0),
            annotator="Ann",
            response_token_ids=((5, 6, 1), (1,)),
            kind="greeting",
            soft=(SoftLabel(0, 1, 0.125),),
            axis="helpful",
        ),
        ranking(2, (0, 0, 1)),
    ]
    write_rankings(tmp_path / "r.jsonl", rankings)
    assert read_rankings(tmp_path / "r.jsonl") == rankings


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_rankings(path, [ranking(1)])
    path.write_text(path.read_text() + '{"prompt_id": "p2"\n')
    with pytest.raises(DataError, match=r"r\.jsonl:2: not JSON"):
        read_rankings(path)


# --------------------------------------------------------------------------------------------------------------- spread
def test_prompts_are_taken_at_even_distances() -> None:
    prompts = [prompt(n) for n in range(10)]
    assert [p.prompt_id for p in spread(prompts, 4)] == ["p0", "p2", "p5", "p7"]
    assert spread(prompts, 10) == prompts
    assert spread(prompts, 99) == prompts


def test_a_list_sorted_by_kind_keeps_its_shares() -> None:
    prompts = [replace(prompt(n), kind="a" if n < 60 else "b") for n in range(80)]
    kinds = [p.kind for p in spread(prompts, 20)]
    assert (kinds.count("a"), kinds.count("b")) == (15, 5)


# ------------------------------------------------------------------------------------------------------------- sampling
async def compared(
    tmp_path: Path, checkpoint: Path, task: FakeTask, config: ComparisonConfig, judge: JudgeConfig | None = None
) -> tuple[Context, SamplingFleet]:
    """A context in which the stage ``comparison`` has run, with ``checkpoint`` for the SFT model."""
    model = ModelConfig(path=str(checkpoint), chat_template="compact", max_length=60)
    context = make_context(
        tmp_path, replace(RunConfig(), model=model, comparison=config, judge=judge or JudgeConfig()), task
    )
    fleet = SamplingFleet()
    context.fleet = fleet
    results = {"policy": str(checkpoint)}
    context.finished["sft"] = Artefact("sft", "k", {}, {}, "d", "v", "now", 0.0, results)
    context.finished["model"] = Artefact(
        "model", "k", {}, {}, "d", "v", "now", 0.0, {"tokenizer": str(checkpoint), "weights": str(checkpoint)}
    )
    context.directory("comparison").mkdir(parents=True, exist_ok=True)
    artefact = Artefact("comparison", "k", {}, {}, "d", "v", "now", 0.0, await compare(context))
    context.finished["comparison"] = artefact
    return context, fleet


@pytest.fixture
def chat_checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A tokenizer with its chat template; nobody loads weights here."""
    set_chat_template(tokenizer, "compact")
    tokenizer.save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


async def test_each_response_has_the_next_temperature_and_each_prompt_all_of_its_responses(
    tmp_path: Path, chat_checkpoint: Path
) -> None:
    task = FakeTask()
    task.asked = {"train": [prompt(n) for n in range(5)], "heldout": [prompt(n) for n in range(10, 13)]}
    config = ComparisonConfig(num_prompts=4, num_heldout_prompts=9, responses_per_prompt=3, temperatures=(0.5, 1.0))
    context, fleet = await compared(tmp_path, chat_checkpoint, task, config)

    assert fleet.served == [str(chat_checkpoint)]
    assert fleet.generator.calls == [
        (0.5, [0, 2, 3, 5, 6, 8, 9, 11]),
        (1.0, [1, 4, 7, 10]),
        (0.5, [0, 2, 3, 5, 6, 8]),
        (1.0, [1, 4, 7]),
    ]
    results = context.results("comparison")
    rankings = read_rankings(Path(results["train"]))
    assert [r.prompt_id for r in rankings] == ["p0", "p1", "p2", "p3"]
    assert (results["train_rankings"], results["heldout_rankings"]) == (4, 3)
    assert results["train_pairs"] == sum(len(r.pairs) for r in rankings)
    for item in rankings:
        assert [len(ids) - 1 for ids in item.response_token_ids] == [len(text) for text in item.responses]
        best = item.ranks.index(0)
        assert len(item.responses[best]) == max(len(text) for text in item.responses)


async def test_what_is_sampled_does_not_depend_on_the_number_of_prompts(tmp_path: Path, chat_checkpoint: Path) -> None:
    task = FakeTask()
    task.asked = {"train": [prompt(n) for n in range(4)], "heldout": [prompt(9)]}
    config = ComparisonConfig(num_prompts=4, num_heldout_prompts=1, responses_per_prompt=2)
    first, _ = await compared(tmp_path / "a", chat_checkpoint, task, config)
    task.asked["train"] = task.asked["train"][:2]
    second, _ = await compared(tmp_path / "b", chat_checkpoint, task, config)
    four, two = (read_rankings(Path(c.results("comparison")["train"])) for c in (first, second))
    assert four[:2] == two


async def test_recorded_judgements_are_taken_as_they_are_and_nothing_is_started(
    tmp_path: Path, chat_checkpoint: Path
) -> None:
    task = FakeTask(has_annotators=False)
    task.judged = {"train": [ranking(1, (0, 1, 2)), ranking(2)], "heldout": [ranking(3)]}
    context, fleet = await compared(tmp_path, chat_checkpoint, task, ComparisonConfig())
    results = context.results("comparison")
    assert fleet.served == []
    assert read_rankings(Path(results["train"])) == task.judged["train"]
    assert (results["train_pairs"], results["heldout_pairs"]) == (4, 1)


async def test_soft_labels_may_be_left_out_for_the_ranks(tmp_path: Path, chat_checkpoint: Path) -> None:
    task = FakeTask(has_annotators=False)
    unsure = replace(ranking(1), soft=(SoftLabel(1, 0, 0.75),))
    task.judged = {"train": [unsure], "heldout": [ranking(3)]}
    for keep, wanted in ((True, unsure), (False, ranking(1))):
        context, _ = await compared(tmp_path / str(keep), chat_checkpoint, task, ComparisonConfig(soft_labels=keep))
        assert read_rankings(Path(context.results("comparison")["train"])) == [wanted]


# ---------------------------------------------------------------------------------------------------------------- judge
SIMULATED = JudgeConfig(kind="simulated", name="rule", error_rate=0.1)
PAIRS = ComparisonConfig(num_prompts=40, num_heldout_prompts=4, responses_per_prompt=2)


def forty() -> FakeTask:
    task = FakeTask()
    task.asked = {"train": [prompt(n) for n in range(40)], "heldout": [prompt(n) for n in range(50, 54)]}
    return task


async def test_a_judge_takes_its_share_of_the_training_prompts_and_people_all_others(
    tmp_path: Path, chat_checkpoint: Path
) -> None:
    judge = replace(SIMULATED, share=0.5)
    context, _ = await compared(tmp_path, chat_checkpoint, forty(), PAIRS, judge)
    results = context.results("comparison")
    train, heldout = (read_rankings(Path(results[split])) for split in ("train", "heldout"))
    by = {name: [r for r in train if r.annotator == name] for name in ("rule", "length")}
    assert len(by["rule"]) + len(by["length"]) == len({r.prompt_id for r in train}) == 40
    assert 10 < len(by["rule"]) == results["judge_judged"] < 30
    assert {r.annotator for r in heldout} == {"length"}
    assert all(len(r.soft) == 1 and r.response_token_ids for r in by["rule"])
    for each in by["rule"]:
        [label] = each.soft
        assert (label.probability > 0.5) == (each.ranks == (0, 1))
    with open_store(str(context.directory("comparison") / "preferences.db")) as store:
        assert len(store.items()) == len(by["rule"])
        assert store.annotators() == {"rule": "judge"}
        assert {c.model for item in store.items().values() for c in item.candidates} == {"sft"}


async def test_a_judge_ranks_prompts_of_data_without_annotators_in_both_splits(
    tmp_path: Path, chat_checkpoint: Path
) -> None:
    task = forty()
    task.annotated = False
    context, fleet = await compared(tmp_path, chat_checkpoint, task, PAIRS, SIMULATED)
    assert len(fleet.served) == 1
    for split, count in (("train", 40), ("heldout", 4)):
        rankings = read_rankings(Path(context.results("comparison")[split]))
        assert [r.annotator for r in rankings] == ["rule"] * count


async def test_recorded_comparisons_are_taken_and_no_judge_is_asked(tmp_path: Path, chat_checkpoint: Path) -> None:
    task = FakeTask(has_annotators=False)
    task.judged = {"train": [ranking(1)], "heldout": [ranking(3)]}
    context, fleet = await compared(tmp_path, chat_checkpoint, task, PAIRS, SIMULATED)
    assert fleet.served == []
    assert "judge_judged" not in context.results("comparison")


async def test_a_budget_that_ends_keeps_its_judgements_and_a_larger_one_goes_on_from_there(
    tmp_path: Path, chat_checkpoint: Path
) -> None:
    small = replace(SIMULATED, budget=BudgetConfig(max_tokens=2000), batch_size=10)
    with pytest.raises(BudgetError, match="questions were not asked"):
        await compared(tmp_path, chat_checkpoint, forty(), PAIRS, small)
    with open_store(str(tmp_path / "comparison" / "preferences.db")) as store:
        done = len(store.history())
    assert 0 < done < 40
    answered = (tmp_path / "judge" / "answers.jsonl").read_text().count("\n")
    context, _ = await compared(tmp_path, chat_checkpoint, forty(), PAIRS, SIMULATED)
    results = context.results("comparison")
    assert (results["judge_judged"], results["judge_judged_before"]) == (40 - done, done)
    keys = [json.loads(line)["key"] for line in (tmp_path / "judge" / "answers.jsonl").read_text().splitlines()]
    assert len(set(keys)) == len(keys) == answered + results["judge_questions_asked"]


async def test_answers_outlive_the_stage_so_that_doing_it_again_costs_nothing(
    tmp_path: Path, chat_checkpoint: Path
) -> None:
    first, _ = await compared(tmp_path, chat_checkpoint, forty(), PAIRS, SIMULATED)
    rankings = read_rankings(Path(first.results("comparison")["train"]))
    (tmp_path / "comparison" / "preferences.db").unlink()
    again, _ = await compared(tmp_path, chat_checkpoint, forty(), PAIRS, SIMULATED)
    results = again.results("comparison")
    assert (results["judge_judged"], results["judge_questions_asked"], results["judge_tokens"]) == (40, 0, 0)
    assert results["judge_questions_answered_before"] == 80
    assert read_rankings(Path(results["train"])) == rankings
