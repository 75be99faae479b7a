"""A source of rewards that cannot be used is refused before any actor starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.rewards import RewardsConfig, RewardSourceConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.engines.models import build_scratch, load_scalar
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline import door
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import check_rewards
from rlhf_ray.pipeline.run import run_stages
from tests.pipeline.conftest import TINY
from tests.pipeline.fakes import FakeTask, demonstration, make_context, prompt
from tests.rewards.service import Reply, running


async def context_for(root: Path, checkpoint: Path, **source: Any) -> Context:
    """A context after the stage ``model`` whose only source is ``a``; prompt p0 alone has an answer."""
    task = FakeTask()
    task.shown = {"train": [demonstration(n) for n in range(4)], "heldout": [demonstration(8)]}
    task.asked = {"train": [replace(prompt(0), facts={"answer": "4"}), prompt(1)], "heldout": [prompt(8)]}
    config = replace(
        RunConfig(),
        model=ModelConfig(path=str(checkpoint), chat_template="compact", max_length=60),
        ppo=PpoConfig(rollouts_per_step=2, num_minibatches=1, critic_initialise_from="sft"),
        rewards=RewardsConfig({"a": RewardSourceConfig(**source)}),
    )
    context = make_context(root, config, task)
    await run_stages(context, "model")
    return context


# ------------------------------------------------------------------------------------------------------------ functions
async def test_a_function_that_scores_some_prompt_passes(tmp_path: Path, checkpoint: Path) -> None:
    check_rewards(await context_for(tmp_path, checkpoint, kind="function", function="exact_answer"))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            "exact_anwser",
            {},
            r"no built-in reward has this name.*; check the name .* and rewards\.sources\.a\.arguments",
        ),
        ("tests.rewards.made_up:lenght", {}, r"has no attribute 'lenght'"),
        ("regex_match", {}, r"missing a required argument: 'pattern'"),
        ("regex_match", {"pattern": "("}, r"could score none of 2 training prompts .*: (re\.)?error: missing \)"),
        (
            "tests.rewards.made_up:whatever",
            {"answer": [1.0]},
            r"could score none of 2 .* answered 1 scores for 2 responses",
        ),
        ("tests.rewards.made_up:facts_and_prompts", {}, r"could score none of 2 training prompts .*: KeyError: 'n'"),
    ],
)
async def test_a_function_that_cannot_be_called_is_refused(
    tmp_path: Path, checkpoint: Path, function: str, arguments: dict[str, Any], message: str
) -> None:
    context = await context_for(tmp_path, checkpoint, kind="function", function=function, arguments=arguments)
    with pytest.raises(ConfigError, match=message) as caught:
        check_rewards(context)
    assert str(caught.value).startswith(f"rewards.sources.a.function ({function!r}) c")


async def test_a_function_may_ask_for_tokens(tmp_path: Path, checkpoint: Path) -> None:
    check_rewards(await context_for(tmp_path, checkpoint, kind="function", function="tests.rewards.made_up:by_token"))


async def test_the_chain_stops_before_any_actor(tmp_path: Path, checkpoint: Path) -> None:
    context = await context_for(tmp_path, checkpoint, kind="function", function="no_such_reward")
    with pytest.raises(ConfigError, match=r"rewards\.sources\.a\.function"):
        await run_stages(context, "ppo")


# ------------------------------------------------------------------------------------------------------------- services
async def test_a_service_that_answers_passes_and_one_that_does_not_is_refused(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "SERVICE_ANSWERS_WITHIN_S", 0.3)
    with running() as service:
        context = await context_for(tmp_path, checkpoint, kind="http", url=service.url)
        service.replies = [Reply(body={"scores": []}), Reply(delay_s=0.6)]
        check_rewards(context)
        with pytest.raises(ConfigError, match=r"^rewards\.sources\.a\.url .* does not answer within 0\.3 s; start the"):
            check_rewards(context)
    with pytest.raises(ConfigError, match=r"must answer a POST with empty lists: .* cannot be reached"):
        check_rewards(context)


async def test_a_service_s_token_must_be_set_and_is_sent(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCORER_TOKEN", raising=False)
    with running() as service:
        service.replies = [Reply(body={"scores": []})]
        context = await context_for(tmp_path, checkpoint, kind="http", url=service.url, token_env="SCORER_TOKEN")
        with pytest.raises(
            ConfigError, match=r"^rewards\.sources\.a\.token_env \('SCORER_TOKEN'\) must name a variable"
        ):
            check_rewards(context)
        monkeypatch.setenv("SCORER_TOKEN", "s3cret")
        check_rewards(context)
        assert service.authorizations == ["Bearer s3cret"]


# --------------------------------------------------------------------------------------------------------------- models
async def test_a_reward_model_of_its_own_must_have_a_scalar_head_and_the_policys_tokens(
    tmp_path: Path, checkpoint: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match=r"^rewards\.sources\.a\.path .* is no model with a scalar head"):
        check_rewards(await context_for(tmp_path / "a", checkpoint, path=str(checkpoint)))
    scalar = tmp_path / "scalar"
    load_scalar(str(checkpoint), ModelConfig(), build_scratch(TINY, tokenizer, seed=0).dtype).save_pretrained(scalar)
    check_rewards(await context_for(tmp_path / "b", checkpoint, path=str(scalar)))
    with pytest.raises(ConfigError, match=r"^rewards\.sources\.a\.path \('no/such-model'\) is neither"):
        check_rewards(await context_for(tmp_path / "c", checkpoint, path="no/such-model"))


async def test_a_separator_of_steps_must_be_text_that_the_tokenizer_knows(tmp_path: Path, checkpoint: Path) -> None:
    check_rewards(await context_for(tmp_path, checkpoint, arguments={"step_separator": "\n\n"}))
