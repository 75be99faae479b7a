"""Suites on models of a fake fleet and on an endpoint: who is asked what, how often, and what the table says."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.judge import JudgeConfig
from rlhf_ray.config.rewards import RewardsConfig, RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.suite import SuiteConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.jsonl import read_jsonl
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.respondents import ServedModel
from rlhf_ray.pipeline.suite_models import windows
from rlhf_ray.pipeline.suites import Examination, heldout_suite, read_suites, run_suites, take_up_finished
from rlhf_ray.records import GenerationRequest, Message, Rollout, SamplingSettings, Score, TextPrompt
from rlhf_ray.roles import RolloutShard
from rlhf_ray.suites.examinees import parse_examinees
from rlhf_ray.suites.results import Row
from tests.pipeline.fakes import FakeTask, NoFleet, make_context
from tests.rewards.service import Reply, running


class FakeFleet:
    """Says what a test has put down for a checkpoint (directory's name -> prompt's text -> answer)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, says: Mapping[str, Mapping[str, str]]) -> None:
        self.tokenizer, self.says = tokenizer, says
        self.events: list[str] = []
        self._model = ""

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Any]:
        yield self

    async def generators(self, model_path: str) -> Any:
        self._serve("start", model_path)
        return self

    async def load(self, model_path: str) -> None:
        self._serve("load", model_path)

    def _serve(self, event: str, model_path: str) -> None:
        self._model = Path(model_path).name
        self.events.append(f"{event} {self._model}")

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        self.events.append(f"generate {len(requests)}")
        for request in reversed(requests):
            rollout = self._rollout(request, settings)
            yield RolloutShard((rollout.summary,), (rollout,))

    def _rollout(self, request: GenerationRequest, settings: SamplingSettings) -> Rollout:
        asked: str = self.tokenizer.decode(request.prompt_ids.tolist(), skip_special_tokens=True)
        answer = self.says[self._model][asked]
        ids = [*self.tokenizer.encode(answer, add_special_tokens=False), *settings.stop_token_ids]
        zeros = np.zeros(len(ids))
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            order=request.order,
            prompt_ids=request.prompt_ids,
            response_ids=np.array(ids, dtype=np.int32),
            rollout_logprobs=zeros.astype(np.float32),
            policy_versions=zeros.astype(np.int32),
            finish_reason="stop",
            seed=request.seed,
        )

    async def reference_servers(self, model_path: str, temperature: float) -> Any:
        self._serve("read", model_path)
        return self

    async def response_logprobs(self, sequences: Sequence[TokenSequence]) -> tuple[float, ...]:
        nats = {"sft": 1.0, "new": 2.0}[self._model]
        return tuple(-nats * float(sequence.mask.sum()) for sequence in sequences)

    async def rewards(self, *, own_models: Sequence[str], tokenizer: str, prompts: Mapping[str, Any]) -> Any:
        self.events.append(f"rewards for {len(prompts)}")
        return self

    async def score(self, shard: RolloutShard) -> tuple[Score, ...]:
        return tuple(Score(float(len(rollout.response_ids))) for rollout in shard.rollouts)

    async def put(self, block: Any) -> Any:
        return block

    async def fetch(self, ref: Any) -> Any:
        return ref


