"""The arithmetic and the page of benchmarks/throughput.py; its runs are those of roofline.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.record_runs import record_of
from benchmarks.throughput import ARMS, Run, command_line, idle, parsed, plot, ratios, table
from rlhf_ray.config.load import load_config

CHECKOUT = Path(__file__).resolve().parent.parent


def run(arm: str, number: int, step: float) -> Run:
    phases = {"generate": 1.0, "score": 0.5, "update": 2.0, "sync": 0.1, "step": step}
    return Run(arm, number, phases, {"generator": {"waiting for trainer": 1.25}, "trainer": {}})


RUNS = [run("sync", 0, 4.0), run("one_step_off", 0, 3.0), run("sync", 1, 8.0), run("one_step_off", 1, 4.0)]


def test_a_ratio_is_taken_within_its_round() -> None:
    assert ratios(RUNS, "one_step_off") == [0.75, 0.5]
    assert ratios(RUNS, "sync") == [1.0, 1.0]


def test_idle_is_what_the_ledger_says_of_the_role_that_waits() -> None:
    assert idle(RUNS[0], "generators idle") == 1.25
    assert idle(RUNS[0], "trainer idle") == 0.0


def test_the_page_has_a_line_for_each_arm(tmp_path: Path) -> None:
    work = {"prompts": 128, "prompt_tokens": 16, "response_tokens": 64, "dtype": "float32"}
    record = record_of("throughput", "python benchmarks/throughput.py", "", work=work) | {
        "machine": {"cores": 2, "processor": "p", "memory_gib": 8, "gpu": "none"}
    }
    page = table(record, RUNS, tokens=8192)
    assert "| one_step_off | 1170 | 0.62 (0.50 to 0.75) | 1.00 | 0.50 | 2.00 | 0.10 | 3.50 | 1.25 | 0.00 |" in page
    plot(RUNS, 8192, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_configuration_that_loads(arm: str) -> None:
    load_config(CHECKOUT / "configs" / "quickstart.yaml", [throughput.CORRECTED, *ARMS[arm]])


def test_the_command_names_what_differs_from_the_defaults() -> None:
    assert command_line(parsed([])) == "python benchmarks/throughput.py --shape tiny --rounds 3 --steps 5"
    given = parsed(["--shape", "m30", "--dtype", "bfloat16", "--arms", "sync", "one_step_off"])
    assert command_line(given).endswith("--shape m30 --rounds 3 --steps 5 --dtype bfloat16 --arms sync one_step_off")
