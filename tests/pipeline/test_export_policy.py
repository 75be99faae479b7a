"""The policy of a saved state, exported by this process alone, is what the trainer itself would have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rlhf_ray.checkpoint import Checkpoints
from rlhf_ray.config.checkpoints import CheckpointConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import LoraConfig, TrainingConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline import export_policy
from rlhf_ray.pipeline.artefacts import ArtefactStore
from tests import tiny, trainers
from tests.ranks import ranks

SHAPES: Mapping[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "two ranks, ZeRO 3": (2, {"zero_stage": 3}),
    "two ranks, bfloat16": (2, {"zero_stage": 2, "dtype": "bfloat16"}),
    "adapters": (1, {"lora": LoraConfig(rank=4, alpha=8.0, target_modules=("q_proj",))}),
}


@pytest.mark.integration
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_export_has_the_bits_of_what_the_run_saved(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world_size, training = SHAPES[shape]
    config = replace(RunConfig(), training=TrainingConfig(**training))
    start = tiny.saved(tiny.causal_model(), tmp_path / "start")
    case = trainers.EngineCase(start, config.training)
    checkpoints = Checkpoints(tmp_path / "ppo" / "state")

    async def write(directory: Path) -> None:
        ranks(world_size).run(trainers.trained_and_saved, case, str(directory / "policy"), str(tmp_path / "own"))

    await checkpoints.save(3, {"start": start}, write)
    monkeypatch.setattr(export_policy, "copy_tokenizer", lambda *_: None)  # these models have none
    store = ArtefactStore(tmp_path)
    state = export_policy.choose_state(store, config, step=None, best=False)
    export_policy.export_policy(state, config, store, tmp_path / "exported")
    own, exported = (
        load_file(tmp_path / "own" / "model.safetensors"),
        load_file(tmp_path / "exported" / "model.safetensors"),
    )
    assert own.keys() == exported.keys()
    assert all(bool((own[name] == exported[name]).all()) and own[name].dtype == exported[name].dtype for name in own)
    assert json.loads((tmp_path / "own" / "config.json").read_text()) == json.loads(
        (tmp_path / "exported" / "config.json").read_text()
    )


# ---------------------------------------------------------------------------------------------------- which state it is
async def store_with(root: Path, scores: Mapping[int, float]) -> ArtefactStore:
    checkpoints = Checkpoints(root / "ppo" / "state", keep=9)

    async def write(directory: Path) -> None:
        (directory / "weights").write_bytes(b"weights")

    for step, score in scores.items():
        await checkpoints.save(step, {}, write, {"gold/heldout_mean": score})
    return ArtefactStore(root)


BEST = replace(
    RunConfig(),
    ppo=replace(RunConfig().ppo, eval_every=1),
    checkpoints=CheckpointConfig(best_metric="gold/heldout_mean"),
)


async def test_a_state_is_chosen_by_step_as_the_best_or_as_the_last(tmp_path: Path) -> None:
    store = await store_with(tmp_path, {2: 0.5, 4: 0.9, 6: 0.7})
    assert export_policy.choose_state(store, BEST, step=None, best=False).step == 6
    assert export_policy.choose_state(store, BEST, step=None, best=True).step == 4
    assert export_policy.choose_state(store, BEST, step=2, best=False).step == 2


async def test_a_state_that_cannot_be_exported_is_told_with_those_that_can(tmp_path: Path) -> None:
    store = await store_with(tmp_path, {2: 0.5, 4: 0.9})
    with pytest.raises(ConfigError, match=r"^--step \(3\) has no saved state; choose one of 2, 4$"):
        export_policy.choose_state(store, BEST, step=3, best=False)
    with pytest.raises(ConfigError, match=r"^checkpoints\.best_metric \(''\) says nothing of what is best"):
        export_policy.choose_state(store, RunConfig(), step=None, best=True)
    (tmp_path / "ppo" / "state" / "step_00000004" / "weights").write_bytes(b"wEights")
    with pytest.raises(ConfigError, match=r"is damaged \(weights does not hold what was saved"):
        export_policy.choose_state(store, BEST, step=None, best=False)
    with pytest.raises(ConfigError, match=r"holds no saved state of PPO; set ppo\.checkpoint_every"):
        export_policy.choose_state(ArtefactStore(tmp_path / "none"), BEST, step=None, best=False)
