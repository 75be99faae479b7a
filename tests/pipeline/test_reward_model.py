"""What a reward model is asked after training, and how an ensemble's members differ: the trainer is a formula."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.jsonl import read_jsonl
from rlhf_ray.data.recorded import prompt_id_of
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.edits import EDITS
from rlhf_ray.metrics.preferences import OPINIONS_FILE
from rlhf_ray.metrics.sums import MetricSums
from rlhf_ray.pipeline.artefacts import Artefact
from rlhf_ray.pipeline.comparison import write_rankings
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.reward_model import own_reward_models, train_reward_model
from rlhf_ray.records import Message, Ranking
from rlhf_ray.stages.work import RankingWork, RawScores
from tests.pipeline.fakes import FakeTask, make_context

AXES = ("helpful", "honest")


class Fleet:
    """Members whose heads are formulas: the number of tokens, plus what only this member finds of the first of them."""

    def __init__(self) -> None:
        self.specs: list[Any] = []
        self.seen: list[list[int]] = []  # by member, the rankings that it was trained on, in order
        self.saved: dict[str, Mapping[str, Any]] = {}

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[Fleet]:
        yield self

    async def trainer(self, spec: Any) -> Fleet:
        self.specs.append(spec)
        self.seen.append([])
        return self

    async def update(self, works: Sequence[RankingWork]) -> MetricSums:
        self.seen[-1] += sorted(each.index for batch in works[0].micro_batches for each in batch)
        sums = MetricSums()
        for name in ("loss", "accuracy"):
            sums.add(f"reward_model/{name}", 0.5, 1)
        return sums

    async def score(self, works: Sequence[RankingWork]) -> dict[int, RawScores]:
        rankings = [each for batch in works[0].micro_batches for each in batch]
        return {each.index: tuple(self._heads(s) for s in each.sequences) for each in rankings}

    def _heads(self, sequence: TokenSequence) -> tuple[float, ...]:
        response = sequence.token_ids[sequence.mask]
        length, first = float(len(response)), float(response[0] % 7)
        member = len(self.specs)
        heads = (length + (member - 1) * first, -length)
        return heads[: self.specs[-1].heads.num_heads]

    async def save(self, directory: str, settings: Mapping[str, Any]) -> None:
        self.saved[Path(directory).name] = settings


def ranking(number: int, *responses: str, axis: str = "") -> Ranking:
    """The first response is the best."""
    return Ranking(
        f"p{number}", (Message("user", f"q{number}"),), responses, tuple(range(len(responses))), "ann", axis=axis
    )


TRAIN = [ranking(n, "a" * (2 + n % 5), "b") for n in range(12)]
HELDOUT = [ranking(20, "aaaa", "b"), ranking(21, "a", "bbb"), ranking(22, "aaa. bb.", "b")]


async def trained(
    root: Path,
    tokenizer: PreTrainedTokenizerFast,
    config: RewardModelConfig,
    train: Sequence[Ranking] = TRAIN,
    heldout: Sequence[Ranking] = HELDOUT,
) -> tuple[Context, Fleet, dict[str, Any]]:
    set_chat_template(tokenizer, "compact")
    tokenizer.save_pretrained(root / "chat")
    model = ModelConfig(path=str(root / "chat"), chat_template="compact", max_length=128)
    run = replace(RunConfig(), model=model, logging=LoggingConfig(tensorboard=False), methods=("best_of_n",))
    context = make_context(root / "run", replace(run, reward_model=config), FakeTask())
    fleet = Fleet()
    context.fleet = fleet
    context.directory("reward_model").mkdir(parents=True)
    write_rankings(root / "train.jsonl", train)
    write_rankings(root / "heldout.jsonl", heldout)
    for name, results in (
        ("model", {"tokenizer": str(root / "chat")}),
        ("sft", {"policy": "sft"}),
        ("comparison", {"train": str(root / "train.jsonl"), "heldout": str(root / "heldout.jsonl")}),
    ):
        context.finished[name] = Artefact(name, "k", {}, {}, "d", "v", "now", 0.0, results)
    results = await train_reward_model(context)
    context.finished["reward_model"] = Artefact("reward_model", "k", {}, {}, "d", "v", "now", 0.0, results)
    return context, fleet, results


def rows(results: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    return {row["name"]: (row["correct"], row["total"]) for row in results["accuracy_rows"]}


async def test_one_model_sees_every_ranking_once_and_is_measured_on_the_scale_of_its_raw_scores(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = RewardModelConfig(batch_size=4, eval_every=2)
    context, fleet, results = await trained(tmp_path, tokenizer, config)
    assert sorted(fleet.seen[0]) == list(range(12))
    assert fleet.specs[0].head_seed is None
    assert (results["steps"], results["rankings"], results["heldout_pairs"]) == (3, 12, 3)
    assert results["accuracy"] == results["length_rule_accuracy"] == pytest.approx(2 / 3)
    lengths = np.array([n for each in TRAIN for n in (len(each.responses[0]) + 1, 2)])  # letters and EOS
    assert fleet.saved["model"] == {
        "score_mean": pytest.approx(lengths.mean()),
        "score_std": pytest.approx(lengths.std()),
    }
    assert own_reward_models(context) == [str(context.directory("reward_model") / "model")]
    logged = [
        json.loads(line) for line in (context.directory("reward_model") / "metrics.jsonl").read_text().splitlines()
    ]
    assert ["reward_model/heldout_accuracy" in row for row in logged] == [False, True, False]


async def test_what_the_model_says_of_held_out_rankings_is_kept_for_people_to_read(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    context, _, _ = await trained(tmp_path, tokenizer, RewardModelConfig(batch_size=4))
    kept = [record.value for record in read_jsonl(context.directory("reward_model") / OPINIONS_FILE)]
    assert [row["ranking"] for row in kept] == [0, 1, 2]
    leads = [cast(list[float], row["scores"])[0] - cast(list[float], row["scores"])[1] for row in kept]
    assert leads == pytest.approx([3.0, -2.0, 6.0])  # tokens: 4 to 1, 1 to 3, 7 to 1


async def test_a_model_of_lengths_is_found_out_by_edits_in_deviations_of_its_score(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    _, fleet, results = await trained(tmp_path, tokenizer, RewardModelConfig(batch_size=4))
    found = {row["name"]: row for row in results["edits"]}
    assert list(found) == list(EDITS)
    bold = found["bold: the first sentence"]
    assert bold["change"] == pytest.approx(4 / fleet.saved["model"]["score_std"])  # four asterisks, a token each
    assert (bold["count"], bold["low"]) == (3, pytest.approx(bold["change"]))


async def test_members_differ_in_rankings_heads_and_scores_and_their_disagreement_is_tabled(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = RewardModelConfig(batch_size=4, ensemble=3)
    context, fleet, results = await trained(tmp_path, tokenizer, config)
    assert [Path(path).name for path in own_reward_models(context)] == ["model", "model_2", "model_3"]
    assert fleet.saved.keys() == {"model", "model_2", "model_3"}
    assert len({tuple(seen) for seen in fleet.seen}) == 3
    assert all(len(seen) == 12 and len(set(seen)) < 12 for seen in fleet.seen)  # drawn with replacement
    assert len({spec.head_seed for spec in fleet.specs}) == 3
    assert sum(total for name, (_, total) in rows(results).items() if name.startswith("members disagree")) == 3
    assert (context.directory("reward_model") / "member_2" / "metrics.jsonl").exists()


async def test_an_axis_is_measured_by_its_head_and_the_whole_by_the_weighted_sum(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = RewardModelConfig(batch_size=4, axes=AXES, axis_weights={"honest": 3.0})  # the whole is length - 3 length
    train = [*TRAIN, *(replace(each, axis=axis) for axis in (*AXES, "unknown") for each in TRAIN)]
    heldout = [replace(each, axis=axis) for axis in ("", *AXES) for each in HELDOUT]
    _, fleet, results = await trained(tmp_path, tokenizer, config, train, heldout)
    assert (results["rankings"], results["left_out"]) == (36, 12)  # nobody asked for the axis "unknown"
    found = rows(results)
    assert (found["axis: helpful"], found["axis: honest"]) == ((2.0, 3), (1.0, 3))
    assert found["axis: (the whole)"] == (1.0, 3)
    assert fleet.saved["model"]["score_weights"] == [1.0, 3.0]
    assert fleet.saved["model"]["id2label"] == {0: "helpful", 1: "honest"}


async def test_an_axis_without_rankings_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"reward_model\.axes names helpful, honest, of which .* \(12 of the whole\)"):
        await trained(tmp_path, tokenizer, RewardModelConfig(axes=AXES))


async def test_other_data_is_measured_and_never_trained_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(
        '{"prompt": "x", "chosen": "cccc", "rejected": "d"}\n{"prompt": "y", "chosen": "c", "rejected": "dd"}\n'
    )
    config = RewardModelConfig(batch_size=4, ood_preferences=str(other))
    _, fleet, results = await trained(tmp_path, tokenizer, config)
    assert (results["ood_pairs"], results["ood_accuracy"], results["heldout_pairs"]) == (2, 0.5, 3)
    assert rows(results)["other data, all pairs"] == (1.0, 2)
    assert rows(results)["other data, length rule"] == (1.0, 2)
    assert sorted(fleet.seen[0]) == list(range(12))


async def test_other_data_that_was_trained_on_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "q", "chosen": "cccc", "rejected": "d"}\n')
    known = replace(TRAIN[0], prompt_id=prompt_id_of((Message("user", "q"),)))
    with pytest.raises(DataError, match="1 prompts stand in both"):
        await trained(tmp_path, tokenizer, RewardModelConfig(ood_preferences=str(other)), [*TRAIN, known])
