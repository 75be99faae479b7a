"""The records of benchmarks/roofline.py, from made-up seconds and a made-up ledger; and its bare parts, very small."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import made_models, roofline, shapes
from benchmarks.roofline import Pair, account_seconds, back_to_back, overlapped, parsed
from benchmarks.roofline_parts import PARTS, SCORE, TRAIN, TorchParts, Work
from rlhf_ray.config.load import load_config
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.engines.models import load_tokenizer
from rlhf_ray.ledger.accounts import Account
from tests.ledger.made_up import begins, books, ends, run, step

RECORD: Mapping[str, Any] = {
    "command": "python x",
    "note": "",
    "machine": {"cores": 2, "memory_gib": 8, "processor": "p", "gpu": "none"},
    "versions": "v 1",
    "settings": [],
    "work": {"prompts": 4, "prompt_tokens": 2, "response_tokens": 3, "dtype": "float32"},
}
BARE = {
    "generate": 4.0,
    "reference": 1.0,
    "reward_model": 1.0,
    "old_logprobs": 1.0,
    "values": 1.0,
    "policy_update": 3.0,
    "critic_update": 3.0,
    "copy": 0.5,
}
PAIR = Pair(
    bare={1: BARE, 2: {name: seconds / 2 for name, seconds in BARE.items()}},
    phases={"generate": 5.0, "score": 1.0, "update": 10.0, "sync": 1.0, "step": 29.0},
    accounts={"generator": {"useful generation": 5.0}, "trainer": {"policy update": 4.5, "waiting for rollouts": 6.0}},
)


def test_the_limits_are_the_sum_of_the_parts_and_the_longer_side_with_the_copy() -> None:
    assert set(PARTS) == set(BARE)
    assert back_to_back(BARE) == 14.5
    assert overlapped(BARE) == max(4 + 1 + 1, 1 + 1 + 3 + 3) + 0.5 == 8.5
    assert overlapped({**BARE, "generate": 9.0}) == 11.5


def test_sides_that_overlap_need_cores_of_their_own() -> None:
    assert list(PAIR.limits(2)) == ["back to back, 1 thread", "overlapped, 1 thread a side", "back to back, 2 threads"]
    assert PAIR.limits(4)["overlapped, 2 threads a side"] == 4.25
    assert "overlapped, 1 thread a side" not in PAIR.limits(1)


def test_a_ratio_is_taken_pair_by_pair_and_parts_stand_beside_what_does_their_work() -> None:
    slow = replace(PAIR, phases={**PAIR.phases, "step": 58.0})
    rows = [line for line in roofline.table(RECORD, [PAIR, PAIR, slow]).splitlines() if line.startswith("| ")]
    assert "| back to back, 1 thread | 14.50 | 2.00 (2.00 to 4.00) |" in rows
    assert "| policy update | 3.000 | 1.500 | 4.500 | 1.50 (1.50 to 1.50) |" in rows
    assert "| weight sync | 0.500 | 0.250 | 1.000 | 2.00 (2.00 to 2.00) |" in rows
    assert "| waiting for rollouts |  | 6.000 |" in rows


def test_accounts_are_of_the_steps_after_the_warm_up() -> None:
    story = run(
        begins("trainer 0", 0.0),
        books("trainer 0", 0.0, 100.0, (Account.POLICY, 5.0, 15.0), (Account.POLICY, 30.0, 36.0)),
        ends("trainer 0", 100.0),
        step(0.0, 20.0),
        step(20.0, 40.0),
        step(50.0, 60.0),
    )
    found = account_seconds(story, 1)
    assert found["trainer"]["policy update"] == pytest.approx(3.0)  # 6 s over two steps
    assert sum(found["trainer"].values()) == pytest.approx(15.0)


def test_a_response_that_ends_by_itself_spoils_the_measurement(tmp_path: Path) -> None:
    (tmp_path / "ppo").mkdir()
    rows = [
        {"step": n, "logged_at": 0.0, "time/step": float(n), "time/sync": 0.1, "ppo/finished_fraction": 0.0}
        for n in range(1, 6)
    ]
    log = tmp_path / "ppo" / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert roofline.phase_seconds(tmp_path)["step"] == 4.0  # of 3, 4 and 5
    log.write_text(json.dumps({**rows[0], "ppo/finished_fraction": 0.5}) + "\n")
    with pytest.raises(ValueError, match="ended before its limit"):
        roofline.phase_seconds(tmp_path)


def test_the_command_of_a_record_and_what_it_gives_to_our_run() -> None:
    given = parsed(["--shape", "m30", "--dtype", "bfloat16", "--schedule", "async", "--override", "seed=1"])
    assert roofline.overrides(given) == ["ppo.schedule=async", "seed=1"]
    words = "--shape m30 --pairs 5 --steps 4 --dtype bfloat16 --schedule async --override seed=1"
    assert roofline.command_line(given) == f"python benchmarks/roofline.py {words}"
    assert roofline.overrides(parsed([])) == []


def test_it_draws_its_pairs(tmp_path: Path) -> None:
    roofline.plot([PAIR], 2, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


# --------------------------------------------------------------------------------------------------------- made models
@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    directory = tmp_path_factory.mktemp("made")
    small = replace(shapes.SHAPES["tiny"], hidden_size=64, num_heads=2, num_key_value_heads=1, num_layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "small", small)
        policy = made_models.make_policy("small", directory / "policy")
    reward = made_models.make_reward_model(policy, directory / "reward_model")
    return Work(str(policy), str(reward), 4, 5, 3, micro_batch=2, dtype="float32")


def test_made_prompts_are_different_and_have_their_length_for_the_models_own_tokenizer(
    work: Work, tmp_path: Path
) -> None:
    path = made_models.write_prompts(Path(work.policy), tmp_path / "prompts.jsonl", count=20, tokens=5)
    texts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    tokenizer = load_tokenizer(work.policy, ModelConfig())
    assert len(set(texts)) == 20
    assert {len(tokenizer.encode(text, add_special_tokens=False)) for text in texts} == {5}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_bare_part_in_torch_does_its_work(work: Work, dtype: str) -> None:
    import torch

    parts = TorchParts(replace(work, dtype=dtype))
    before = parts._policy.lm_head.weight.detach().clone()
    masters = parts._steps[id(parts._policy)]._masters
    held = [master.detach().clone() for master in masters]
    for name in (*SCORE, *TRAIN, "copy"):
        getattr(parts, name)()
    assert any(not torch.equal(old, new) for old, new in zip(held, masters, strict=True))
    assert before.dtype == getattr(torch, dtype)


def test_the_configuration_of_our_run_is_one(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "roofline.yaml"
    path.write_text(yaml.safe_dump(roofline.settings(work, tmp_path / "prompts.jsonl", steps=3)))
    config = load_config(path)
    assert (config.ppo.num_steps, config.ppo.ignore_eos, config.model.max_length) == (5, True, 8)
    assert not config.trains_reward_model
