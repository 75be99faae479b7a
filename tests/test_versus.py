"""What both sides of the comparison with TRL are told, and what the record says of their seconds. TRL is not needed."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import versus, versus_ours
from benchmarks.shapes import SHAPES
from benchmarks.versus import Pair
from benchmarks.versus_ours import Case, GivenPrompts

CASE = Case("grpo", "tiny", "bfloat16", rollouts=128, steps=8, threads=2)
ENVIRONMENTS = argparse.Namespace(environments=Path("environments"))


@pytest.mark.parametrize("algorithm", ["ppo", "rloo", "grpo"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_step_of_ours_is_one_epoch_and_one_optimizer_step(algorithm: str, shape: str, tmp_path: Path) -> None:
    config = Case(algorithm, shape, "float32", rollouts=128, steps=8, threads=2).config(tmp_path)
    ppo = config.ppo
    assert (ppo.rollouts_per_step, ppo.num_epochs, ppo.num_minibatches, ppo.max_response_tokens) == (128, 1, 1, 64)
    assert ppo.has_critic == (algorithm == "ppo")
    assert ppo.responses_per_prompt == (1 if algorithm == "ppo" else 4)
    assert config.training.max_tokens_per_micro_batch == 32 * 80
    assert config.model.path == str(tmp_path / versus_ours.BASE)


def test_every_part_of_ours_has_the_type_and_the_threads(tmp_path: Path) -> None:
    config = CASE.config(tmp_path)
    assert (config.training.dtype, config.reference.dtype, config.reward_server.dtype) == ("bfloat16",) * 3
    assert config.generation.dtype == "auto"  # as the trainer
    assert (config.training.threads_per_rank, config.generation.num_engines) == (2, 2)


def test_trl_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def probe(algorithm: str, given: dict[str, Any], environments: Path, program: Path, *, threads: int) -> None:
        told.update(given, threads=threads, program=program.name)

    monkeypatch.setattr(versus, "probe", probe)
    versus.theirs(CASE, tmp_path, tmp_path / "out.jsonl", ENVIRONMENTS)
    sizes = ("rollouts", "micro-batch", "max-tokens", "epochs", "minibatches", "group-size", "steps", "threads")
    assert [told[name] for name in sizes] == [128, 32, 64, 1, 1, 4, 8, 2]
    assert (told["dtype"], told["forced-length"], told["program"]) == ("bfloat16", 1, "versus_trl_probe.py")


def test_who_runs_first_changes_and_the_warm_up_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(side: str, seconds: float) -> Any:
        def write(case: Case, store: Path, out: Path, *_: Any) -> None:
            order.append(side)
            lines = [{"seconds": 100.0 if step < 3 else seconds} for step in range(case.steps)]
            out.write_text("".join(json.dumps(line) + "\n" for line in lines))

        return write

    monkeypatch.setattr(versus, "ours", run("ours", 2.0))
    monkeypatch.setattr(versus, "theirs", run("trl", 3.0))
    given = argparse.Namespace(warm_up=3)
    pairs = [versus.pair(CASE, tmp_path, number, given) for number in range(2)]
    assert order == ["ours", "trl", "trl", "ours"]
    assert [pair.ratio for pair in pairs] == [1.5, 1.5]
    assert len(pairs[0].ours) == CASE.steps - 3


def test_a_run_that_stopped_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text('{"seconds": 1.0}\n')
    with pytest.raises(ValueError, match="1 steps, not 8"):
        versus.read_seconds(tmp_path / "out.jsonl", 8)


def test_prompts_come_again_in_the_same_order() -> None:
    prompts = GivenPrompts([[1], [2], [3]])
    assert [prompt.token_ids.tolist() for prompt in prompts.next_prompts(2)] == [[1], [2]]
    assert [(p.prompt_id, p.order) for p in prompts.next_prompts(2)] == [("p2", 0), ("p0", 1)]


class Letters:
    """A tokenizer for which a token is two letters; a text that begins with b is cut otherwise the second time."""

    def __call__(self, *, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        first = 1 if text.startswith("b") else 0
        pairs = [text[at : at + 2] for at in range(first, len(text), 2)]
        return {"input_ids": [ord(pair[0]) * 256 + ord(pair[-1]) for pair in pairs]}

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(pair // 256) + chr(pair % 256) for pair in ids)


def test_prompts_are_pieces_that_their_own_text_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versus_ours, "NUM_PROMPTS", 2)
    text = "ac" * 16 + "bc" * 16 + "ac" * 16 + "dc" * 16 + "ac"  # a second time; cut otherwise; again; another
    found = versus_ours.fragments(Letters(), text)
    assert [Letters().decode(ids)[:2] for ids in found] == ["ac", "dc"]
    with pytest.raises(ValueError, match="the text gives 1 prompts, not 2"):
        versus_ours.fragments(Letters(), "ac" * 40)


def test_the_table_has_the_median_ratio_with_its_range_and_samples_a_second(tmp_path: Path) -> None:
    pairs = [Pair("ppo", (2.0, 2.0), (3.0, 3.0)), Pair("ppo", (2.0,), (4.0,)), Pair("ppo", (2.0,), (2.0,))]
    machine = {"cores": 2, "memory_gib": 8, "processor": "p", "gpu": "none"}
    record: dict[str, Any] = {"command": "c", "note": "", "machine": machine, "versions": "v", "shape": "tiny"}
    record |= {"dtype": "float32", "rollouts": 128, "warm_up": 3, "steps": 8, "threads": 2, "trl": {"ppo": "1.12.0"}}
    record["pairs"] = [asdict(pair) for pair in pairs]
    (row,) = [line for line in versus.table(record).splitlines() if line.startswith("| PPO")]
    assert row == "| PPO with critic | 1.12.0 | 2.00 | 3.00 | 64.0 | 42.7 | 1.50 | 1.00 to 2.00 |"
    versus.plot(pairs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
