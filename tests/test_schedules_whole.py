"""Schedules with the real parts: async without staleness is sync, and with it every token says how old it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.rollout_store import ROLLOUTS, SavedStep, step_directory
from tests.small import SMALL

CHECKOUT = Path(__file__).resolve().parent.parent
WITHIN_S = 400
BEFORE_PPO = ("model", "sft", "comparison", "reward_model")
SETTINGS = (*SMALL, "ppo.num_steps=3", "ppo.correction.level=token", "ppo.save_rollouts=true")
COMPARED = ("ppo/", "reward/", "gold/", "text/")
OF_TIME = ("ppo/sync_bytes", "ppo/saved_bytes")


def ppo_run(directory: Path, *overrides: str) -> list[Mapping[str, float]]:
    """Its metrics by step, those of time left out."""
    call = [sys.executable, "-m", "launch.cli", "pipeline", "configs/quickstart.yaml", f"output_dir={directory}"]
    done = subprocess.run(
        [*call, *SETTINGS, *overrides], cwd=CHECKOUT, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (directory / "ppo" / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if name.startswith(COMPARED) and name not in OF_TIME}
        for row in rows
    ]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(3 * WITHIN_S)
def test_async_without_staleness_is_sync_and_with_it_tokens_are_as_old_as_they_say(tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("sync", "async_0", "async_1")}
    expected = ppo_run(runs["sync"])
    for name in ("async_0", "async_1"):
        for stage in BEFORE_PPO:
            shutil.copytree(runs["sync"] / stage, runs[name] / stage)
    assert ppo_run(runs["async_0"], "ppo.schedule=async", "ppo.max_staleness=0") == expected

    ahead = ppo_run(runs["async_1"], "ppo.schedule=async", "ppo.max_staleness=1")
    assert [row["ppo/staleness"] for row in ahead[1:]] == [0.0, 1.0, 1.0]
    assert ahead[2]["ppo/score_mean"] != expected[2]["ppo/score_mean"]
    for step in (1, 2, 3):
        shards = SavedStep(step_directory(runs["async_1"] / "ppo" / ROLLOUTS, step)).shards()
        versions = np.concatenate([rollout.policy_versions for shard in shards for rollout in shard.rollouts])
        assert versions.min() == step - ahead[step]["ppo/staleness"]
        assert versions.max() <= step
