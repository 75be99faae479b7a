"""Every kind of source as real actors on a real cluster: started, asked together, summed, ended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from actors.fleet import Fleet
from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.config.rewards import RewardsConfig, RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.serving import ServerConfig
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.engines.models import build_scratch, load_scalar
from rlhf_ray.engines.scoring import ProcessRewardEngine, RewardModelEngine
from rlhf_ray.errors import RlhfError
from rlhf_ray.records import Rollout
from rlhf_ray.rewards.ensemble import member_scores
from rlhf_ray.rewards.texts import PromptText
from rlhf_ray.roles import RolloutShard
from tests.rewards.service import Reply, running

pytestmark = pytest.mark.usefixtures("ray_cluster")

TINY = ScratchConfig(vocab_size=300, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2)
RESPONSES = ("it is 4.", "it is 5.", "one\ntwo\nthree")
PROMPTS = {f"p{order}": PromptText("2 + 2?", {"answer": "4"}) for order in range(len(RESPONSES))}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    return train_bpe_tokenizer(["a b"], vocab_size=300)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> str:
    """A reward model with its tokenizer."""
    plain, scalar = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("scalar")
    model = build_scratch(TINY, tokenizer, seed=0)
    model.save_pretrained(plain)
    reward = load_scalar(str(plain), ModelConfig(), model.dtype)
    reward.score.weight.data.fill_(0.5)
    reward.save_pretrained(scalar)
    tokenizer.save_pretrained(scalar)
    return str(scalar)


def rollouts(tokenizer: PreTrainedTokenizerFast) -> tuple[Rollout, ...]:
    made = []
    for order, response in enumerate(RESPONSES):
        ids = np.array([*tokenizer.encode(response), tokenizer.eos_token_id], dtype=np.int32)
        prompt = np.array(tokenizer.encode("2 + 2?"), dtype=np.int32)
        zeros = np.zeros(len(ids), dtype=np.float32)
        made.append(Rollout(f"r{order}", f"p{order}", order, prompt, ids, zeros, zeros.astype(np.int32), "stop", order))
    return tuple(made)


def config_for(**sources: RewardSourceConfig) -> RunConfig:
    return replace(
        RunConfig(),
        model=ModelConfig(chat_template="plain"),
        ppo=PpoConfig(critic_initialise_from="sft"),
        rewards=RewardsConfig(sources),
        reward_server=ServerConfig(cpus_per_replica=0.5),
    )


@pytest.mark.slow
async def test_all_kinds_of_sources_score_one_shard_together(
    checkpoint: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    import ray

    own = rollouts(tokenizer)
    engine = RewardModelEngine(path=checkpoint, model=ModelConfig(), config=ServerConfig(), device="cpu")
    process = ProcessRewardEngine(
        path=checkpoint, model=ModelConfig(), config=ServerConfig(), device="cpu", separator=tokenizer.encode("\n")
    )
    with running() as service:
        service.replies = [Reply(body={"scores": [1.0, None, 3.0]})]
        config = config_for(
            learned=RewardSourceConfig(weight=0.25),
            steps=RewardSourceConfig(weight=2.0, arguments={"step_separator": "\n"}),
            right=RewardSourceConfig(kind="function", function="number_answer", num_workers=2),
            mine=RewardSourceConfig(kind="function", function="tests.rewards.made_up:by_token", weight=-1.0),
            asked=RewardSourceConfig(kind="http", url=service.url),
        )
        async with Fleet(config, "cpu").scope() as scope:
            rewards = await scope.rewards(own_models=[checkpoint], tokenizer=checkpoint, prompts=PROMPTS)
            shard = RolloutShard(tuple(rollout.summary for rollout in own), ray.put(own))
            scores, again = await asyncio.gather(rewards.score(shard), rewards.score(shard))
    assert [score.parts for score in scores] == [score.parts for score in again]
    assert service.asked[0] == {
        "prompts": ["2 + 2?"] * 3,
        "responses": list(RESPONSES),
        "facts": [{"answer": "4"}] * 3,
    }
    assert scores[1].failed == "asked: gave no score"
    learned, steps = [graded.score for graded in engine.grade(own)], process.grade(own)
    for row, right, service_says in ((0, 1.0, 1.0), (2, 0.0, 3.0)):
        assert scores[row].parts == pytest.approx(
            {"learned": learned[row], "steps": steps[row].score, "right": right, "mine": 1.0, "asked": service_says}
        )
        total = 0.25 * learned[row] + 2.0 * float(steps[row].score or 0.0) + right - 1.0 + service_says
        assert scores[row].total == pytest.approx(total)
    assert [index for index, _ in scores[2].step_rewards] == [3, 7]
    assert scores[0].step_rewards == ((7, -0.5),)  # "it is 4." has its full stop there


async def test_a_function_that_cannot_be_loaded_is_heard_as_its_actor_starts(checkpoint: str) -> None:
    config = config_for(a=RewardSourceConfig(kind="function", function="no_such_reward"))
    async with Fleet(config, "cpu").scope() as scope:
        with pytest.raises(RlhfError, match="no built-in reward has this name"):
            await scope.rewards(own_models=[], tokenizer=checkpoint, prompts=PROMPTS)


async def test_the_own_reward_model_alone_is_one_source(checkpoint: str, tokenizer: PreTrainedTokenizerFast) -> None:
    import ray

    own = rollouts(tokenizer)
    async with Fleet(config_for(), "cpu").scope() as scope:
        rewards = await scope.rewards(own_models=[checkpoint], tokenizer=checkpoint, prompts={})
        scores = await rewards.score(RolloutShard(tuple(rollout.summary for rollout in own), ray.put(own)))
    assert [score.parts.keys() for score in scores] == [{"reward_model"}] * 3
    assert [score.total for score in scores] == [score.parts["reward_model"] for score in scores]


async def test_members_of_an_ensemble_are_asked_in_one_process_and_disagreement_costs_what_the_penalty_says(
    checkpoint: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    import ray

    other = load_scalar(checkpoint, ModelConfig(), torch.float32)
    other.score.weight.data.mul_(-0.5)
    other.save_pretrained(tmp_path)
    own = rollouts(tokenizer)
    paths = [checkpoint, str(tmp_path)]
    engines = [RewardModelEngine(path=path, model=ModelConfig(), config=ServerConfig(), device="cpu") for path in paths]
    members = [[graded.score for graded in engine.grade(own)] for engine in engines]
    config = replace(
        config_for(), reward_model=RewardModelConfig(ensemble=2), rewards=RewardsConfig(uncertainty_penalty=0.5)
    )
    async with Fleet(config, "cpu").scope() as scope:
        rewards = await scope.rewards(own_models=paths, tokenizer=checkpoint, prompts={})
        scores = await rewards.score(RolloutShard(tuple(rollout.summary for rollout in own), ray.put(own)))
    for score, *said in zip(scores, *members, strict=True):
        assert score.total == pytest.approx(fmean(said) - 0.5 * stdev(said), abs=1e-5)
        assert score.parts["reward_model.std"] == pytest.approx(stdev(said), abs=1e-5)
        assert member_scores(score, "reward_model") == pytest.approx(said, abs=1e-5)


async def test_a_process_reward_model_of_the_run_s_own_is_read_after_every_step(
    checkpoint: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    import ray

    own = rollouts(tokenizer)
    process = RewardModelConfig(kind="process", step_labels="steps.jsonl")
    async with Fleet(replace(config_for(), reward_model=process), "cpu").scope() as scope:
        rewards = await scope.rewards(own_models=[checkpoint], tokenizer=checkpoint, prompts={})
        scores = await rewards.score(RolloutShard(tuple(rollout.summary for rollout in own), ray.put(own)))
    assert [index for index, _ in scores[2].step_rewards] == [3, 7]
    assert scores[0].step_rewards == ()
