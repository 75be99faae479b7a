"""The command ``plan`` with stated rates."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from launch.cli import app


def plan(*words: str) -> str:
    outcome = CliRunner().invoke(app, ["plan", *words])
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_it_names_the_roles_the_bottleneck_and_the_wire() -> None:
    said = plan("configs/qwen3_8b_8gpu.yaml", "--gpus", "8", "--gpu", "h100")
    for word in ("8.19B parameters", "trainer rank", "KV cache", "recommended", "weight sync:", "bottleneck:"):
        assert word in said


def test_json_holds_the_same_numbers_as_bytes_and_seconds() -> None:
    made = json.loads(plan("configs/qwen3_8b_8gpu.yaml", "--json", "--response-tokens", "300"))
    assert made["workload"]["response_tokens"] == 300
    seconds = made["configured"]["seconds"]
    phases = ("generate", "score", "old_logprobs", "update", "sync")
    assert abs(seconds["in_turn"] - sum(seconds[name] for name in phases)) < 1e-9
    assert made["configured"]["memory_bytes"]["generator"]["KV cache"] > 0
    assert made["wire_seconds"] < seconds["sync"]


def test_a_runs_seconds_stand_beside_the_plans(tmp_path: Path) -> None:
    row = {"time/step": 10.0, "time/generate": 4.0, "time/update": 5.0, "time/sync": 1.0, "ppo/response_length": 500.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    made = json.loads(plan("configs/qwen3_8b_8gpu.yaml", "--observed", str(tmp_path), "--json"))
    assert made["workload"]["response_tokens"] == 500  # as long as the run's
    assert made["observed"]["step"]["observed"] == 10.0
    assert "Predicted and observed" in plan("configs/qwen3_8b_8gpu.yaml", "--observed", str(tmp_path))


def test_an_unknown_gpu_and_uneven_nodes_are_refused() -> None:
    for words, said in ((["--gpu", "gtx"], "--gpu"), (["--gpus", "8", "--nodes", "3"], "--nodes")):
        outcome = CliRunner().invoke(app, ["plan", "configs/qwen3_8b_8gpu.yaml", *words])
        assert outcome.exit_code == 2
        assert said in outcome.output
