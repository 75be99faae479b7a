"""Stage ``dpo``: the SFT model learns people's rankings directly, without a reward model and without sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.pipeline.comparison import tokenized_comparisons
from rlhf_ray.pipeline.context import Context, ReferenceServers, ranks_of
from rlhf_ray.pipeline.door import require_soft_labels_fit
from rlhf_ray.pipeline.fitting import Metrics, take_steps
from rlhf_ray.pipeline.sft import policy_path, start_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.stages.dpo import DpoSpec
from rlhf_ray.stages.work import (
    PreferenceWork,
    ReferencedRanking,
    TokenizedRanking,
    mismatches,
    plan_preferences,
)

Mismatched: TypeAlias = tuple[tuple[TokenSequence, ...], tuple[float, ...]]


async def train_dpo(context: Context) -> dict[str, Any]:
    """Write ``dpo/policy``, a Hugging Face checkpoint with its tokenizer, and what held-out rankings say of it."""
    config, tools = context.config, TextTools.of(context)
    comparisons = tokenized_comparisons(context, tools)
    require_soft_labels_fit(config.dpo, [*comparisons.train_rankings, *comparisons.heldout_rankings])
    train, heldout = await referenced(context, comparisons.train, comparisons.heldout)
    batch_size = min(config.dpo.batch_size, len(train))
    num_steps = math.ceil(config.dpo.num_epochs * len(train) / batch_size)
    policy, evaluation = context.directory("dpo") / "policy", preference_works(context, heldout)
    sampler = ResumableSampler(len(train), batch_size, config.seed)
    async with context.fleet.scope() as scope:
        trainer = await scope.trainer(dpo_spec(context, num_steps))

        async def evaluated(step: int) -> Metrics:
            if step % config.dpo.eval_every and step != num_steps:
                return {}
            return (await trainer.evaluate(evaluation)).means()

        metrics = await take_steps(
            context,
            trainer,
            directory=context.directory("dpo"),
            stage="dpo",
            title="DPO",
            num_steps=num_steps,
            sampler=sampler,
            works_of=lambda batch: preference_works(context, [train[i] for i in batch]),
            evaluated=evaluated,
            note=lambda m: f"loss {m['dpo/loss']:.3f}",
        )
        await trainer.save(str(policy))
    tools.tokenizer.save_pretrained(policy)
    prefix = "dpo_heldout/"
    measured = {f"heldout_{name.removeprefix(prefix)}": v for name, v in metrics.items() if name.startswith(prefix)}
    return {
        "policy": str(policy),
        "steps": num_steps,
        "rankings": len(train),
        "left_out": comparisons.left_out,
        **measured,
    }


async def referenced(context: Context, *splits: Sequence[TokenizedRanking]) -> tuple[list[ReferencedRanking], ...]:
    """Each split's rankings with what the frozen SFT model says of their responses: computed once, on its servers."""
    config = context.config.dpo
    if not config.has_reference:
        return tuple([await with_reference(config, None, rankings) for rankings in splits])
    async with context.fleet.scope() as scope:
        servers = await scope.reference_servers(str(policy_path(context)), 1.0)
        return tuple([await with_reference(config, servers, rankings) for rankings in splits])


async def with_reference(
    config: DpoConfig, servers: ReferenceServers | None, rankings: Sequence[TokenizedRanking]
) -> list[ReferencedRanking]:
    """``rankings`` with what the reference says of their responses; with nothing where there is no reference."""
    if servers is None:
        return [ReferencedRanking(ranking, ()) for ranking in rankings]
    own = [sequence for ranking in rankings for sequence in ranking.sequences]
    others = mismatches(rankings) if config.loss == "kto" else []
    said = iter(await servers.response_logprobs([*own, *others]))
    known = [tuple(next(said) for _ in ranking.sequences) for ranking in rankings]
    strange: list[Mismatched] = [((other,), (next(said),)) for other in others] or [((), ())] * len(rankings)
    rows = zip(rankings, known, strange, strict=True)
    return [ReferencedRanking(ranking, logprobs, *mismatched) for ranking, logprobs, mismatched in rows]


def dpo_spec(context: Context, num_steps: int) -> DpoSpec:
    """What the trainer is built from."""
    config = context.config
    return DpoSpec(
        model_path=str(start_path(context)),
        model=config.model,
        training=config.training,
        dpo=config.dpo,
        num_steps=num_steps,
    )


def preference_works(context: Context, items: Sequence[ReferencedRanking]) -> tuple[PreferenceWork, ...]:
    """Each rank's share of a batch."""
    single = context.config.dpo.loss == "kto"
    return plan_preferences(items, single_responses=single, **ranks_of(context.config))
