"""Stage ``model``: the tokenizer and the weights that everything starts from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.data.task import Task
from rlhf_ray.data.tokenizer import train_bpe_tokenizer
from rlhf_ray.engines.models import build_scratch
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import check_policy, check_reread, checkpoint_directory, read_tokenizer

COMPARED_TEXTS = 100


async def make_model(context: Context) -> dict[str, Any]:
    """Write ``model/``: a tokenizer with its chat template, and the path of the weights.

    Raises ConfigError for a checkpoint without safetensors, tokenizer or room for ``model.max_length``, and where there
    is no chat template or no end-of-sequence token.
    """
    config, directory = context.config.model, context.directory("model")
    if config.path is None:
        path = directory / "weights"
        tokenizer = train_bpe_tokenizer(list(_texts(context.task)), vocab_size=config.scratch.vocab_size)
        build_scratch(config.scratch, tokenizer, context.config.seed).save_pretrained(path)
    else:
        path = checkpoint_directory(config.path, field="model.path")
        tokenizer = read_tokenizer(path, config, field="model.path")
        check_policy(path, tokenizer, config)
    set_chat_template(tokenizer, config.chat_template)
    tokenizer.save_pretrained(directory / "tokenizer")
    if config.path is None:
        tokenizer.save_pretrained(path)  # beside the weights, as every checkpoint of the run will have it
        check_reread(path, tokenizer, config, list(islice(_texts(context.task), COMPARED_TEXTS)))
    return {"weights": str(path), "tokenizer": str(directory / "tokenizer"), "vocab_size": len(tokenizer)}


def _texts(task: Task) -> Iterator[str]:
    for demonstration in task.demonstrations("train"):
        yield from (message.content for message in demonstration.messages)
