"""What a stage's result depends on: which settings, and what lies in the files that settings name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import xxhash

from rlhf_ray.config.alarms import CHANGES_TRAINING
from rlhf_ray.config.rewards import RewardsConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.data.chat import TEMPLATES
from rlhf_ray.data.sources import STORE

# How fast and how often something is done, where it is shown, when a run stops itself: no result depends on it.
# Nor does it on the split of the work over ranks and ZeRO, but for rounding (benchmarks/results/equivalence.md): a run
# may go on with another.
WITHOUT_EFFECT = (
    "training.num_ranks",
    "training.zero_stage",
    "training.offload_optimizer",
    "training.cpus_per_rank",
    "training.gpus_per_rank",
    "training.threads_per_rank",
    "training.timeout_s",
    "ppo.checkpoint_every",
    "dpo.online.checkpoint_every",
    "ppo.contracts.max_logprob_difference",
    "ppo.contracts.on_bad_numbers",
    "rewards.max_failed_fraction",
    "judge.store",
    "judge.budget",
    "judge.batch_size",
    "judge.num_parallel",
    "judge.timeout_s",
    "judge.max_retries",
    "judge.key_env",
    "evaluation.num_shown",
    "iteration.num_rounds",
    "iteration.poll_s",
)
SOURCES_WITHOUT_EFFECT = ("timeout_s", "max_retries", "num_workers", "token_env")  # of every source of rewards
# Settings that name files of people's own: what counts is what lies in them.
PATHS = (
    "model.path",
    "model.chat_template",
    "sft.demonstrations",
    "reward_model.initialise_from",
    "reward_model.step_labels",
    "reward_model.ood_preferences",
    "judge.path",
    "judge.template",
    "judge.constitution",
)
NO_PATHS = (None, "", "sft", "base", "tokenizer", *TEMPLATES)
WHOLLY_READ_BYTES = 2**24
NOT_THERE = "not there"


def stage_settings(config: RunConfig, sections: Sequence[str]) -> dict[str, Any]:
    """The seed and the settings in ``sections`` (``ppo``, ``ppo.max_response_tokens``) that a result depends on."""
    tree = asdict(config)
    settings: dict[str, Any] = {"seed": config.seed}
    for section in sections:
        if section == "alarms":
            settings |= _acting_alarms(config)
            continue
        value = _at(tree, section)
        for path in _inside(section, WITHOUT_EFFECT):
            _drop(value, path)
        settings[section] = value
        for path in _inside(section, PATHS):
            named = _at(value, path)
            if named not in NO_PATHS and (contents := fingerprint(named.removeprefix(STORE))):
                settings[f"contents of {section}.{path}"] = contents
        if section == "rewards":
            for source in value["sources"].values():
                for name in SOURCES_WITHOUT_EFFECT:
                    del source[name]
            settings |= _reward_contents(config.rewards)
    return settings


def _acting_alarms(config: RunConfig) -> dict[str, Any]:
    """The alarms that change how a run trains; those that only warn, save or wait change no result."""
    rules = config.alarms.acting(*CHANGES_TRAINING)
    settings = asdict(config.alarms) | {"rules": {name: asdict(rule) for name, rule in rules.items()}}
    del settings["num_samples"], settings["pause_poll_s"]
    return {"alarms": settings} if rules else {}


def _reward_contents(rewards: RewardsConfig) -> dict[str, str]:
    """What lies in the checkpoints and modules that sources of rewards name; what those modules import is not read."""
    contents = {}
    for name, source in rewards.sources.items():
        file = source.path if source.kind == "model" else _module_file(source.function.partition(":")[0])
        if file and (content := fingerprint(file)):
            contents[f"contents of rewards.sources.{name}"] = content
    return contents


def _module_file(module: str) -> str:
    """Where a module lies; empty for none, and for one that cannot be found: the door says so."""
    try:
        found = find_spec(module) if module else None
    except (ImportError, ValueError):
        return ""
    return found.origin or "" if found else ""


def fingerprint(path: str) -> str:
    """Hash of a file or directory; empty where ``path`` is neither, as the name of a model on the hub.

    Files up to 16 MiB count by what is in them, larger ones (weights) by size and time of change.
    """
    root = Path(path)
    if not root.exists():
        return ""
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    digest = xxhash.xxh3_128()
    for file in files:
        state = file.stat()
        small = state.st_size <= WHOLLY_READ_BYTES
        digest.update(f"{file.relative_to(root)}\0{state.st_size}\0{0 if small else state.st_mtime_ns}\0".encode())
        if small:
            digest.update(file.read_bytes())
    return str(digest.hexdigest())


@dataclass(frozen=True)
class Change:
    """One setting before and after; ``not there`` where it is missing."""

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.after}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What differs, by the settings' names."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [
        Change(name, old.get(name, NOT_THERE), new.get(name, NOT_THERE))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs, one line a setting: ``ppo.kl.coef: 0.05 -> 0.1``."""
    return [str(change) for change in differences(before, after)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _inside(section: str, paths: Sequence[str]) -> list[str]:
    """Those of ``paths`` that lie in ``section``, from there on."""
    return [path.removeprefix(f"{section}.") for path in paths if path.startswith(f"{section}.")]


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree


def _drop(tree: dict[str, Any], path: str) -> None:
    *parents, name = path.split(".")
    del (_at(tree, ".".join(parents)) if parents else tree)[name]
