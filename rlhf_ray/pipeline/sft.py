"""Stage ``sft``: the base model learns from demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.formats import parse_demonstration
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.data.sources import read_source
from rlhf_ray.data.task import Split
from rlhf_ray.pipeline.context import Context, ResumableTrainer, ranks_of
from rlhf_ray.pipeline.fitting import Metrics, take_steps
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Demonstration
from rlhf_ray.stages.sft import SftSpec
from rlhf_ray.stages.work import plan_sequences


async def train_sft(context: Context) -> dict[str, Any]:
    """Write ``sft/policy``, a Hugging Face checkpoint with its tokenizer."""
    config, tools = context.config, TextTools.of(context)
    if config.sft.num_epochs == 0:
        return {"policy": context.results("model")["weights"], "steps": 0}
    train, too_long = tools.demonstrations(demonstrations(context, "train"))
    heldout, _ = tools.demonstrations(context.task.demonstrations("heldout"))
    heldout = heldout[: config.sft.max_eval_demonstrations]
    batch_size = min(config.sft.batch_size, len(train))
    num_steps = max(1, round(config.sft.num_epochs * len(train) / batch_size))
    spec = SftSpec(
        model_path=context.results("model")["weights"],
        model=config.model,
        training=config.training,
        optimizer=config.sft.optimizer,
        num_steps=num_steps,
    )
    policy = context.directory("sft") / "policy"
    async with context.fleet.scope() as scope:
        trainer = await scope.trainer(spec)
        schedule = {"num_steps": num_steps, "batch_size": batch_size, "eval_every": config.sft.eval_every}
        loss = await fit(context, trainer, train, heldout, stage="sft", **schedule)
        await trainer.save(str(policy))
    tools.tokenizer.save_pretrained(policy)
    return {
        "policy": str(policy),
        "steps": num_steps,
        "demonstrations": len(train),
        "too_long": too_long,
        "heldout_loss": loss,
    }


def demonstrations(context: Context, split: Split) -> list[Demonstration]:
    """The task's, or for training those of the file that ``sft.demonstrations`` names."""
    source = context.config.sft.demonstrations
    if split == "heldout" or not source:
        return context.task.demonstrations(split)
    read = [parse_demonstration(record) for record in read_source(source)]
    return [each for each in read if isinstance(each, Demonstration)]


async def fit(
    context: Context,
    trainer: ResumableTrainer,
    train: list[TokenSequence],
    heldout: list[TokenSequence],
    *,
    stage: str,
    num_steps: int,
    batch_size: int,
    eval_every: int,
) -> float:
    """Train and log under the stage's directory; return the last held-out loss, NaN where nothing is held out."""
    config = context.config
    sampler = ResumableSampler(len(train), batch_size, config.seed)
    evaluation = plan_sequences(heldout, **ranks_of(config)) if heldout else ()

    async def evaluated(step: int) -> Metrics:
        if not evaluation or step == 0 or (step % eval_every and step != num_steps):
            return {}
        return (await trainer.evaluate(evaluation)).means()

    last = await take_steps(
        context,
        trainer,
        directory=context.directory(stage),
        stage=stage,
        title=stage.upper(),
        num_steps=num_steps,
        sampler=sampler,
        works_of=lambda batch: plan_sequences([train[i] for i in batch], **ranks_of(config)),
        evaluated=evaluated,
        note=_note,
        data=_fingerprint(train),
    )
    return last.get("sft/heldout_loss", math.nan)


def _fingerprint(train: Sequence[TokenSequence]) -> str:
    """Of what is learned: rejection sampling makes it anew when it is started again."""
    digest = xxhash.xxh3_128()
    for sequence in train:
        digest.update(sequence.token_ids.tobytes() + sequence.mask.tobytes())
    return str(digest.hexdigest())


def _note(metrics: Metrics) -> str:
    heldout = metrics.get("sft/heldout_loss")
    return f"loss {metrics['sft/loss']:.3f}" + ("" if heldout is None else f", held-out {heldout:.3f}")


def policy_path(context: Context) -> Path:
    """The SFT model of this run: the frozen reference of every method."""
    return Path(context.results("sft")["policy"])


def start_path(context: Context) -> Path:
    """Where a method's policy starts: from the SFT model, or in a later round from what the one before has made."""
    return Path(context.results("start" if "start" in context.finished else "sft")["policy"])
