"""The whole chain with the real parts, small: Ray actors, vLLM, DeepSpeed, report; killed once and resumed."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import SHARED_MEMORY, wait_until_nothing_is_left
from tests.small import SMALL

CHECKOUT = Path(__file__).resolve().parent.parent
FINISHED_WITHIN_S = 400


def start(output_dir: Path, log: Path, *overrides: str) -> subprocess.Popen[bytes]:
    settings = [f"output_dir={output_dir}", *SMALL, "ppo.save_rollouts=true", *overrides]
    return command(log, "pipeline", "configs/quickstart.yaml", *settings)


def command(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        started = [sys.executable, "-m", "launch.cli", *arguments]
        return subprocess.Popen(started, cwd=CHECKOUT, stdout=out, stderr=subprocess.STDOUT)


def wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + FINISHED_WITHIN_S
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def artefact(output_dir: Path, stage: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((output_dir / stage / "artefact.json").read_text())
    return content


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(2 * FINISHED_WITHIN_S)
def test_a_killed_pipeline_resumes_at_the_stage_it_was_killed_in_and_ends_with_a_report(tmp_path: Path) -> None:
    run, first, second, third = (tmp_path / name for name in ("run", "first.log", "second.log", "third.log"))
    in_shared_memory = set(SHARED_MEMORY.iterdir())
    killed = start(run, first)
    wait_for(run / "sft" / "artefact.json", killed, first)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    sft_before = artefact(run, "sft")

    resumed = start(run, second)
    assert resumed.wait(FINISHED_WITHIN_S) == 0, second.read_text()
    said = second.read_text()
    assert "Model and tokenizer: done before and unchanged" in said
    assert "Supervised fine-tuning: done before and unchanged" in said
    assert artefact(run, "sft") == sft_before
    assert artefact(run, "ppo")["parents"] == {
        name: artefact(run, name)["key"] for name in ("model", "sft", "reward_model")
    }
    assert_report_is_whole(run)

    again = start(run, third)
    assert again.wait(FINISHED_WITHIN_S) == 0, third.read_text()
    assert third.read_text().count("done before and unchanged") == 6

    replayed = tmp_path / "replay.log"
    assert command(replayed, "replay", str(run)).wait(FINISHED_WITHIN_S) == 0, replayed.read_text()
    assert "The replay of 2 steps agrees bit for bit in" in replayed.read_text()
    other = command(replayed, "replay", str(run), "training.zero_stage=3", "training.num_ranks=2")
    assert other.wait(FINISHED_WITHIN_S) == 1, replayed.read_text()
    assert "other setting: training.num_ranks: 1 -> 2" in replayed.read_text()
    assert_within_rounding(replayed.read_text())
    assert wait_until_nothing_is_left(in_shared_memory) == set()


def assert_within_rounding(table: str) -> None:
    """Another split of the work changes the order of sums and nothing else."""
    found = {name: float(value) for name, value in re.findall(r"(ppo/\w+) +│ (\S+)", table)}
    assert len(found) > 30
    assert found["ppo/score_mean"] == 0.0
    assert all(found[name] < 1e-3 for name in ("ppo/kl_per_token", "ppo/policy_loss", "ppo/entropy", "ppo/value_loss"))


def assert_report_is_whole(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert 0.0 <= summary["gold"]["sft"]["mean"] <= 1.0
    assert 0.0 <= summary["gold"]["ppo"]["mean"] <= 1.0
    assert abs(summary["score"]["ppo"]["mean"]) < 100
    assert 0.0 <= summary["reward_model"]["accuracy"] <= 1.0
    assert 0.0 <= summary["reward_model"]["length_rule_accuracy"] <= 1.0
    assert set(summary["seconds"]) == {"model", "sft", "comparison", "reward_model", "ppo", "evaluation"}
    assert summary["peak_memory_bytes"] > 2**30
    assert summary["seed"] == 0
    steps = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [0, 1, 2]
    before, *steps = steps
    assert before["gold/heldout_kl_per_response"] == pytest.approx(0.0, abs=1e-4)  # the SFT model against itself
    graded = [json.loads(line) for line in (run / "evaluation" / "sft.jsonl").read_text().splitlines()[:10]]
    assert before["gold/heldout_mean"] == pytest.approx(sum(row["grades"]["gold"] for row in graded) / 10)
    assert before["gold/heldout_score"] == pytest.approx(sum(row["score"] for row in graded) / 10, abs=1e-5)
    assert all(row["ppo/logprob_difference"] < 1e-3 for row in steps)
    # Before its first update the policy is the reference.
    assert steps[0]["ppo/kl_per_token"] == pytest.approx(0.0, abs=1e-5)
    assert all("gold/heldout_mean" in row for row in steps)
    assert (run / "report" / "report.html").stat().st_size > 50_000
    assert_ledger_balances(run, summary["ledger"], steps)


def assert_ledger_balances(run: Path, ledger: dict[str, Any], steps: list[dict[str, float]]) -> None:
    """By its own sums, and against the driver's clock of each phase, which knows nothing of it."""
    assert ledger["balances"]
    assert ledger["difference"] < 0.02
    assert set(ledger["by_role"]) == {"driver", "generator", "reference", "reward_model", "trainer"}
    assert sum(ledger["accounts"].values()) == pytest.approx(ledger["worker_seconds"], rel=0.02)
    ppo = ledger["by_stage"]["ppo"]
    learning = ppo["policy update"] + ppo["critic update"] + ppo["old-logprob and value forwards"]
    updating, generating = (sum(row[name] for row in steps) for name in ("time/update", "time/generate"))
    assert 0.6 * updating < learning < updating
    assert 0.3 * generating < ppo["useful generation"] < 2 * generating  # two engines
    assert ppo["waiting for rollouts"] > 0.5 * generating  # the trainer alone
    assert "discarded generation" not in ppo
    tokens = sum(row["ppo/sampled_tokens"] for row in steps)
    seconds = sum(row["time/step"] for row in steps)
    assert ledger["throughput"]["sampled_tokens_per_second"] == pytest.approx(tokens / seconds, rel=0.05)
    assert (run / "ledger_trace.json").stat().st_size > 10_000


