"""Stage ``reward_model`` of kind ``process``: a scalar model learns which steps of a response are good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rlhf_ray.data.files import read_usable
from rlhf_ray.data.formats import parse_step_labelled
from rlhf_ray.data.recorded import is_heldout
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.preferences import calibration_error
from rlhf_ray.metrics.steps import labelled_steps, step_calibration, step_loss, step_rows
from rlhf_ray.pipeline.context import Context, ResumableTrainer, Trainer, ranks_of
from rlhf_ray.pipeline.fitting import Metrics, take_steps
from rlhf_ray.pipeline.reward_model_start import initial_weights
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import StepLabelled
from rlhf_ray.rewards.heads import ONE_HEAD, Scale, checkpoint_settings
from rlhf_ray.stages.process_reward import ProcessRewardSpec
from rlhf_ray.stages.work import LabelledSteps, plan_steps

HELD_OUT = 0.1  # the share of prompts that the model is measured on


async def train_process_reward_model(context: Context) -> dict[str, Any]:
    """Write ``reward_model/model``, a one-label sequence classifier, and what it gets right on held-out steps."""
    config, tools = context.config.reward_model, TextTools.of(context)
    train, heldout, left_out = _split(context, tools)
    batch_size = min(config.batch_size, len(train))
    num_steps = math.ceil(config.num_epochs * len(train) / batch_size)
    spec = ProcessRewardSpec(
        model_path=initial_weights(context),
        model=context.config.model,
        training=context.config.training,
        optimizer=config.optimizer,
        num_steps=num_steps,
    )
    directory = context.directory("reward_model") / "model"
    async with context.fleet.scope() as scope:
        trainer = await scope.trainer(spec)
        await _fit(context, trainer, train, heldout, num_steps, batch_size)
        steps = labelled_steps(heldout, await _rewards(context, trainer, heldout))
        raw = np.array([[r] for own in (await _rewards(context, trainer, train)).values() for r in own])
        await trainer.save(str(directory), checkpoint_settings(ONE_HEAD, Scale.measured(ONE_HEAD, raw)))
    tools.tokenizer.save_pretrained(directory)
    rows, bins = step_rows(steps), step_calibration(steps)
    return {
        "model": str(directory),
        "steps": num_steps,
        "responses": len(train),
        "left_out": left_out,
        "heldout_steps": len(steps),
        "accuracy": rows[0].correct / rows[0].total,
        "calibration_error": calibration_error(bins),
        "accuracy_rows": [asdict(row) for row in rows],
        "calibration": [asdict(each) for each in bins],
    }


async def _fit(
    context: Context,
    trainer: ResumableTrainer,
    train: Sequence[LabelledSteps],
    heldout: Sequence[LabelledSteps],
    num_steps: int,
    batch_size: int,
) -> None:
    config = context.config
    sampler = ResumableSampler(len(train), batch_size, config.seed)

    async def evaluated(step: int) -> Metrics:
        if step == 0 or step % config.reward_model.eval_every:
            return {}
        steps = labelled_steps(heldout, await _rewards(context, trainer, heldout))
        (whole, *_) = step_rows(steps)
        return {
            "reward_model/heldout_accuracy": whole.correct / whole.total,
            "reward_model/heldout_loss": step_loss(steps),
        }

    await take_steps(
        context,
        trainer,
        directory=context.directory("reward_model"),
        stage="reward_model",
        title="Process reward model",
        num_steps=num_steps,
        sampler=sampler,
        works_of=lambda batch: plan_steps([train[i] for i in batch], **ranks_of(config)),
        evaluated=evaluated,
        note=lambda m: f"loss {m['reward_model/loss']:.3f}, accuracy {m['reward_model/accuracy']:.3f}",
    )


def _split(context: Context, tools: TextTools) -> tuple[list[LabelledSteps], list[LabelledSteps], int]:
    """Labelled responses to train on and to measure on, apart by prompt, and how many training ones did not fit."""
    config = context.config.reward_model
    items, _ = read_usable(config.step_labels, parse_step_labelled)
    split: Mapping[bool, list[StepLabelled]] = {False: [], True: []}
    for item in items:
        split[is_heldout(item.prompt_id, seed=context.config.seed, fraction=HELD_OUT)].append(item)
    for held, own in split.items():
        if not own:
            raise DataError(
                f"{config.step_labels}: none of {len(items)} labelled responses is {'held out' if held else 'left'} "
                f"where a tenth of the prompts are held out; bring more prompts"
            )
    train, left_out = tools.steps(split[False], config.step_separator)
    return train, tools.steps(split[True], config.step_separator)[0], left_out


async def _rewards(
    context: Context, trainer: Trainer, responses: Sequence[LabelledSteps]
) -> Mapping[int, tuple[float, ...]]:
    return await trainer.score(plan_steps(responses, **ranks_of(context.config)))
