"""docs/algorithms.md names every choice that the configuration has, and no key that it has not."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rlhf_ray.config.algorithm import (
    ContractConfig,
    CorrectionConfig,
    Estimator,
    FilterConfig,
    KlConfig,
    LossConfig,
)
from rlhf_ray.config.dpo import DpoConfig, OnlineDpoConfig, PreferenceLoss
from rlhf_ray.config.ppo import PpoRewardConfig
from rlhf_ray.config.reward_model import RewardModelConfig
from rlhf_ray.config.run import RunConfig

TEXT = (Path(__file__).parent.parent / "docs" / "algorithms.md").read_text()
IN_TABLES = re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE)
SECTIONS = {
    "ppo.loss": LossConfig,
    "ppo.kl": KlConfig,
    "ppo.correction": CorrectionConfig,
    "ppo.filter": FilterConfig,
    "ppo.contracts": ContractConfig,
    "ppo.reward": PpoRewardConfig,
    "dpo": DpoConfig,
    "dpo.online": OnlineDpoConfig,
    "reward_model": RewardModelConfig,
}


def choices(section: Any, name: str) -> tuple[str, ...]:
    return get_args(get_type_hints(section)[name])


def test_every_choice_has_a_row() -> None:
    wanted = {
        *get_args(Estimator),
        *choices(LossConfig, "surrogate"),
        *choices(LossConfig, "aggregation"),
        *choices(KlConfig, "estimator"),
        *choices(CorrectionConfig, "level"),
        *choices(CorrectionConfig, "mode"),
        *get_args(PreferenceLoss),
    }
    assert wanted == set(IN_TABLES)
    assert len(IN_TABLES) == len(set(IN_TABLES))


def test_every_setting_of_an_algorithm_is_named() -> None:
    named = {f"{path}.{field.name}" for path, section in SECTIONS.items() for field in fields(section)}
    missing = {key for key in named if key not in TEXT}
    training = ("num_epochs", "batch_size", "optimizer", "eval_every")
    of_training = {f"{section}.{name}" for section in ("dpo", "reward_model") for name in training}
    assert missing <= {"ppo.kl.horizon", "reward_model.initialise_from", *of_training}


def test_every_key_that_is_named_exists() -> None:
    keys = re.findall(r"`((?:ppo|dpo|sft|reward_model)(?:\.\w+)+)", TEXT)
    assert len(keys) > 40
    for key in keys:
        node: Any = RunConfig
        for part in key.split("."):
            hint = get_type_hints(node).get(part)
            assert hint is not None, key
            node = hint if is_dataclass(hint) else object
