"""Stage ``sft``: the base model learns from demonstrations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.sinks import open_metric_log
from rlhf_ray.pipeline.context import Context, Trainer, quiet, ranks_of
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.stages.sft import SftSpec
from rlhf_ray.stages.work import plan_sequences


async def train_sft(context: Context) -> dict[str, Any]:
    """Write ``sft/policy``, a Hugging Face checkpoint with its tokenizer."""
    config, tools = context.config, TextTools.of(context)
    if config.sft.num_epochs == 0:
        return {"policy": context.results("model")["weights"], "steps": 0}
    train, too_long = tools.demonstrations(context.task.demonstrations("train"))
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


async def fit(
    context: Context,
    trainer: Trainer,
    train: list[TokenSequence],
    heldout: list[TokenSequence],
    *,
    stage: str,
    num_steps: int,
    batch_size: int,
    eval_every: int,
) -> float:
    """Train and log under the stage's directory; return the last held-out loss, NaN where nothing is held out."""
    config, heldout_loss = context.config, float("nan")
    sampler = ResumableSampler(len(train), batch_size, config.seed)
    evaluation = plan_sequences(heldout, **ranks_of(config)) if heldout else ()
    with (
        open_metric_log(context.directory(stage), quiet(config.logging), run_name=stage) as log,
        progress(stage.upper(), num_steps, "step") as bar,
    ):
        for step in range(1, num_steps + 1):
            works = plan_sequences([train[i] for i in sampler.next_batch()], **ranks_of(config))
            metrics = (await trainer.update(works)).means()
            if evaluation and (step % eval_every == 0 or step == num_steps):
                metrics |= (await trainer.evaluate(evaluation)).means()
                heldout_loss = metrics["sft/heldout_loss"]
            log.log(step, metrics)
            bar.advance()
            heldout_text = "" if math.isnan(heldout_loss) else f", held-out {heldout_loss:.3f}"
            bar.note(f"loss {metrics['sft/loss']:.3f}{heldout_text}")
    return heldout_loss


def policy_path(context: Context) -> Path:
    """The SFT model of this run."""
    return Path(context.results("sft")["policy"])
