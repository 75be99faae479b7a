"""Stage ``ppo``: the SFT model learns to please the reward model without leaving the reference too far behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_ray.colocation import TrainsAlone
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.driver import Driver, Roles
from rlhf_ray.errors import ConfigError
from rlhf_ray.lookahead import Schedule
from rlhf_ray.pipeline.context import Context, Scope, ranks_of, warned
from rlhf_ray.pipeline.evaluation import start_rewards
from rlhf_ray.pipeline.ppo_run import PpoRun
from rlhf_ray.pipeline.recording import recorded
from rlhf_ray.pipeline.reward_model import own_reward_models
from rlhf_ray.pipeline.sft import demonstrations, policy_path, start_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Prompt, SamplingSettings
from rlhf_ray.rollout_store import ROLLOUTS, write_kinds
from rlhf_ray.stages.ppo import PpoSpec
from rlhf_ray.stages.work import SequenceWork, plan_sequences

PROBE_TOKENS = 48


class SampledPrompts:
    """Training prompts in batches, epoch after epoch. What is left of a batch waits for whoever asks next."""

    def __init__(self, prompts: Sequence[Prompt], batch_size: int, seed: int) -> None:
        if batch_size > len(prompts):
            raise ConfigError(
                "ppo.rollouts_per_step",
                batch_size,
                f"asks for more prompts a step than fit ({len(prompts)})",
                "lower it or raise ppo.responses_per_prompt",
            )
        self._prompts = list(prompts)
        self._batch_size = batch_size
        self._sampler = ResumableSampler(len(prompts), batch_size, seed)
        self._waiting: list[int] = []

    def next_prompts(self, count: int) -> list[Prompt]:
        while len(self._waiting) < count:
            self._waiting += self._sampler.next_batch()
        chosen, self._waiting = self._waiting[:count], self._waiting[count:]
        return [replace(self._prompts[i], order=order) for order, i in enumerate(chosen)]

    def state(self) -> Mapping[str, object]:
        return {"sampler": self._sampler.state(), "waiting": list(self._waiting)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._waiting = [int(index) for index in state["waiting"]]
        self._sampler = ResumableSampler.from_state(
            {name: int(value) for name, value in state["sampler"].items()},
            num_items=len(self._prompts),
            batch_size=self._batch_size,
        )


async def train_ppo(context: Context) -> dict[str, Any]:
    """Write ``ppo/policy``, a Hugging Face checkpoint with its tokenizer. Resumes at the last complete checkpoint."""
    tools = TextTools.of(context)
    prompts, too_long = training_prompts(context, tools)
    directory = context.directory("ppo")
    policy = directory / "policy"
    async with context.fleet.scope() as scope:
        roles = await _start(context, scope, tools, prompts)
        if context.config.ppo.save_rollouts:
            write_kinds(directory / ROLLOUTS, {prompt.prompt_id: prompt.kind for prompt in prompts})
        driver = make_driver(context, recorded(roles, scope, directory, context.config), tools, prompts)
        run = PpoRun(context, driver, roles, scope)
        last = await run.train()
        kept = await run.take_best()
        await roles.trainer.save(str(policy))
    tools.tokenizer.save_pretrained(policy)
    return {
        "policy": str(policy),
        "prompts": len(prompts),
        "too_long": too_long,
        "alarms": run.num_alarms,
        **({} if kept is None else {"kept_step": kept}),
        "last_step": dict(last),
    }


def training_prompts(context: Context, tools: TextTools) -> tuple[list[Prompt], int]:
    """The prompts that are sampled from, and how many were too long."""
    prompts, _, too_long = tools.prompts(context.task.prompts("train"), room=context.config.ppo.max_response_tokens)
    return prompts, too_long


def make_driver(
    context: Context, roles: Roles, tools: TextTools, prompts: Sequence[Prompt], schedule: Schedule | None = None
) -> Driver:
    """The loop over ``roles``, as the configuration wants it; with another ``schedule`` where one is given."""
    config = context.config
    return Driver(
        roles=roles,
        prompts=SampledPrompts(prompts, config.ppo.prompts_per_step, config.seed),
        config=config.ppo,
        settings=SamplingSettings(
            temperature=config.ppo.temperature,
            max_tokens=config.ppo.max_response_tokens,
            stop_token_ids=() if config.ppo.ignore_eos else tools.stop_token_ids,
        ),
        seed=config.seed,
        max_failed_fraction=config.rewards.max_failed_fraction,
        warn=warned,
        schedule=schedule,
    )


def ppo_spec(context: Context) -> PpoSpec:
    """What the trainer is built from."""
    sft, reward_path = str(policy_path(context)), next(iter(own_reward_models(context)), "")
    model, ppo = context.config.model, context.config.ppo
    return PpoSpec(
        policy_path=str(start_path(context)),
        critic_path={"reward_model": reward_path, "sft": sft}[ppo.critic_initialise_from],
        policy_model=model,
        critic_model=model,
        training=context.config.training,
        ppo=ppo,
        reference_path=sft,
    )


async def _start(context: Context, scope: Scope, tools: TextTools, prompts: Sequence[Prompt]) -> Roles:
    """Start the five roles together; each loads while the others do."""
    spec = ppo_spec(context)
    if context.config.ppo.save_rollouts:
        spec = replace(spec, saved_steps=str(context.directory("ppo") / ROLLOUTS))
    trainer, generator, reference, reward_model = await asyncio.gather(
        scope.ppo_trainer(spec, demonstrations=pretraining_mix(context, tools)),
        scope.generators(str(start_path(context))),
        scope.reference(str(policy_path(context))),
        start_rewards(context, scope),
    )
    weights = await scope.weight_sync(trainer, generator, probe_text(prompts, context.config.generation.max_model_len))
    alone = context.config.ppo.schedule == "colocate"
    return Roles(generator, reference, reward_model, TrainsAlone(trainer, generator) if alone else trainer, weights)


# -------------------------------------------------------------------------------------------------------------- inputs
def probe_text(prompts: Sequence[Prompt], max_model_len: int | None = None) -> list[int]:
    """A fixed text whose log-probabilities are compared after every sync: the beginnings of a few prompts.

    It leaves room for one token more in an engine of ``max_model_len`` tokens.
    """
    tokens = [int(token) for prompt in prompts[:8] for token in prompt.token_ids]
    return tokens[: PROBE_TOKENS if max_model_len is None else min(PROBE_TOKENS, max_model_len - 1)]


def pretraining_mix(context: Context, tools: TextTools) -> Callable[[int], Sequence[Sequence[SequenceWork]]]:
    """Demonstrations for PPO-ptx: what each minibatch of a step mixes in. Nothing where ``ppo.ptx_coef`` is 0.

    A step's choice follows from the seed and the step alone, so that a resumed run makes the same.
    """
    config = context.config
    if config.ppo.ptx_coef == 0:
        return lambda step: ()
    sequences, _ = tools.demonstrations(demonstrations(context, "train"))

    def batch(step: int, minibatch: int) -> list[TokenSequence]:
        chosen = np.random.default_rng([config.seed, step, minibatch]).choice(
            len(sequences), size=min(config.ppo.ptx_batch_size, len(sequences)), replace=False
        )
        return [sequences[i] for i in chosen]

    def mix(step: int) -> Sequence[Sequence[SequenceWork]]:
        return [plan_sequences(batch(step, m), **ranks_of(config)) for m in range(config.ppo.num_minibatches)]

    return mix
