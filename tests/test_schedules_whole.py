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
LONG_QUEUE = (  # four batches from the start, and room for a half: weights change while responses are under way
    "ppo.schedule=async",
    "ppo.max_staleness=3",
    "ppo.num_steps=4",
    "ppo.rollouts_per_step=64",
    "ppo.max_response_tokens=96",
    "ppo.ignore_eos=true",
    "generation.num_engines=1",
    "generation.max_num_seqs=32",
)
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
    runs = {name: tmp_path / name for name in ("sync", "async_0", "async_3")}
    expected = ppo_run(runs["sync"])
    for name in ("async_0", "async_3"):
        for stage in BEFORE_PPO:
            shutil.copytree(runs["sync"] / stage, runs[name] / stage)
    assert ppo_run(runs["async_0"], "ppo.schedule=async", "ppo.max_staleness=0") == expected

    ahead = ppo_run(runs["async_3"], *LONG_QUEUE)
    assert [row["ppo/staleness"] for row in ahead[1:]] == [0.0, 1.0, 2.0, 3.0]
    changed = 0
    for step in range(1, 5):
        saved = SavedStep(step_directory(runs["async_3"] / "ppo" / ROLLOUTS, step))
        rollouts = [rollout for shard in saved.shards() for rollout in shard.rollouts]
        assert min(r.policy_versions.min() for r in rollouts) == step - ahead[step]["ppo/staleness"]
        assert max(r.policy_versions.max() for r in rollouts) <= step
        changed += sum(len(np.unique(r.policy_versions)) > 1 for r in rollouts)
        assert ahead[step].get("ppo/logprob_difference", 0.0) < 1e-3  # of the tokens of the newest weights
    assert changed > 0, "no response saw its weights change"
