"""The command ``doctor`` on small data: what it gathers, its table, its JSON and its status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch import doctor_facts
from launch.cli import app
from launch.doctor_facts import (
    can_listen,
    conflicts,
    hub_sources,
    installed,
    look_at_content,
    look_at_machine,
    unplaceable,
)
from rlhf_ray.config.load import load_config
from rlhf_ray.doctor.facts import NodeFacts
from rlhf_ray.doctor.findings import Severity

WORDS = "what is the colour of the sky over the old harbour in the north when morning comes"


def config_of(tmp_path: Path, prompts: list[str], *more: str) -> list[str]:
    """Overrides: the quickstart on preferences and demonstrations of these prompts."""
    pairs, shown = tmp_path / "pairs.jsonl", tmp_path / "demonstrations.jsonl"
    answers = {"chosen": "it is blue", "rejected": "it is a cat"}
    pairs.write_text("".join(json.dumps({"prompt": prompt, **answers}) + "\n" for prompt in prompts))
    shown.write_text("".join(json.dumps({"prompt": prompt, "response": "it is blue"}) + "\n" for prompt in prompts))
    return [
        "data={task: files, files: {preferences: " + str(pairs) + ", demonstrations: " + str(shown) + "}}",
        "model.scratch.vocab_size=400",
        f"output_dir={tmp_path / 'run'}",
        "ppo.rollouts_per_step=8",
        *more,
    ]


def doctor(*overrides: str) -> tuple[int, list[dict[str, str]]]:
    outcome = CliRunner().invoke(app, ["doctor", "configs/quickstart.yaml", *overrides, "--json"])
    return outcome.exit_code, json.loads(outcome.output)


def test_a_setting_that_is_not_allowed_is_a_finding_with_its_fix() -> None:
    status, findings = doctor("ppo.num_minibatches=7")
    assert status == 1
    assert findings == [
        {
            "severity": "error",
            "field": "ppo.num_minibatches",
            "found": "7 must divide ppo.rollouts_per_step (128)",
            "fix": "try 8 or 4",
        }
    ]


def test_a_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    overrides = config_of(tmp_path, [WORDS])
    (tmp_path / "pairs.jsonl").unlink()
    status, findings = doctor(*overrides)
    assert status == 1
    assert "pairs.jsonl" in findings[0]["found"]
    assert findings[0]["severity"] == "error"


def test_a_bundle_that_fits_no_node_is_told_by_stage() -> None:
    config = load_config("configs/quickstart.yaml", ["training.num_ranks=4", "training.cpus_per_rank=8"])
    found = unplaceable(config, "cpu", (NodeFacts("a", 16, 0),))
    assert "training.num_ranks" in found["ppo"]
    assert "sft" in found
    assert "evaluation" not in found
    assert unplaceable(config, "cpu", ()) == {}  # the cluster does not answer: said elsewhere


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    config = load_config(
        "configs/quickstart.yaml", [f"output_dir={tmp_path / 'not' / 'there'}", "cluster.address=local"]
    )
    machine = look_at_machine(config, doctor_facts.Gpus())
    assert machine.local
    assert machine.writable
    assert machine.device == "cpu"
    assert machine.placement == {}
    assert 0 < machine.memory_free <= machine.memory
    assert machine.wanted["ppo"] == (1.5, 0.0)
    gpus = look_at_machine(config, doctor_facts.Gpus(8, 80e9, "570.1"))
    assert gpus.device == "cuda"
    assert gpus.nodes[0].gpus == 8


def test_the_data_is_counted(tmp_path: Path) -> None:
    prompts = [f"{WORDS} {number}" for number in range(40)] + ["sky " * 200]
    config = load_config("configs/quickstart.yaml", config_of(tmp_path, prompts))
    content = look_at_content(config)
    counted = {each.split: each for each in content.data.prompts}
    assert counted["training"].read + counted["held-out"].read == 41
    assert counted["training"].too_long + counted["held-out"].too_long == 1
    assert content.data.leaked == 0
    assert content.text.tokenizer_size == content.text.embeddings
    assert content.text.eos_token


def test_sources_of_the_hub_are_not_read() -> None:
    config = load_config("configs/qwen3_8b_8gpu.yaml")
    assert "hub:Anthropic/hh-rlhf:train" in hub_sources(config)
    content = look_at_content(config)
    assert content.text.not_fetched
    assert content.data.prompts == ()


def test_the_installed_set_fits_together_and_another_torch_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(conflicts()) == []
    monkeypatch.setattr(doctor_facts, "installed", lambda name: "1.0" if name == "torch" else installed(name))
    assert any("needs torch" in conflict and "1.0 is installed" in conflict for conflict in conflicts())


def test_a_port_can_be_listened_on() -> None:
    assert can_listen()


def test_severities_are_in_order() -> None:
    assert Severity.OK < Severity.NOTE < Severity.WARNING < Severity.ERROR
