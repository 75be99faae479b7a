"""The whole chain: stages in order, each skipped when it is done and unchanged, resumed where it failed."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.pipeline.artefacts import Artefact, artefact_key, now
from rlhf_ray.pipeline.comparison import compare
from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import check_text
from rlhf_ray.pipeline.dpo import train_dpo
from rlhf_ray.pipeline.dpo_online import train_dpo_online
from rlhf_ray.pipeline.evaluation import evaluate
from rlhf_ray.pipeline.fitting import forget_fit_states
from rlhf_ray.pipeline.judging import check_judge
from rlhf_ray.pipeline.lineage import changes, stage_settings
from rlhf_ray.pipeline.model import make_model
from rlhf_ray.pipeline.ppo import train_ppo
from rlhf_ray.pipeline.raft import train_raft
from rlhf_ray.pipeline.reward_model import train_reward_model
from rlhf_ray.pipeline.sft import train_sft
from rlhf_ray.pipeline.version import code_version

RunStage = Callable[[Context], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """``sections`` of the configuration decide, with the parents and the data, whether a result may be used again.

    Where only ``length``, a setting in them, is another, the stage goes on from its last state.
    """

    name: str
    title: str
    parents: tuple[str, ...]
    sections: tuple[str, ...]
    run: RunStage
    length: str = ""


SAMPLING = ("generation.dtype", "generation.engine_args")
SCORING = ("reference.dtype", "reward_server.dtype")
STAGES = (
    Stage("model", "Model and tokenizer", (), ("model",), make_model),
    Stage("sft", "Supervised fine-tuning", ("model",), ("sft", "training"), train_sft),
    Stage(
        "comparison",
        "Comparisons",
        ("model", "sft"),
        ("comparison", "judge", "ppo.max_response_tokens", *SAMPLING),
        compare,
    ),
    Stage(
        "reward_model", "Reward model", ("model", "sft", "comparison"), ("reward_model", "training"), train_reward_model
    ),
    Stage(
        "ppo",
        "PPO",
        ("model", "sft", "reward_model"),
        ("ppo", "alarms", "rewards", "training", *SAMPLING, *SCORING),
        train_ppo,
        length="ppo.num_steps",
    ),
    Stage("dpo", "DPO", ("model", "sft", "comparison"), ("dpo", "training", "reference.dtype"), train_dpo),
    Stage(
        "raft",
        "Rejection sampling",
        ("model", "sft", "reward_model"),
        ("raft", "rewards", "training", "ppo.max_response_tokens", "reward_server.dtype", *SAMPLING),
        train_raft,
    ),
    Stage(
        "evaluation",
        "Evaluation",
        ("model", "sft", "reward_model", "ppo", "dpo", "raft"),
        ("evaluation", "rewards", *SAMPLING, *SCORING),
        evaluate,
    ),
)
ONLINE_DPO = Stage(
    "dpo",
    "Online DPO",
    ("model", "sft", "reward_model"),
    ("dpo", "rewards", "training", "ppo.max_response_tokens", *SAMPLING, *SCORING),
    train_dpo_online,
)
NAMES = tuple(stage.name for stage in STAGES)


def chain(config: RunConfig) -> tuple[Stage, ...]:
    """The run's stages: those of its methods, and a reward model only where one of them follows it."""
    needed = {"model", "sft", "evaluation", *config.methods}
    needed |= {"comparison"} if config.collects_comparisons else set()
    needed |= {"reward_model"} if config.trains_reward_model else set()
    stages = [ONLINE_DPO if stage.name == "dpo" and config.dpo_is_online else stage for stage in STAGES]
    return tuple(
        replace(stage, parents=tuple(name for name in stage.parents if name in needed))
        for stage in stages
        if stage.name in needed
    )


async def run_stages(context: Context, until: str) -> None:
    """Run every stage up to and with ``until`` that is not done already."""
    stages = _up_to(until, context.config)
    count = len(chain(context.config))
    data_hash = context.task.fingerprint()
    for number, stage in enumerate(stages, start=1):
        await run_stage(context, stage, data_hash, f"[{number}/{count}] {stage.title}")
        if stage.name == "model":
            if "comparison" in {each.name for each in stages}:
                check_judge(context)
            for line in check_text(context, {stage.name for stage in stages}):
                print(f"      {line}", flush=True)


def load_finished(context: Context, until: str) -> None:
    """Take up every stage up to and with ``until`` as it was left.

    Raises ConfigError where one is not finished, or was made with other settings or data than the context's.
    """
    data_hash = context.task.fingerprint()
    for stage in _up_to(until, context.config):
        wanted, left = _wanted(context, stage, data_hash), context.store.read(stage.name)
        if left is None or left.key != wanted.key:
            raise ConfigError(
                "output_dir",
                str(context.store.root),
                f"has no finished stage {stage.name!r}"
                + (f" of these settings ({_why(left, wanted)})" if left else ""),
                "run `rlhf-ray pipeline` with the same CONFIG and settings first",
            )
        context.finished[stage.name] = left


