"""The whole chain: stages in order, each skipped when it is done and unchanged, resumed where it failed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.load import to_dict
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import Artefact, artefact_key, now
from rlhf_ray.pipeline.comparison import compare
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import check_text
from rlhf_ray.pipeline.evaluation import evaluate
from rlhf_ray.pipeline.model import make_model
from rlhf_ray.pipeline.ppo import train_ppo
from rlhf_ray.pipeline.reward_model import train_reward_model
from rlhf_ray.pipeline.sft import train_sft
from rlhf_ray.pipeline.version import code_version

RunStage = Callable[[Context], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """``sections`` of the configuration decide, with the parents and the data, whether a result may be used again."""

    name: str
    title: str
    parents: tuple[str, ...]
    sections: tuple[str, ...]
    run: RunStage


STAGES = (
    Stage("model", "Model and tokenizer", (), ("model",), make_model),
    Stage("sft", "Supervised fine-tuning", ("model",), ("sft", "training", "model.max_length"), train_sft),
    Stage("comparison", "Comparisons", ("model", "sft"), ("comparison", "ppo.max_response_tokens"), compare),
    Stage(
        "reward_model", "Reward model", ("model", "sft", "comparison"), ("reward_model", "training"), train_reward_model
    ),
    Stage("ppo", "PPO", ("model", "sft", "reward_model"), ("ppo", "training"), train_ppo),
    Stage("evaluation", "Evaluation", ("model", "sft", "reward_model", "ppo"), ("evaluation",), evaluate),
)
NAMES = tuple(stage.name for stage in STAGES)


async def run_stages(context: Context, until: str) -> None:
    """Run every stage up to and with ``until`` that is not done already."""
    data_hash = context.task.fingerprint()
    for number, stage in enumerate(STAGES, start=1):
        await _run_stage(context, stage, data_hash, f"[{number}/{len(STAGES)}] {stage.title}")
        if stage.name == "model":
            for line in check_text(context):
                print(f"      {line}", flush=True)
        if stage.name == until:
            return
    raise ConfigError("stage", until, "is not a stage", f"choose one of {', '.join(NAMES)}")


async def _run_stage(context: Context, stage: Stage, data_hash: str, title: str) -> None:
    settings = _settings(context.config, stage.sections)
    parents = {name: context.finished[name].key for name in stage.parents}
    key = artefact_key(stage=stage.name, settings=settings, data_hash=data_hash, parents=parents)
    done = context.store.find(stage.name, key)
    if done is not None:
        context.finished[stage.name] = done
        print(f"{title}: done before and unchanged{_other_code(done)}", flush=True)
        return
    print(f"{title}: {context.directory(stage.name)}", flush=True)
    earlier = context.store.begin(stage.name, key)
    begun = time.perf_counter()
    try:
        results = await stage.run(context)
    finally:
        context.store.note_seconds(stage.name, key, earlier + time.perf_counter() - begun)
    seconds = earlier + time.perf_counter() - begun
    artefact = Artefact(stage.name, key, parents, settings, data_hash, code_version(), now(), seconds, results)
    context.store.finish(artefact)
    context.finished[stage.name] = artefact
    print(f"      done in {seconds:.0f} s: {_headline(results)}", flush=True)


def _settings(config: RunConfig, sections: tuple[str, ...]) -> dict[str, Any]:
    tree = to_dict(config)
    settings: dict[str, Any] = {"seed": config.seed, "generation_dtype": config.generation.dtype}
    for section in sections:
        value: Any = tree
        for part in section.split("."):
            value = value[part]
        settings[section] = value
    return settings


def _other_code(artefact: Artefact) -> str:
    current = code_version()
    return "" if artefact.code_version == current else f" (by code {artefact.code_version}; this is {current})"


def _headline(results: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in results.items() if isinstance(value, int | float)}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items()) or "ok"
