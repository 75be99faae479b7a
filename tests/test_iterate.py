"""Two rounds with the real parts, small: the second starts from the first one's policy and knows its labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import SHARED_MEMORY, wait_until_nothing_is_left
from tests.small import SMALL

CHECKOUT = Path(__file__).resolve().parent.parent
FINISHED_WITHIN_S = 600
SETTINGS = (
    "iteration.num_rounds=2",
    "iteration.prompts_per_round=16",
    "iteration.heldout_prompts_per_round=6",
    "iteration.pool=2",
    "ppo.num_steps=1",
    "ppo.eval_every=0",
    "ppo.checkpoint_every=0",
    "generation.num_engines=1",
)


def artefact(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "artefact.json").read_text())
    return content


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(FINISHED_WITHIN_S)
def test_two_rounds_run_and_the_second_goes_on_from_the_first(tmp_path: Path) -> None:
    run, in_shared_memory = tmp_path / "run", set(SHARED_MEMORY.iterdir())
    command = [sys.executable, "-m", "launch.cli", "iterate", "configs/iterate.yaml", f"output_dir={run}"]
    done = subprocess.run([*command, *SMALL, *SETTINGS], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (artefact(run / f"round_{number}" / "ppo") for number in (1, 2))
    assert second["parents"]["start"] == first["key"]
    labels = [artefact(run / f"round_{number}" / "comparison")["results"] for number in (1, 2)]
    assert labels[1]["train_rankings"] == labels[0]["train_rankings"] + labels[1]["new_train_rankings"]
    # The second round's policy is not the reference: it starts as far from it as the first one ended.
    steps = [json.loads(line) for line in (run / "round_2" / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert abs(steps[0]["ppo/kl_per_token"]) > 1e-5
    summary = json.loads((run / "rounds.json").read_text())
    assert list(summary["models"]) == ["sft", "round_1", "round_2"]
    assert set(summary["wins"]["round_2"]) == {"sft", "round_1"}
    assert (run / "rounds.png").is_file()

    again = subprocess.run([*command, *SMALL, *SETTINGS], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("done before and unchanged") == 2 + 2 * 4
    assert wait_until_nothing_is_left(in_shared_memory) == set()
