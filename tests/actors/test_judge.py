"""A real model behind real engines as judge: asked in both orders, remembered, stopped by its budget.

What such a small model prefers means nothing; that its answers are those of its weights does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from actors.fleet import Fleet
from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.config.judge import BudgetConfig, JudgeConfig
from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import set_chat_template, tokenize_prompt
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.engines.models import build_scratch
from rlhf_ray.feedback.store import open_store
from rlhf_ray.judging.budget import BudgetError
from rlhf_ray.pipeline.artefacts import ArtefactStore
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.judging import judge_items
from rlhf_ray.pipeline.respondents import verdict_tokens
from rlhf_ray.records import Message
from tests.judging.made_up import item
from tests.pipeline.fakes import FakeTask

pytestmark = pytest.mark.usefixtures("ray_cluster")

TINY = ScratchConfig(vocab_size=300, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=2)
GENERATION = GenerationConfig(max_model_len=1024, kv_cache_memory_mb=64, cpus_per_engine=0.5)
JUDGE = JudgeConfig(kind="model", min_mass=0.0, batch_size=8)  # random weights put little on A and B


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    made = train_bpe_tokenizer(["a b"], vocab_size=300)
    set_chat_template(made, "compact")
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    path = tmp_path_factory.mktemp("judge")
    scratch = replace(TINY, max_position_embeddings=1024, initializer_range=0.3)
    build_scratch(scratch, tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def context_for(root: Path, checkpoint: Path, judge: JudgeConfig) -> Context:
    config = replace(
        RunConfig(),
        model=ModelConfig(chat_template="compact"),
        generation=GENERATION,
        judge=replace(judge, path=str(checkpoint)),
    )
    return Context(config, FakeTask(), Fleet(config, "cpu"), ArtefactStore(root), "rlhf-ray judge run x")


async def judged(context: Context, store: Path) -> dict[str, Any]:
    with open_store(str(store)) as opened:
        return await judge_items(context, opened, opened.items())


def filled(path: Path, count: int) -> Path:
    with open_store(str(path), create=True) as opened:
        opened.add_items(item(n, f"yes {n}", f"no {n}") for n in range(count))
    return path


def ledger(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "judge" / "answers.jsonl").read_text().splitlines()]


async def test_a_model_of_the_fleet_judges_both_orders_by_its_own_probabilities_and_is_asked_once(
    tmp_path: Path, checkpoint: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    store = filled(tmp_path / "s.db", 6)
    small = replace(JUDGE, budget=BudgetConfig(max_tokens=3000))
    with pytest.raises(BudgetError, match="questions were not asked"):
        await judged(context_for(tmp_path, checkpoint, small), store)
    before = ledger(tmp_path)
    assert 0 < len(before) < 12
    assert sum(row["tokens_read"] + row["tokens_written"] for row in before) <= 3000

    summary = await judged(context_for(tmp_path, checkpoint, JUDGE), store)
    rows = ledger(tmp_path)
    assert rows[: len(before)] == before
    assert len(rows) == len({row["key"] for row in rows}) == 12
    assert summary["questions_asked"] == 12 - len(before)
    shown = {tuple(row["responses"]) for row in rows}
    assert shown == {pair for n in range(6) for pair in ((f"yes {n}", f"no {n}"), (f"no {n}", f"yes {n}"))}
    require_probabilities(rows, checkpoint, tokenizer)
    with open_store(str(store)) as opened:
        rankings = opened.rankings()
        assert opened.annotators() == {"judge": "judge"}
    assert len(rankings) == 6
    by_shown = {tuple(row["responses"]): row["masses"] for row in rows}
    for ranking in rankings:
        forward, backward = by_shown[ranking.responses], by_shown[ranking.responses[::-1]]
        shares = [forward["A"] / (forward["A"] + forward["B"]), backward["B"] / (backward["A"] + backward["B"])]
        assert ranking.soft[0].probability == pytest.approx(sum(shares) / 2)

    (tmp_path / "s.db").unlink()  # the judgements are gone and the answers are not
    again = await judged(context_for(tmp_path, checkpoint, JUDGE), filled(tmp_path / "s.db", 6))
    assert (again["judged"], again["questions_asked"], again["tokens"]) == (6, 0, 0)
    assert ledger(tmp_path) == rows


def require_probabilities(rows: list[dict[str, Any]], checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What the engines said is what a plain forward of the weights says."""
    from transformers import AutoModelForCausalLM

    model, verdicts = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), verdict_tokens(tokenizer)
    for row in rows:
        tokens = tokenize_prompt(tokenizer, [Message(**message) for message in row["messages"]])
        assert row["tokens_read"] == len(tokens)
        with torch.no_grad():
            chances = model(input_ids=torch.tensor(tokens)[None].long()).logits[0, -1].softmax(-1)
        for name, own in verdicts.items():
            assert row["masses"][name] == pytest.approx(float(chances[list(own)].sum()), rel=1e-3, abs=1e-7)


async def test_a_model_of_the_fleet_writes_its_verdicts_where_text_is_asked_for(
    tmp_path: Path, checkpoint: Path
) -> None:
    store = filled(tmp_path / "s.db", 3)
    wordy = replace(JUDGE, verdict="text", temperature=1.0, num_votes=2, max_tokens=5, pattern="(?s)^(A|B)")
    summary = await judged(context_for(tmp_path, checkpoint, wordy), store)
    rows = ledger(tmp_path)
    assert len(rows) == summary["questions_asked"] == 3 * 2 * 2
    assert all(row["masses"] == {} and 1 <= row["tokens_written"] <= 5 for row in rows)
    assert {row["vote"] for row in rows} == {0, 1}
    assert len({row["answer"] for row in rows}) > 1
    assert summary["judged"] == 3
