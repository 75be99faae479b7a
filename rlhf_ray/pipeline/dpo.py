"""Stage ``dpo``: the SFT model learns people's rankings directly, without a reward model and without sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.metrics.progress import progress
from rlhf_ray.metrics.sinks import open_metric_log
from rlhf_ray.pipeline.comparison import tokenized_comparisons
from rlhf_ray.pipeline.context import Context, quiet, ranks_of
from rlhf_ray.pipeline.sft import policy_path
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
    train, heldout = await referenced(context, comparisons.train, comparisons.heldout)
    batch_size = min(config.dpo.batch_size, len(train))
    num_steps = math.ceil(config.dpo.num_epochs * len(train) / batch_size)
    spec = DpoSpec(
        model_path=str(policy_path(context)),
        model=config.model,
        training=config.training,
        dpo=config.dpo,
        num_steps=num_steps,
    )
    policy, evaluation = context.directory("dpo") / "policy", _works(context, heldout)
    async with context.fleet.scope() as scope:
        trainer = await scope.trainer(spec)
        sampler = ResumableSampler(len(train), batch_size, config.seed)
        with (
            open_metric_log(context.directory("dpo"), quiet(config.logging), run_name="dpo") as log,
            progress("DPO", num_steps, "step") as bar,
        ):
            log.log(0, (await trainer.evaluate(evaluation)).means())
            for step in range(1, num_steps + 1):
                works = _works(context, [train[i] for i in sampler.next_batch()])
                metrics = (await trainer.update(works)).means()
                if step % config.dpo.eval_every == 0 or step == num_steps:
                    metrics |= (await trainer.evaluate(evaluation)).means()
                log.log(step, metrics)
                bar.advance()
                bar.note(f"loss {metrics['dpo/loss']:.3f}")
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
    bare = tuple([ReferencedRanking(ranking, ()) for ranking in rankings] for rankings in splits)
    if not config.has_reference:
        return bare
    async with context.fleet.scope() as scope:
        servers = await scope.reference_servers(str(policy_path(context)), 1.0)
        made = []
        for rankings in splits:
            own = [sequence for ranking in rankings for sequence in ranking.sequences]
            others = mismatches(rankings) if config.loss == "kto" else []
            said = iter(await servers.response_logprobs([*own, *others]))
            known = [tuple(next(said) for _ in ranking.sequences) for ranking in rankings]
            strange: list[Mismatched] = [((other,), (next(said),)) for other in others] or [((), ())] * len(rankings)
            rows = zip(rankings, known, strange, strict=True)
            made.append([ReferencedRanking(ranking, own, *mismatched) for ranking, own, mismatched in rows])
    return tuple(made)


def _works(context: Context, items: Sequence[ReferencedRanking]) -> tuple[PreferenceWork, ...]:
    single = context.config.dpo.loss == "kto"
    return plan_preferences(items, single_responses=single, **ranks_of(context.config))
