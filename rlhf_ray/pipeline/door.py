"""Checks at the door: what can be known of models and data before any actor starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.engines.models import load_config
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.text import TextTools

CHECKED = 20_000  # records of a kind; more are counted by the stage itself


def check_text(context: Context) -> list[str]:
    """Tokenise what the stages will need and say what does not fit; raise DataError where nothing fits."""
    tools, config = TextTools.of(context), context.config
    lines = []
    if config.sft.num_epochs > 0:
        demonstrations = context.task.demonstrations("train")[:CHECKED]
        _, too_long = tools.demonstrations(demonstrations)
        lines.append(_count("demonstrations", demonstrations, too_long, f"model.max_length={config.model.max_length}"))
    room = config.ppo.max_response_tokens
    prompts = context.task.prompts("train")[:CHECKED]
    _, _, too_long = tools.prompts(prompts, room=room)
    lines.append(_count("prompts", prompts, too_long, f"model.max_length - ppo.max_response_tokens={room}"))
    check_vocabulary(context)
    return lines


def check_vocabulary(context: Context) -> None:
    """A reward model must read the policy's tokens: same vocabulary, or it would score other text than was written."""
    source = context.config.reward_model.initialise_from
    if source in ("sft", "base"):
        return
    policy = load_config(context.results("model")["weights"], context.config.model)
    reward: Any = load_config(source, context.config.model)
    if reward.vocab_size != policy.vocab_size:
        raise ConfigError(
            "reward_model.initialise_from",
            source,
            f"has a vocabulary of {reward.vocab_size}, the policy one of {policy.vocab_size}",
            "use a reward model with the policy's tokenizer, or train one from the SFT model (initialise_from: sft)",
        )


def _count(what: str, items: Sequence[object], too_long: int, limit: str) -> str:
    return f"{len(items)} {what}, {too_long} left out because they do not fit ({limit})"
