"""Wrong input is refused before any actor starts: the contexts here have a fleet that starts nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf_ray.config.dpo import DpoConfig, PreferenceLoss
from rlhf_ray.config.model import ModelConfig, ScratchConfig
from rlhf_ray.config.ppo import PpoConfig
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.sft import SftConfig
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.engines.models import build_scratch
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import check_text, check_vocabulary, checkpoint_directory, require_soft_labels_fit
from rlhf_ray.pipeline.run import NAMES, run_stages
from rlhf_ray.records import SoftLabel
from tests.pipeline.conftest import TINY
from tests.pipeline.fakes import FakeTask, demonstration, make_context, prompt, ranking

# "q1" in the compact template: the user's token, 2 letters, EOS, the assistant's token.
PROMPT_TOKENS = 5


def full_task(*, has_annotators: bool = True) -> FakeTask:
    task = FakeTask(has_annotators=has_annotators)
    task.shown = {"train": [demonstration(n) for n in range(4)], "heldout": [demonstration(8)]}
    task.asked = {"train": [prompt(n) for n in range(4)], "heldout": [prompt(8)]}
    if not has_annotators:
        task.judged = {"train": [ranking(1), ranking(2)], "heldout": [ranking(8)]}
    return task


def config_for(checkpoint: Path, **changes: object) -> RunConfig:
    model = ModelConfig(path=str(checkpoint), chat_template="compact", max_length=60)
    ppo = PpoConfig(rollouts_per_step=4, num_minibatches=1)
    config = replace(RunConfig(), model=model, ppo=ppo)
    return replace(config, **changes)  # type: ignore[arg-type]


async def context_for(root: Path, config: RunConfig, task: FakeTask) -> Context:
    """A context after the stage ``model``."""
    context = make_context(root, config, task)
    await run_stages(context, "model")
    return context


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


# ----------------------------------------------------------------------------------------------------------------- text
async def test_data_that_a_reward_model_names_must_be_there(tmp_path: Path, checkpoint: Path) -> None:
    config = config_for(checkpoint, reward_model=RewardModelConfig(ood_preferences="nowhere.jsonl"))
    context = await context_for(tmp_path, config, full_task(has_annotators=False))
    with pytest.raises(
        ConfigError, match=r"reward_model\.ood_preferences \('nowhere\.jsonl'\) must be a file that exists"
    ):
        check_text(context, set(NAMES))


async def test_an_axis_that_nobody_has_rated_is_refused_before_anything_starts(
    tmp_path: Path, checkpoint: Path
) -> None:
    ppo = PpoConfig(rollouts_per_step=4, num_minibatches=1, critic_initialise_from="sft")
    config = config_for(checkpoint, ppo=ppo, reward_model=RewardModelConfig(axes=("helpful", "honest")))
    context = await context_for(tmp_path, config, full_task(has_annotators=False))
    with pytest.raises(DataError, match=r"reward_model\.axes names helpful, honest, of which there is no ranking"):
        check_text(context, set(NAMES))


@pytest.mark.parametrize("loss", ["robust", "hinge", "simpo", "orpo", "kto"])
def test_a_loss_that_is_not_defined_for_soft_labels_refuses_them(loss: PreferenceLoss) -> None:
    config = DpoConfig(loss=loss, label_smoothing=0.1 if loss == "robust" else 0.0)
    unsure = replace(ranking(1), soft=(SoftLabel(0, 1, 0.9),))
    with pytest.raises(
        DataError, match=rf"1 of 2 rankings have soft labels, and dpo\.loss={loss} is .* use dpo\.loss=dpo"
    ):
        require_soft_labels_fit(config, [ranking(2), unsure])
    require_soft_labels_fit(config, [ranking(2), replace(ranking(1), soft=(SoftLabel(0, 1, 1.0),))])  # all are certain
    require_soft_labels_fit(DpoConfig(), [unsure])


async def test_what_does_not_fit_is_counted_before_anything_starts(tmp_path: Path, checkpoint: Path) -> None:
    task = full_task()
    task.shown["train"].append(demonstration(5, "x" * 100))
    task.asked["train"] += [prompt(5, "x" * 20), prompt(6, "x" * 20)]
    context = await context_for(tmp_path, config_for(checkpoint), task)
    assert check_text(context, set(NAMES)) == [
        "4 training demonstrations, 1 more do not fit and are left out (model.max_length=60)",
        "1 held-out demonstrations",
        "4 training prompts, 2 more do not fit and are left out (model.max_length=60 - 48 for a response)",
        "1 held-out prompts",
    ]


async def test_only_what_the_stages_need_is_asked_for(tmp_path: Path, checkpoint: Path) -> None:
    task = full_task()
    task.asked = {"train": [], "heldout": []}
    context = await context_for(tmp_path, config_for(checkpoint), task)
    assert check_text(context, {"model", "sft"}) == ["4 training demonstrations", "1 held-out demonstrations"]
    with pytest.raises(DataError, match="the data has no prompts where some are needed"):
        check_text(context, set(NAMES))


async def test_without_sft_no_demonstration_is_needed(tmp_path: Path, checkpoint: Path) -> None:
    task = full_task()
    task.shown = {"train": [], "heldout": []}
    with pytest.raises(DataError, match="the data has no demonstrations where some are needed"):
        check_text(await context_for(tmp_path / "a", config_for(checkpoint), task), set(NAMES))
    without = config_for(checkpoint, sft=SftConfig(num_epochs=0))
    assert check_text(await context_for(tmp_path / "b", without, task), set(NAMES)) == [
        "4 training prompts",
        "1 held-out prompts",
    ]


async def test_nothing_that_fits_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    task = full_task()
    task.asked["heldout"] = [prompt(8, "x" * 50)]
    with pytest.raises(DataError, match=r"none of 1 prompts leaves 48 of 60 tokens for a response"):
        check_text(await context_for(tmp_path, config_for(checkpoint), task), set(NAMES))


async def test_more_prompts_a_step_than_there_are_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    config = config_for(checkpoint, ppo=PpoConfig(rollouts_per_step=16, responses_per_prompt=2))
    with pytest.raises(
        ConfigError, match=r"ppo\.rollouts_per_step \(16\) asks for 8 different prompts a step, and 4 fit"
    ):
        check_text(await context_for(tmp_path, config, full_task()), set(NAMES))


async def test_recorded_rankings_are_read_and_must_be_apart(tmp_path: Path, checkpoint: Path) -> None:
    task = full_task(has_annotators=False)
    task.judged["train"].append(ranking(3, (0, 0)))
    context = await context_for(tmp_path, config_for(checkpoint), task)
    assert check_text(context, {"comparison"}) == [
        "2 training rankings, 1 more do not fit and are left out (tied, of another axis, or above model.max_length=60)",
        "1 held-out rankings",
    ]
    task.judged["heldout"] = [ranking(2)]
    with pytest.raises(DataError, match=r"1 prompts stand in both the training and the held-out rankings, one is 'p2'"):
        check_text(context, {"comparison"})
    task.judged["heldout"] = []
    with pytest.raises(DataError, match="the data has no rankings where some are needed"):
        check_text(context, {"comparison"})


async def test_the_chain_stops_at_the_door(tmp_path: Path, checkpoint: Path) -> None:
    task = full_task()
    task.asked["heldout"] = []
    context = make_context(tmp_path, config_for(checkpoint), task)
    with pytest.raises(DataError, match="the data has no prompts"):
        await run_stages(context, "evaluation")
    assert tuple(context.finished) == ("model",)


# --------------------------------------------------------------------------------------------------------------- models
def test_a_whole_checkpoint_is_taken(checkpoint: Path) -> None:
    assert checkpoint_directory(str(checkpoint), field="model.path") == checkpoint.resolve()


def test_a_name_that_is_nowhere_names_the_field() -> None:
    with pytest.raises(ConfigError, match=r"^model\.path \('no/such-model'\) is neither a directory nor a model"):
        checkpoint_directory("no/such-model", field="model.path")


def test_a_pickled_checkpoint_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    broken = copy(checkpoint, tmp_path / "pickled")
    (broken / "model.safetensors").unlink()
    torch.save({}, broken / "pytorch_model.bin")
    message = r"must hold weights in safetensors, and has only pickled ones \(pytorch_model\.bin\), which run code"
    with pytest.raises(ConfigError, match=message):
        checkpoint_directory(str(broken), field="model.path")


def without(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def break_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def forget_eos(directory: Path) -> None:
    path = directory / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content.pop("eos_token")
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("config.json"), r"^model\.path .* has no config\.json"),
        (without("model.safetensors"), r"^model\.path .* safetensors, and has none at all"),
        (without("tokenizer.json"), r"^model\.path .* has no tokenizer that can be read"),
        (break_config, r"^model\.path .* has a config\.json that cannot be read"),
        (forget_eos, r"^tokenizer\.eos_token \(None\) must be set"),
    ],
)
async def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, checkpoint: Path, damage: Callable[[Path], None], message: str
) -> None:
    broken = copy(checkpoint, tmp_path / "broken")
    damage(broken)
    with pytest.raises(ConfigError, match=message) as caught:
        await run_stages(make_context(tmp_path / "run", config_for(broken), full_task()), "model")
    assert "\n" not in str(caught.value)


async def test_a_model_without_a_chat_template_is_refused_when_its_own_is_asked_for(
    tmp_path: Path, checkpoint: Path
) -> None:
    config = config_for(checkpoint, model=ModelConfig(path=str(checkpoint), chat_template="tokenizer", max_length=60))
    bare = copy(checkpoint, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    config = replace(config, model=replace(config.model, path=str(bare)))
    with pytest.raises(
        ConfigError, match=r"model\.chat_template \('tokenizer'\) asks for the tokenizer's own template"
    ):
        await run_stages(make_context(tmp_path / "run", config, full_task()), "model")


async def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    config = config_for(checkpoint, model=ModelConfig(path=str(checkpoint), chat_template="compact", max_length=513))
    with pytest.raises(ConfigError, match=r"^model\.max_length \(513\) must not exceed the model's 512"):
        await run_stages(make_context(tmp_path, config, full_task()), "model")


async def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    broken = copy(checkpoint, tmp_path / "broken")
    train_bpe_tokenizer(["some more words to be merged into tokens, some more words"], 320).save_pretrained(broken)
    with pytest.raises(ConfigError, match=r"^model\.path .* has \d+ embeddings, and the policy's tokenizer \d+ tokens"):
        await run_stages(make_context(tmp_path / "run", config_for(broken), full_task()), "model")


# --------------------------------------------------------------------------------------------------------- reward model
async def vocabulary_error(tmp_path: Path, checkpoint: Path, reward_model: Path) -> str:
    config = config_for(checkpoint, reward_model=RewardModelConfig(initialise_from=str(reward_model)))
    context = await context_for(tmp_path / "run", config, full_task())
    try:
        check_vocabulary(context)
    except ConfigError as error:
        return str(error)
    return ""


async def test_a_reward_model_with_the_policys_tokenizer_is_taken(tmp_path: Path, checkpoint: Path) -> None:
    assert await vocabulary_error(tmp_path, checkpoint, checkpoint) == ""


async def test_padding_of_the_vocabulary_is_no_difference(
    tmp_path: Path, checkpoint: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    padded = copy(checkpoint, tmp_path / "padded")
    model = build_scratch(TINY, tokenizer, seed=0)
    model.resize_token_embeddings(model.config.vocab_size + 64)
    model.save_pretrained(padded)
    assert await vocabulary_error(tmp_path, checkpoint, padded) == ""


async def test_a_reward_model_with_other_tokens_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    other = copy(checkpoint, tmp_path / "other")
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    message = await vocabulary_error(tmp_path, checkpoint, other)
    assert message.startswith("reward_model.initialise_from (")
    assert "has another vocabulary than the policy: 4 tokens differ" in message


async def test_a_reward_model_without_tokenizer_is_told_by_its_size(
    tmp_path: Path, checkpoint: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = tmp_path / "bare"
    model = build_scratch(replace(TINY, hidden_size=16), tokenizer, seed=0)
    model.save_pretrained(bare)
    assert await vocabulary_error(tmp_path / "same", checkpoint, bare) == ""
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 1)
    model.save_pretrained(bare)
    assert f"has {size + 1} tokens, the policy {size}" in await vocabulary_error(tmp_path / "more", checkpoint, bare)
    model.resize_token_embeddings(size - 1)
    model.save_pretrained(bare)
    assert f"has {size - 1} embeddings" in await vocabulary_error(tmp_path / "less", checkpoint, bare)


async def test_a_pickled_reward_model_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    pickled = copy(checkpoint, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    message = await vocabulary_error(tmp_path, checkpoint, pickled)
    assert "reward_model.initialise_from" in message
    assert "only pickled ones" in message


# -------------------------------------------------------------------------------------------------------------- scratch
async def test_an_architecture_that_brings_another_tokenizer_is_refused(tmp_path: Path) -> None:
    scratch = ScratchConfig("qwen2", vocab_size=300, hidden_size=64, intermediate_size=8, num_layers=1, num_heads=2)
    config = replace(RunConfig(), model=ModelConfig(scratch=scratch, chat_template="compact"))
    with pytest.raises(ConfigError, match=r"^model\.scratch\.architecture \('qwen2'\) .* as a Qwen2Tokenizer"):
        await context_for(tmp_path, config, full_task())


async def test_a_model_from_nothing_can_be_the_model_of_another_run(tmp_path: Path) -> None:
    scratch = ScratchConfig(vocab_size=300, hidden_size=64, intermediate_size=8, num_layers=1, num_heads=2)
    ppo = PpoConfig(rollouts_per_step=4)
    config = replace(RunConfig(), model=ModelConfig(scratch=scratch, chat_template="compact"), ppo=ppo)
    first = await context_for(tmp_path / "first", config, full_task())
    again = ModelConfig(path=str(first.results("model")["weights"]), chat_template="tokenizer")
    second = await context_for(tmp_path / "second", replace(config, model=again), full_task())
    assert check_text(second, set(NAMES)) == check_text(first, set(NAMES))


async def test_a_model_from_nothing_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    scratch = ScratchConfig(vocab_size=300, hidden_size=64, intermediate_size=8, num_layers=1, num_heads=2)
    config = replace(RunConfig(), model=ModelConfig(scratch=scratch, chat_template="compact"))
    made = [await context_for(tmp_path / name, config, full_task()) for name in ("a", "b")]
    weights = [(Path(c.results("model")["weights"]) / "model.safetensors").read_bytes() for c in made]
    assert weights[0] == weights[1]
    assert made[0].results("model")["vocab_size"] == made[1].results("model")["vocab_size"] <= 300
