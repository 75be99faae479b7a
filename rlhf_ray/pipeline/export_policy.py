"""The policy of any saved state as a Hugging Face checkpoint: no cluster, no trainer, no process but this one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from rlhf_ray.checkpoint import Checkpoints, SavedState, read_state
from rlhf_ray.config.run import RunConfig
from rlhf_ray.directories import NotWholeError
from rlhf_ray.engines.export import WeightExport, write_pretrained
from rlhf_ray.engines.models import DTYPES, PolicyModule, load_causal
from rlhf_ray.engines.training_state import SavedEngine
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.artefacts import ArtefactStore
from rlhf_ray.pipeline.ppo_run import best_rule
from rlhf_ray.pipeline.resuming import START, TRAINER


def choose_state(store: ArtefactStore, config: RunConfig, *, step: int | None, best: bool) -> SavedState:
    """The state of ``step``, or the best, or the last; every file of it is compared with its checksum.

    Raises ConfigError where it is not there or damaged.
    """
    checkpoints = Checkpoints(store.directory("ppo") / "state", best=best_rule(config.checkpoints))
    states = checkpoints.states()
    if not states:
        raise ConfigError("RUN", str(store.root), "holds no saved state of PPO", "set ppo.checkpoint_every in a run")
    if step is not None:
        chosen = next((state for state in states if state.step == step), None)
        there = ", ".join(str(state.step) for state in reversed(states))
        if chosen is None:
            raise ConfigError("--step", step, "has no saved state", f"choose one of {there}")
    elif best:
        chosen = _best(checkpoints, states, config)
    else:
        chosen = states[0]
    try:
        return read_state(chosen.directory)
    except NotWholeError as error:
        raise ConfigError("RUN", str(chosen.directory), f"is damaged ({error})", "choose another step") from error


def _best(checkpoints: Checkpoints, states: list[SavedState], config: RunConfig) -> SavedState:
    metric = config.checkpoints.best_metric
    if checkpoints.best is None:
        raise ConfigError("checkpoints.best_metric", metric, "says nothing of what is best", "give --step or --last")
    best = checkpoints.best.of(states)
    if best is None:
        raise ConfigError("--best", metric, "was measured in none of the saved states", "give --step or --last")
    return best


def export_policy(state: SavedState, config: RunConfig, store: ArtefactStore, target: Path) -> None:
    """Write the policy of ``state`` to ``target``, as the run itself writes its last one, with its tokenizer."""
    start = _start_path(state, store, config)
    dtype = DTYPES[config.training.dtype]
    module = PolicyModule(load_causal(str(start), config.model, dtype, config.training.lora))
    trained = SavedEngine(state.directory / "policy" / TRAINER)
    named = dict(module.named_parameters())
    for name, value in trained.parameters():
        named[name].data.copy_(value)
    export = WeightExport(module.model, dtype, lambda _parameters: nullcontext())
    tensors = dict(export.tensors([meta.name for meta in export.metas]))
    write_pretrained(module.model, tensors, target, adapters=config.training.lora.enabled)
    copy_tokenizer(start, target)


def _start_path(state: SavedState, store: ArtefactStore, config: RunConfig) -> Path:
    """The model that PPO started from: its architecture, and with adapters the weights below them."""
    start = Path(str(state.driver.get(START, "")))
    if start.is_dir():
        return start
    sft = store.read("sft")
    if sft is None or (config.training.lora.enabled and start.name):
        raise ConfigError("RUN", str(start), "is gone, the model that PPO started from", "bring it back to that place")
    return Path(sft.results["policy"])


def copy_tokenizer(start: Path, target: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(start).save_pretrained(target)