@pytest.fixture
def models(tmp_path: Path, checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Two checkpoints of one shape, with a chat template."""
    for name in ("sft", "new"):
        shutil.copytree(checkpoint, tmp_path / "models" / name)
        own = type(tokenizer).from_pretrained(checkpoint)
        set_chat_template(own, "plain")
        own.save_pretrained(tmp_path / "models" / name)
        (tmp_path / "models" / name / "mark").write_text(name)  # their weights are the same: they must not be one
    return tmp_path / "models"


def context_of(tmp_path: Path, fleet: Any, task: FakeTask, **sections: Any) -> Context:
    context = make_context(tmp_path / "run", replace(RunConfig(), **sections), task)
    context.fleet = fleet
    return context


def examination(context: Context, tmp_path: Path, configs: Sequence[SuiteConfig], *models: str) -> Examination:
    return Examination(
        suites=read_suites(context, configs),
        examinees=tuple(parse_examinees(models)),
        baseline=models[0].partition("=")[0],
        target=tmp_path / "out",
    )


def source(path: Path, *rows: Mapping[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def values(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    return {(row.model, row.measure): row.interval.value for row in rows}


SUMS = ({"question": "1+1?", "answer": 2}, {"question": "2+2?", "answer": 4})


async def test_models_of_one_shape_share_engines_and_nothing_is_asked_twice(
    tmp_path: Path, models: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    says = {"sft": {"1+1?": "2", "2+2?": "5"}, "new": {"1+1?": "it is 2", "2+2?": "4"}}
    fleet = FakeFleet(tokenizer, says)
    context = context_of(tmp_path, fleet, FakeTask())
    suite = SuiteConfig(
        kind="questions",
        name="sums",
        source=source(tmp_path / "s.jsonl", *SUMS),
        grader="number",
        samples=2,
        pass_at=(1, 2),
    )
    asked = (f"old={models}/sft", f"new={models}/new")
    rows = await run_suites(context, examination(context, tmp_path, [suite], *asked))
    assert fleet.events == ["start sft", "generate 4", "load new", "generate 4"]
    found = values(rows)
    assert (found["old", "suite/accuracy"], found["new", "suite/accuracy"]) == (0.5, 1.0)
    assert (found["old", "pass_at/2"], found["new", "pass_at/1"]) == (0.5, 1.0)
    difference = next(row.difference for row in rows if (row.model, row.measure) == ("new", "suite/accuracy"))
    assert difference is not None
    assert difference.value == 0.5

    context.fleet = NoFleet()
    assert await run_suites(context, examination(context, tmp_path, [suite], *asked)) == rows
    more = replace(suite, samples=3)
    context.fleet = fleet
    await run_suites(context, examination(context, tmp_path, [more], *asked))
    assert fleet.events[4:] == ["start sft", "generate 2", "load new", "generate 2"]  # the third sample alone
    (models / "new" / "mark").write_text("trained on")
    await run_suites(context, examination(context, tmp_path, [more], *asked))
    assert fleet.events[8:] == ["start new", "generate 6"]


async def test_results_are_written_as_rows_as_a_table_and_as_responses(
    tmp_path: Path, models: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fleet = FakeFleet(tokenizer, {"sft": {"1+1?": "2", "2+2?": "5"}})
    context = context_of(tmp_path, fleet, FakeTask())
    suite = SuiteConfig(kind="questions", name="sums", source=source(tmp_path / "s.jsonl", *SUMS))
    await run_suites(context, examination(context, tmp_path, [suite], f"old={models}/sft"))
    written = [dict(record.value) for record in read_jsonl(tmp_path / "out/results.jsonl")]
    assert {"suite": "sums", "model": "old", "measure": "suite/accuracy"}.items() <= written[0].items()
    assert "| sums | accuracy | 0.500" in (tmp_path / "out/table.md").read_text()
    lines = [dict(record.value) for record in read_jsonl(tmp_path / "out/responses/sums/old.jsonl")]
    assert [(line["response"], line["grades"]["suite/accuracy"]) for line in lines] == [("2", 1.0), ("5", 0.0)]


async def test_texts_are_found_as_likely_as_the_servers_say(
    tmp_path: Path, models: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fleet = FakeFleet(tokenizer, {})
    context = context_of(tmp_path, fleet, FakeTask())
    suite = SuiteConfig(kind="text", name="t", source=source(tmp_path / "t.jsonl", {"text": "ab"}, {"text": "abcd"}))
    asked = (f"old={models}/sft", f"new={models}/new")
    rows = await run_suites(context, examination(context, tmp_path, [suite], *asked))
    found = values(rows)
    assert found["old", "suite/nats_per_token"] == pytest.approx(1.0)
    assert found["new", "suite/perplexity"] == pytest.approx(np.exp(2.0))
    assert found["new", "suite/bits_per_byte"] == pytest.approx(2.0 / np.log(2))  # one token a letter
    assert next(row.verdict for row in rows if (row.model, row.measure) == ("new", "suite/bits_per_byte")) == "worse"
    context.fleet = NoFleet()
    assert await run_suites(context, examination(context, tmp_path, [suite], *asked)) == rows


def test_a_long_text_is_cut_into_windows_of_which_every_token_counts_once(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = windows(ServedModel("x", tokenizer, max_length=5), "abcdefghij")
    assert [len(piece) for piece in pieces] == [5, 5, 3]
    counted = [int(token) for piece in pieces for token in piece.token_ids[piece.mask]]
    assert tokenizer.decode(counted) == "abcdefghij"
    assert windows(ServedModel("x", tokenizer, max_length=5), "") == []


async def test_the_runs_judge_compares_with_the_baseline_in_both_orders(
    tmp_path: Path, models: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    task = FakeTask()
    task.asked["train"] = task.asked["heldout"] = [TextPrompt(f"p{n}", (Message("user", f"q{n}"),)) for n in range(4)]
    old = {"q0": "no", "q1": "no", "q2": "same", "q3": "good one"}
    new = {"q0": "better", "q1": "long and good", "q2": "same", "q3": "no"}
    fleet = FakeFleet(tokenizer, {"sft": old, "new": new})
    context = context_of(tmp_path, fleet, task, judge=JudgeConfig(kind="simulated"))
    suite = SuiteConfig(name="duel", graders=("judge", "task"))
    rows = await run_suites(context, examination(context, tmp_path, [suite], f"old={models}/sft", f"new={models}/new"))
    found = values(rows)
    assert found["new", "suite/win_rate"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert found["new", "suite/judge_consistency"] == 1.0
    assert ("old", "suite/win_rate") not in found
    assert found["old", "grade/gold"] == 0.5
    ledger = [record.value for record in read_jsonl(context.store.root / "judge/answers.jsonl")]
    assert len(ledger) == 6  # both orders of three pairs: equal texts are not asked about


async def test_rewards_score_the_text_of_any_model_with_the_runs_own_tokens(
    tmp_path: Path, models: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fleet = FakeFleet(tokenizer, {"sft": {"1+1?": "2", "2+2?": "four"}})
    rewards = RewardsConfig({"short": RewardSourceConfig(kind="function", function="length_at_most")})
    context = context_of(tmp_path, fleet, FakeTask(), rewards=rewards, methods=("dpo",))
    left = Artefact("model", "k", {}, {}, "", "", "", 0.0, {"tokenizer": f"{models}/sft", "weights": f"{models}/sft"})
    context.finished["model"] = left
    suite = SuiteConfig(name="s", source=source(tmp_path / "s.jsonl", *SUMS), graders=("reward",))
    rows = await run_suites(context, examination(context, tmp_path, [suite], "base=model"))
    assert values(rows)["base", "suite/score"] == pytest.approx((2 + 5) / 2)  # tokens, EOS included
    assert fleet.events[-1] == "rewards for 2"
    context.fleet = NoFleet()
    assert await run_suites(context, examination(context, tmp_path, [suite], "base=model")) == rows


async def test_an_endpoint_is_one_of_the_models_and_needs_no_fleet(tmp_path: Path) -> None:
    rows_of = [{"prompt": "bomb?", "kind": "harmful"}, {"prompt": "cake?", "kind": "harmless"}]
    suite = SuiteConfig(kind="refusals", name="r", source=source(tmp_path / "r.jsonl", *rows_of), temperature=0.0)
    context = context_of(tmp_path, NoFleet(), FakeTask())
    with running() as service:
        choice = {"message": {"content": "I can't help with that."}, "finish_reason": "stop"}
        service.replies = [Reply(body={"choices": [choice], "usage": {"completion_tokens": 7}})]
        served = f"served={service.url.removesuffix('/score')}/v1#big"
        exam = replace(examination(context, tmp_path, [suite], served), key="secret")
        found = values(await run_suites(context, exam))
        assert (found["served", "suite/harmful_refused"], found["served", "suite/harmless_refused"]) == (1.0, 1.0)
        assert sorted(body["messages"][-1]["content"] for body in service.asked) == ["bomb?", "cake?"]
        assert {(body["model"], body["temperature"]) for body in service.asked} == {("big", 0.0)}
        assert set(service.authorizations) == {"Bearer secret"}
        await run_suites(context, exam)
        assert len(service.asked) == 2


# ---------------------------------------------------------------------------------------------------------- at the door
@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (SuiteConfig(name="s", graders=("judge",)), "needs a judge, and judge.kind is none"),
        (SuiteConfig(name="s", graders=("reward",)), "needs the run's reward model"),
        (SuiteConfig(name="s", graders=("no_such",)), "no built-in reward has this name"),
    ],
)
def test_a_suite_that_nobody_can_grade_is_refused_before_anything_starts(
    tmp_path: Path, suite: SuiteConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_suites(context_of(tmp_path, NoFleet(), FakeTask()), [suite])


def test_without_graders_the_runs_own_prompts_are_graded_by_what_there_is(tmp_path: Path) -> None:
    context = context_of(tmp_path, NoFleet(), FakeTask())
    assert read_suites(context, [heldout_suite(context)])[0].config.graders == ("task",)
    with pytest.raises(ConfigError, match="is named twice"):
        read_suites(context, [heldout_suite(context)] * 2)


async def test_a_stage_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    context = context_of(tmp_path, NoFleet(), FakeTask())
    assert take_up_finished(context) == []
    with pytest.raises(ConfigError, match=r"--model \('ppo'\) has left no policy"):
        await run_suites(context, examination(context, tmp_path, [heldout_suite(context)], "ppo"))


async def test_a_judge_needs_two_models(tmp_path: Path) -> None:
    judged = context_of(tmp_path, NoFleet(), FakeTask(), judge=JudgeConfig(kind="model", path="x"))
    exam = examination(judged, tmp_path, [SuiteConfig(name="d", graders=("judge",))], "a=http://h#m")
    with pytest.raises(ConfigError, match="compares with the baseline, and one model is asked"):
        await run_suites(judged, exam)
