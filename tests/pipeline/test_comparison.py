"""Comparisons: which prompts, which temperatures, whose judgement, and the files that it is kept in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reward_model import ComparisonConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.errors import DataError
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.comparison import compare, read_rankings, spread, write_rankings
from rlhf_ray.pipeline.context import Context
from rlhf_ray.records import GenerationRequest, Message, Ranking, Rollout, SamplingSettings
from rlhf_ray.roles import RolloutShard
from tests.pipeline.fakes import FakeTask, make_context, prompt, ranking

LETTERS = tuple(range(100, 110))  # token ids of a few letters


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
class Generator:
    """Answers a request with as many letters as its seed says; last shards first."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[int]]] = []

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[RolloutShard]:
        self.calls.append((settings.temperature, [r.order for r in requests]))
        for start in reversed(range(0, len(requests), 3)):
            rollouts = tuple(self._rollout(request) for request in requests[start : start + 3])
            yield RolloutShard(tuple(r.summary for r in rollouts), rollouts)

    def _rollout(self, request: GenerationRequest) -> Rollout:
        ids = np.array([*LETTERS[: 1 + request.seed % 9], 1], dtype=np.int32)
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            order=request.order,
            prompt_ids=request.prompt_ids,
            response_ids=ids,
            rollout_logprobs=np.zeros(len(ids), dtype=np.float32),
            policy_versions=np.zeros(len(ids), dtype=np.int32),
            finish_reason="stop",
            seed=request.seed,
        )


class Fleet:
    """One scope, whose only role is a generator."""

    def __init__(self) -> None:
        self.generator = Generator()
        self.served: list[str] = []

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Any]:
        yield self

    async def generators(self, model_path: str) -> Generator:
        self.served.append(model_path)
        return self.generator

    async def fetch(self, ref: Any) -> Any:
        return ref


async def compared(tmp_path: Path, checkpoint: Path, task: FakeTask, config: ComparisonConfig) -> tuple[Context, Fleet]:
    """A context in which the stage ``comparison`` has run, with ``checkpoint`` for the SFT model."""
    model = ModelConfig(path=str(checkpoint), chat_template="compact", max_length=60)
    context = make_context(tmp_path, replace(RunConfig(), model=model, comparison=config), task)
    fleet = Fleet()
    context.fleet = fleet
    results = {"policy": str(checkpoint)}
    context.finished["sft"] = Artefact("sft", "k", {}, {}, "d", "v", "now", 0.0, results)
    context.finished["model"] = Artefact(
        "model", "k", {}, {}, "d", "v", "now", 0.0, {"tokenizer": str(checkpoint), "weights": str(checkpoint)}
    )
    context.directory("comparison").mkdir(parents=True)
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