ONLINE = (
    "methods=[dpo]",
    "dpo.batch_size=8",
    "dpo.online.num_steps=4",
    "dpo.online.every=2",
    "reward_model.ensemble=2",
    "rewards.uncertainty_penalty=0.5",
)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(2 * FINISHED_WITHIN_S)
def test_online_dpo_trains_on_answers_of_the_weights_that_it_synced_and_follows_an_ensemble(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    settings = [f"output_dir={run}", *SMALL, *ONLINE]
    assert command(log, "pipeline", "configs/quickstart.yaml", *settings).wait(2 * FINISHED_WITHIN_S) == 0, (
        log.read_text()
    )
    steps = [json.loads(line) for line in (run / "dpo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["dpo/policy_version"] for row in steps] == [1, 1, 2, 2]
    assert steps[0]["dpo/loss"] == pytest.approx(math.log(2), abs=1e-4)  # before its first step it is its reference
    for row in steps:
        members = [row["reward/reward_model.member_1"], row["reward/reward_model.member_2"]]
        spread = row["reward/reward_model.std"]
        assert spread > 0
        assert row["reward/reward_model"] == pytest.approx(sum(members) / 2 - 0.5 * spread, abs=1e-5)
    first = [json.loads(line) for line in (run / "dpo" / "round_1.jsonl").read_text().splitlines()]
    assert len(first) == 16
    summary = json.loads((run / "summary.json").read_text())["reward_model"]
    names = [row["name"] for row in summary["accuracy_rows"]]
    assert "members disagree: most quarter" in names
    assert len(summary["edits"]) == 5
    assert 0 <= summary["calibration_error"] <= 1
    page = (run / "report" / "report.html").read_text()
    assert "What the reward model rewards" in page
    assert "Reward model: std" in page
