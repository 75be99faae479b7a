"""The stage of a process reward model: labelled steps split by prompt, learned from, measured; with a fake trainer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.reward_model import own_reward_models, train_reward_model
from rlhf_ray.stages.work import LabelledSteps, StepWork
from tests.pipeline.fakes import FakeTask, make_context

NUM_RESPONSES = 60


class Fleet:
    """A model that is right about every step but the last of a response, of which it says that it is good."""

    def __init__(self) -> None:
        self.seen: list[LabelledSteps] = []
        self.asked: list[LabelledSteps] = []
        self.saved: Mapping[str, Any] = {}

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Fleet]:
        yield self

    async def trainer(self, spec: Any) -> Fleet:
        return self

    async def update(self, works: Sequence[StepWork]) -> MetricSums:
        self.seen += [each for batch in works[0].micro_batches for each in batch]
        assert works[0].num_steps == sum(len(each.labels) for batch in works[0].micro_batches for each in batch)
        sums = MetricSums()
        for name in ("loss", "accuracy"):
            sums.add(f"reward_model/{name}", 0.5, 1)
        return sums

    async def score(self, works: Sequence[StepWork]) -> dict[int, tuple[float, ...]]:
        self.asked = [each for batch in works[0].micro_batches for each in batch]
        return {each.index: (*(2.0 if good else -2.0 for good in each.labels[:-1]), 2.0) for each in self.asked}

    async def save(self, directory: str, settings: Mapping[str, Any]) -> None:
        self.saved = settings


async def trained(root: Path, tokenizer: PreTrainedTokenizerFast, num_prompts: int) -> tuple[Fleet, dict[str, Any]]:
    """Two steps a response, the first good in every second one and the last never."""
    set_chat_template(tokenizer, "compact")
    tokenizer.save_pretrained(root / "chat")
    rows = [
        {"prompt": f"q{n % num_prompts}", "completions": ["a", "b"], "labels": [n % 2 == 0, False]}
        for n in range(NUM_RESPONSES)
    ]
    (root / "steps.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = ModelConfig(path=str(root / "chat"), chat_template="compact", max_length=128)
    reward_model = RewardModelConfig(kind="process", step_labels=str(root / "steps.jsonl"), batch_size=8, eval_every=4)
    config = replace(RunConfig(), model=model, reward_model=reward_model, logging=LoggingConfig(tensorboard=False))
    context = make_context(root / "run", config, FakeTask())
    fleet = Fleet()
    context.fleet = fleet
    context.directory("reward_model").mkdir(parents=True)
    for name, results in (("model", {"tokenizer": str(root / "chat")}), ("sft", {"policy": "sft"})):
        context.finished[name] = Artefact(name, "k", {}, {}, "d", "v", "now", 0.0, results)
    results = await train_reward_model(context)
    context.finished["reward_model"] = Artefact("reward_model", "k", {}, {}, "d", "v", "now", 0.0, results)
    assert own_reward_models(context) == [str(context.directory("reward_model") / "model")]
    return fleet, results


async def test_held_out_prompts_are_never_trained_on_and_steps_are_counted_by_hand(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fleet, results = await trained(tmp_path, tokenizer, NUM_RESPONSES)
    heldout = NUM_RESPONSES - results["responses"]
    assert 0 < heldout < NUM_RESPONSES / 2
    assert results["heldout_steps"] == 2 * heldout
    assert {each.index for each in fleet.seen} == set(range(results["responses"]))
    rows = {row["name"]: (row["correct"], row["total"]) for row in results["accuracy_rows"]}
    assert rows["process reward model, all steps"] == (heldout, 2 * heldout)
    assert rows["last steps"] == (0.0, heldout)
    assert results["accuracy"] == 0.5


async def test_rewards_are_scaled_by_those_of_training_steps(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fleet, _ = await trained(tmp_path, tokenizer, NUM_RESPONSES)
    raw = [value for each in fleet.asked for value in (2.0 if each.labels[0] else -2.0, 2.0)]
    assert fleet.saved == {"score_mean": pytest.approx(np.mean(raw)), "score_std": pytest.approx(np.std(raw))}


async def test_too_few_prompts_to_hold_any_out_are_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        DataError, match=r"none of 60 labelled responses is (held out|left) where a tenth of the prompts"
    ):
        await trained(tmp_path, tokenizer, 1)