def take_up(context: Context, until: str) -> list[str]:
    """Take up every stage up to and with ``until`` as it was left, and say what has changed since, one line a stage.

    For a replay, which asks what a change does. Raises ConfigError where a stage before ``until`` is not finished.
    """
    changed, data_hash = [], context.task.fingerprint()
    for stage in _up_to(until, context.config):
        left = context.store.read(stage.name)
        if left is not None:
            wanted = _wanted(context, stage, data_hash)
            context.finished[stage.name] = left
            if left.key != wanted.key:
                changed.append(f"{stage.name}: {_why(left, wanted)}")
        elif stage.name != until:
            raise ConfigError(
                "RUN_DIR",
                str(context.store.root),
                f"has no finished stage {stage.name!r}",
                "give the output_dir of a run that has reached its last stage",
            )
    return changed


def _up_to(until: str, config: RunConfig) -> tuple[Stage, ...]:
    """The run's stages up to and with ``until``. Raises ConfigError where it has no such stage."""
    if until not in NAMES:
        raise ConfigError("stage", until, "is not a stage", f"choose one of {', '.join(NAMES)}")
    stages = chain(config)
    names = [stage.name for stage in stages]
    if until in ("ppo", "dpo", "raft") and until not in names:
        raise ConfigError("methods", tuple(config.methods), f"leaves {until} out", f"add {until}: methods=[{until}]")
    if until not in names:
        raise ConfigError(
            "rewards.sources",
            sorted(config.rewards.sources),
            f"and methods ({', '.join(config.methods)}) need no {until.replace('_', ' ')} of the run's own",
            "leave rewards.sources out, or add a source of kind=model without a path",
        )
    return stages[: names.index(until) + 1]


@dataclass(frozen=True)
class _Wanted:
    """A result that is asked for: what it would be made from, and the key that follows."""

    key: str
    base_key: str  # without the stage's length
    parents: Mapping[str, str]
    settings: Mapping[str, Any]
    data_hash: str


def _wanted(context: Context, stage: Stage, data_hash: str) -> _Wanted:
    settings = stage_settings(context.config, stage.sections)
    parents = {name: context.finished[name].key for name in stage.parents}
    key = artefact_key(stage=stage.name, settings=settings, data_hash=data_hash, parents=parents)
    base = {**settings}
    if stage.length:
        section, _, name = stage.length.partition(".")
        base[section] = {field: value for field, value in settings[section].items() if field != name}
    base_key = artefact_key(stage=stage.name, settings=base, data_hash=data_hash, parents=parents)
    return _Wanted(key, base_key, parents, settings, data_hash)


async def run_stage(context: Context, stage: Stage, data_hash: str, title: str) -> None:
    """Run a stage, unless its result is there and unchanged. ``data_hash`` is the task's fingerprint."""
    wanted, left = _wanted(context, stage, data_hash), context.store.read(stage.name)
    if left is not None and left.key == wanted.key:
        context.finished[stage.name] = left
        print(f"{title}: done before and unchanged{_other_code(left)}", flush=True)
        return
    print(f"{title}: {context.directory(stage.name)}", flush=True)
    if left is not None:
        does = "goes on from" if context.store.base_key(stage.name) == wanted.base_key else "replaces"
        print(f"      {does} an earlier result ({_why(left, wanted)})", flush=True)
    context.board.note(phase=stage.name, step=0)
    earlier = context.store.begin(stage.name, wanted.key, wanted.base_key)
    begun = time.perf_counter()
    context.ledger.stage(stage.name)
    try:
        with context.ledger.during(Account.EVALUATION) if stage.name == "evaluation" else nullcontext():
            results = await stage.run(context)
    finally:
        seconds = earlier + time.perf_counter() - begun
        context.store.note_seconds(stage.name, wanted.key, seconds, wanted.base_key)
    artefact = Artefact(
        stage=stage.name,
        key=wanted.key,
        parents=wanted.parents,
        settings=wanted.settings,
        data_hash=data_hash,
        code_version=code_version(),
        finished=now(),
        seconds=seconds,
        results=results,
    )
    context.store.finish(artefact)
    forget_fit_states(context.directory(stage.name))
    context.finished[stage.name] = artefact
    print(f"      done in {seconds:.0f} s: {_headline(results)}", flush=True)


def _why(left: Artefact, wanted: _Wanted) -> str:
    """What tells the result that is there from the one that is wanted."""
    reasons = changes(left.settings, json.loads(json.dumps(wanted.settings, default=str)))
    if left.data_hash != wanted.data_hash:
        reasons.append("other data")
    reasons += [f"another {name}" for name, key in wanted.parents.items() if left.parents.get(name) != key]
    return "; ".join(reasons)


def _other_code(artefact: Artefact) -> str:
    current = code_version()
    return "" if artefact.code_version == current else f" (by code {artefact.code_version}; this is {current})"


def _headline(results: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in results.items() if isinstance(value, int | float)}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items()) or "ok"
