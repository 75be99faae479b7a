"""Demonstrations from critique and revision: what the SFT model says, by principles, to the files that SFT reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.judge import BudgetConfig, JudgeConfig, RevisionConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.sft import SftConfig
from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.data.hh_rlhf import HhRlhfConfig
from rlhf_ray.data.world import WorldTask
from rlhf_ray.errors import ConfigError
from rlhf_ray.judging.budget import BudgetError
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.revision import check_revision, make_revisions
from rlhf_ray.pipeline.sft import demonstrations
from tests.pipeline.fakes import SamplingFleet, make_context

PRINCIPLES = str(Path(__file__).resolve().parents[2] / "configs" / "constitutions" / "microworld.yaml")
CRITIC = JudgeConfig(kind="simulated", constitution=PRINCIPLES)
WORLD = WorldConfig(num_train_prompts=40, num_heldout_prompts=10)


def context_for(root: Path, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Context:
    set_chat_template(tokenizer, "compact")
    tokenizer.save_pretrained(root / "chat")
    model = ModelConfig(chat_template="compact", max_length=200)
    base = RunConfig(model=model, data=DataConfig(world=WORLD), judge=CRITIC, revision=RevisionConfig(num_prompts=20))
    context = make_context(root, replace(base, **changes), WorldTask(WORLD))
    context.fleet = SamplingFleet()  # its answers are a few letters: none of them is any good
    results = {"policy": str(root / "chat"), "tokenizer": str(root / "chat"), "weights": str(root / "chat")}
    for stage in ("model", "sft"):
        context.finished[stage] = Artefact(stage, "k", {}, {}, "d", "v", "now", 0.0, results)
    return context


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


async def test_every_step_can_be_read_and_sft_learns_from_the_last(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    context = context_for(tmp_path, tokenizer)
    made = await make_revisions(context)
    steps, shown = read(made["steps"]), read(made["demonstrations"])
    assert (made["prompts"], len(steps), len(shown)) == (20, 20, 20)
    world = context.task
    prompts = {prompt.prompt_id: prompt for prompt in world.prompts("train")}
    for row, demonstration in zip(steps, shown, strict=True):
        assert 1 <= len(row["steps"]) <= 2
        assert row["steps"][0]["response"] == row["first"]
        assert row["response"] == row["steps"][-1]["revision"] == demonstration["messages"][-1]["content"]
        first = row["steps"][0]
        grades = [world.grade(prompts[row["prompt_id"]], first[name]) for name in ("response", "revision")]
        assert sum(grades[1].values()) >= sum(grades[0].values())
    assert made["revised"] > 10
    taught = replace(context.config, sft=SftConfig(demonstrations=made["demonstrations"]))
    context.config = taught
    assert [each.messages[-1].content for each in demonstrations(context, "train")] == [r["response"] for r in steps]
    assert demonstrations(context, "heldout") == world.demonstrations("heldout")


async def test_a_budget_that_ends_leaves_what_was_made_and_the_next_attempt_asks_for_the_rest(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    poor = replace(CRITIC, budget=BudgetConfig(max_tokens=500))
    with pytest.raises(BudgetError, match="questions were not asked"):
        await make_revisions(context_for(tmp_path, tokenizer, judge=poor))
    written = (tmp_path / "judge" / "answers.jsonl").read_text()
    assert len(read(str(tmp_path / "constitution" / "revisions.jsonl"))) == 20
    made = await make_revisions(context_for(tmp_path, tokenizer))
    assert (tmp_path / "judge" / "answers.jsonl").read_text().startswith(written)
    assert len(read(made["demonstrations"])) == 20


def test_what_cannot_be_revised_is_told_before_anything_starts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match="leaves nobody to criticise and revise"):
        check_revision(context_for(tmp_path, tokenizer, judge=JudgeConfig()))
    with pytest.raises(ConfigError, match="must name the principles to revise by"):
        check_revision(context_for(tmp_path, tokenizer, judge=replace(CRITIC, constitution="")))
    files = replace(DataConfig(), task="hh_rlhf", hh_rlhf=HhRlhfConfig(path="x", files=("y.jsonl",)))
    with pytest.raises(ConfigError, match=r"can revise in the microworld alone, and data\.task is hh_rlhf"):
        check_revision(context_for(tmp_path, tokenizer, data=files))
