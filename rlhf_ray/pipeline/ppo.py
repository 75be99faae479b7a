"""Stage ``ppo``: the SFT model learns to please the reward model without leaving the reference too far behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.checkpoint import Checkpoints
from rlhf_ray.data.collate import TokenSequence
from rlhf_ray.data.sampler import ResumableSampler
from rlhf_ray.driver import Driver, Roles
from rlhf_ray.errors import ConfigError
from rlhf_ray.metrics.progress import ProgressReport, progress
from rlhf_ray.metrics.sinks import MetricLog, open_metric_log
from rlhf_ray.pipeline.context import Context, Scope, quiet, ranks_of
from rlhf_ray.pipeline.sft import policy_path
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Prompt, SamplingSettings
from rlhf_ray.roles import PpoTrainer
from rlhf_ray.stages.ppo import PpoSpec
from rlhf_ray.stages.work import SequenceWork, plan_sequences

PROBE_TOKENS = 48


class SampledPrompts:
    """Batches of training prompts, epoch after epoch."""

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

    def next_batch(self) -> list[Prompt]:
        chosen = [self._prompts[i] for i in self._sampler.next_batch()]
        return [Prompt(p.prompt_id, p.token_ids, order=order, kind=p.kind) for order, p in enumerate(chosen)]

    def state(self) -> Mapping[str, object]:
        return self._sampler.state()

    def restore(self, state: Mapping[str, object]) -> None:
        self._sampler = ResumableSampler.from_state(
            {name: int(str(value)) for name, value in state.items()},
            num_items=len(self._prompts),
            batch_size=self._batch_size,
        )


async def train_ppo(context: Context) -> dict[str, Any]:
    """Write ``ppo/policy``, a Hugging Face checkpoint with its tokenizer. Resumes at the last complete checkpoint."""
    config, tools = context.config, TextTools.of(context)
    room = config.ppo.max_response_tokens
    prompts, _, too_long = tools.prompts(context.task.prompts("train"), room=room)
    source = SampledPrompts(prompts, config.ppo.prompts_per_step, config.seed)
    policy = context.directory("ppo") / "policy"
    async with context.fleet.scope() as scope:
        roles = await _start(context, scope, tools, prompts)
        settings = SamplingSettings(
            temperature=config.ppo.temperature, max_tokens=room, stop_token_ids=tools.stop_token_ids
        )
        driver = Driver(roles=roles, prompts=source, config=config.ppo, settings=settings, seed=config.seed)
        last = await _train(context, driver, roles.trainer)
        await roles.trainer.save(str(policy))
    tools.tokenizer.save_pretrained(policy)
    return {"policy": str(policy), "prompts": len(prompts), "too_long": too_long, "last_step": dict(last)}


async def _start(context: Context, scope: Scope, tools: TextTools, prompts: Sequence[Prompt]) -> Roles:
    """Start the five roles together; each loads while the others do."""
    sft, reward_path = str(policy_path(context)), str(context.results("reward_model")["model"])
    model, ppo = context.config.model, context.config.ppo
    critic = {"reward_model": reward_path, "sft": sft}[ppo.critic_initialise_from]
    spec = PpoSpec(
        policy_path=sft,
        critic_path=critic,
        policy_model=model,
        critic_model=model,
        training=context.config.training,
        ppo=ppo,
    )
    trainer, generator, reference, reward_model = await asyncio.gather(
        scope.ppo_trainer(spec, demonstrations=pretraining_mix(context, tools)),
        scope.generators(sft),
        scope.reference(sft),
        scope.reward_model(reward_path, model),
    )
    weights = await scope.weight_sync(trainer, generator, probe_text(prompts))
    return Roles(generator, reference, reward_model, trainer, weights)


async def _train(context: Context, driver: Driver, trainer: PpoTrainer) -> Mapping[str, float]:
    config, directory = context.config, context.directory("ppo")
    checkpoints = Checkpoints(directory / "state")
    resumed = await _resume(driver, trainer, checkpoints)
    with ExitStack() as stack:
        log = stack.enter_context(
            open_metric_log(directory, quiet(config.logging), run_name="ppo", resumed_step=resumed)
        )
        bar = stack.enter_context(progress("PPO", config.ppo.num_steps, "step"))
        bar.advance(driver.steps_done)
        last: dict[str, float] = {}

        async def after_step(step: int, metrics: Mapping[str, float]) -> None:
            last.clear()
            last.update(metrics)
            await _after_step(step, last, driver, trainer, checkpoints, log, bar)

        await driver.run(after_step)
    return last


async def _resume(driver: Driver, trainer: PpoTrainer, checkpoints: Checkpoints) -> int | None:
    saved, warnings = checkpoints.latest()
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    if saved is None:
        return None
    print(f"PPO resumes after step {saved.step} from {saved.directory}", flush=True)
    driver.restore(saved.driver)
    await trainer.load_state(str(saved.directory), "trainer")
    return saved.step


async def _after_step(
    step: int,
    metrics: dict[str, float],
    driver: Driver,
    trainer: PpoTrainer,
    checkpoints: Checkpoints,
    log: MetricLog,
    bar: ProgressReport,
) -> None:
    every = driver.config.checkpoint_every
    if every and step % every == 0 and step < driver.config.num_steps:
        begun = time.perf_counter()

        async def write(directory: Path) -> None:
            await trainer.save_state(str(directory), "trainer")

        await checkpoints.save(step, driver.state(), write)
        metrics["time/save"] = time.perf_counter() - begun
    log.log(step, metrics)
    bar.advance()
    bar.note(
        f"score {metrics['ppo/score_mean']:.2f}, KL {metrics['ppo/kl_per_response']:.2f}, "
        f"length {metrics['ppo/response_length']:.1f}"
    )


# -------------------------------------------------------------------------------------------------------------- inputs
def probe_text(prompts: Sequence[Prompt]) -> list[int]:
    """A fixed text whose log-probabilities are compared after every sync: the beginnings of a few prompts."""
    tokens = [int(token) for prompt in prompts[:8] for token in prompt.token_ids]
    return tokens[:PROBE_TOKENS]


def pretraining_mix(context: Context, tools: TextTools) -> Callable[[int], Sequence[Sequence[SequenceWork]]]:
    """Demonstrations for PPO-ptx: what each minibatch of a step mixes in. Nothing where ``ppo.ptx_coef`` is 0.

    A step's choice follows from the seed and the step alone, so that a resumed run makes the same.
    """
    config = context.config
    if config.ppo.ptx_coef == 0:
        return lambda step: ()
    sequences, _ = tools.demonstrations(context.task.demonstrations("train"))

    def batch(step: int, minibatch: int) -> list[TokenSequence]:
        chosen = np.random.default_rng([config.seed, step, minibatch]).choice(
            len(sequences), size=min(config.ppo.ptx_batch_size, len(sequences)), replace=False
        )
        return [sequences[i] for i in chosen]

    def mix(step: int) -> Sequence[Sequence[SequenceWork]]:
        return [plan_sequences(batch(step, m), **ranks_of(config)) for m in range(config.ppo.num_minibatches)]

    return mix
