"""Stage ``reward_model``: a scalar model learns people's rankings and is measured on rankings that it never saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.metrics.preferences import OPINIONS_FILE, accuracy, mean_loss
from rlhf_ray.pipeline.comparison import Comparisons, tokenized_comparisons
from rlhf_ray.pipeline.context import Context, ResumableTrainer, Trainer, ranks_of
from rlhf_ray.pipeline.door import require_axes_present
from rlhf_ray.pipeline.fitting import Metrics, take_steps
from rlhf_ray.pipeline.process_reward import train_process_reward_model
from rlhf_ray.pipeline.reward_model_exam import Answers, Exam, Sheet
from rlhf_ray.pipeline.reward_model_start import initial_weights
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.rewards.heads import Scale, checkpoint_settings
from rlhf_ray.stages.reward_model import RewardModelSpec
from rlhf_ray.stages.work import TokenizedRanking, plan_rankings

SCORED_FOR_NORMALISATION = 512  # rankings


async def train_reward_model(context: Context) -> dict[str, Any]:
    """Write ``reward_model/model``, a sequence classifier, and what it gets right on held-out rankings.

    The other members of an ensemble are written beside it as ``model_2`` and so on. A process reward model learns from
    labelled steps instead of rankings.
    """
    tools, config = TextTools.of(context), context.config.reward_model
    if config.kind == "process":
        return await train_process_reward_model(context)
    comparisons = tokenized_comparisons(context, tools, config.axes)
    require_axes_present(config.axes, comparisons.train_rankings)
    exam = Exam.of(context, tools, comparisons)
    members = [Member.of(context, comparisons, number) for number in range(1, config.ensemble + 1)]
    sheets = [await member.learn(context, exam) for member in members]
    for member in members:
        tools.tokenizer.save_pretrained(member.directory)
    write_jsonl(context.directory("reward_model") / OPINIONS_FILE, exam.opinions("heldout", sheets))
    return {
        **{member.name: str(member.directory) for member in members},
        "steps": members[0].num_steps,
        "rankings": len(comparisons.train),
        "left_out": comparisons.left_out,
        **exam.results(sheets),
    }


def own_reward_models(context: Context) -> list[str]:
    """The checkpoints of the run's own reward model, all members; none where no source of rewards asks for one."""
    if not context.config.trains_reward_model:
        return []
    results = context.results("reward_model")
    return [results[member_name(n)] for n in range(1, context.config.reward_model.ensemble + 1)]


def member_name(number: int) -> str:
    return "model" if number == 1 else f"model_{number}"


@dataclass(frozen=True)
class Member:
    """One network of an ensemble, or the only one. Members differ in the rankings that they see, in order and head.

    Each is trained on its own: members that shared a trunk would share its mistakes, and would agree about them.
    """

    number: int  # from 1
    directory: Path
    train: Sequence[TokenizedRanking]
    num_steps: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, context: Context, comparisons: Comparisons, number: int) -> Member:
        config, train = context.config.reward_model, comparisons.train
        batch_size = min(config.batch_size, len(train))
        seed = context.config.seed + number - 1
        if config.ensemble > 1:
            drawn = np.random.default_rng([context.config.seed, number]).integers(len(train), size=len(train))
            train = [train[i] for i in drawn]
        return cls(
            number=number,
            directory=context.directory("reward_model") / member_name(number),
            train=train,
            num_steps=math.ceil(config.num_epochs * len(train) / batch_size),
            batch_size=batch_size,
            seed=seed,
        )

    @property
    def name(self) -> str:
        return member_name(self.number)

    async def learn(self, context: Context, exam: Exam) -> Sheet:
        """Train, sit the exam, save."""
        async with context.fleet.scope() as scope:
            trainer = await scope.trainer(self._spec(context))
            await self._fit(context, trainer, exam)
            answers = {name: await _scores(context, trainer, asked.tokenized) for name, asked in exam.questions.items()}
            sheet = Sheet(await self._scale(context, trainer), answers)
            await trainer.save(str(self.directory), checkpoint_settings(exam.heads, sheet.scale))
        return sheet

    def _spec(self, context: Context) -> RewardModelSpec:
        config = context.config.reward_model
        return RewardModelSpec(
            model_path=initial_weights(context),
            model=context.config.model,
            training=context.config.training,
            optimizer=config.optimizer,
            centering=config.centering,
            margin=config.margin,
            num_steps=self.num_steps,
            heads=config.heads,
            head_seed=self.seed if config.ensemble > 1 else None,
        )

    async def _fit(self, context: Context, trainer: ResumableTrainer, exam: Exam) -> None:
        config = context.config
        sampler = ResumableSampler(len(self.train), self.batch_size, self.seed)
        heldout = exam.questions["heldout"].tokenized

        async def evaluated(step: int) -> Metrics:
            if step == 0 or step % config.reward_model.eval_every:
                return {}
            answers = {"heldout": await _scores(context, trainer, heldout)}
            pairs = exam.pairs("heldout", [Sheet(Scale.none(exam.heads), answers)])
            return {"reward_model/heldout_accuracy": accuracy(pairs), "reward_model/heldout_loss": mean_loss(pairs)}

        await take_steps(
            context,
            trainer,
            directory=self.directory.parent / ("" if self.number == 1 else f"member_{self.number}"),
            stage="reward_model",
            title="Reward model" if config.reward_model.ensemble == 1 else f"Reward model {self.number}",
            num_steps=self.num_steps,
            sampler=sampler,
            works_of=lambda batch: plan_rankings([self.train[i] for i in batch], **ranks_of(config)),
            evaluated=evaluated,
            note=lambda m: f"loss {m['reward_model/loss']:.3f}, accuracy {m['reward_model/accuracy']:.3f}",
        )

    async def _scale(self, context: Context, trainer: Trainer) -> Scale:
        """That of raw scores on training responses: normalised scores then have mean 0 and deviation 1."""
        chosen = self.train[:: max(1, len(self.train) // SCORED_FOR_NORMALISATION)]
        unique = list({ranking.index: ranking for ranking in chosen}.values())
        scores = await _scores(context, trainer, unique)
        raw = np.array([row for ranking in chosen for row in scores[ranking.index]])
        return Scale.measured(context.config.reward_model.heads, raw)


async def _scores(context: Context, trainer: Trainer, rankings: Sequence[TokenizedRanking]) -> Answers:
    """Raw scores by the index of a ranking; no rankings have none."""
    return await trainer.score(plan_rankings(rankings, **ranks_of(context.config))) if rankings else {}
