from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.metrics.registry import UnknownMetricError
from rlhf_ray.metrics.sinks import (
    ConsoleSink,
    JsonlSink,
    MetricLog,
    format_number,
    open_metric_log,
    read_metrics,
)

JSONL_ONLY = LoggingConfig(console=False)


def log_steps(directory: Path, steps: range, resumed_step: int | None = None) -> None:
    with open_metric_log(directory, JSONL_ONLY, run_name="ppo", resumed_step=resumed_step) as log:
        for step in steps:
            log.log(step, {"ppo/score_mean": step / 10})


def test_rows_are_readable_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    with open_metric_log(tmp_path, JSONL_ONLY, run_name="sft") as log:
        log.log(0, {"sft/loss": 2.5})
        assert [(row.step, row.metrics) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(0, {"sft/loss": 2.5})]


def test_an_unregistered_metric_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with open_metric_log(tmp_path, JSONL_ONLY, run_name="sft") as log, pytest.raises(UnknownMetricError):
        log.log(0, {"sft/loss": 2.5, "sft/los": 2.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == ()


def test_a_resumed_run_forgets_the_steps_beyond_its_checkpoint(tmp_path: Path) -> None:
    log_steps(tmp_path, range(1, 6))
    log_steps(tmp_path, range(4, 7), resumed_step=3)
    assert [row.step for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_fresh_run_starts_its_file_over(tmp_path: Path) -> None:
    log_steps(tmp_path, range(1, 6))
    log_steps(tmp_path, range(1, 3))
    assert [row.step for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_torn_last_line_is_passed_over_and_dropped_on_resume(tmp_path: Path) -> None:
    log_steps(tmp_path, range(1, 3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "logg')
    assert len(read_metrics(path)) == 2
    log_steps(tmp_path, range(3, 4), resumed_step=2)
    assert [row.step for row in read_metrics(path)] == [1, 2, 3]


def test_a_broken_line_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "logged_at": 0}\n[1]\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 is not a row"):
        read_metrics(path)


def test_numbers_that_json_lacks_survive_the_file(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.write(1, {"sft/loss": math.nan, "sft/grad_norm": math.inf, "sft/heldout_loss": -math.inf})
    sink.close()
    json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)  # standard JSON only
    (row,) = read_metrics(tmp_path / "m.jsonl")
    assert math.isnan(row.metrics["sft/loss"])
    assert row.metrics["sft/grad_norm"] == math.inf
    assert row.metrics["sft/heldout_loss"] == -math.inf


def test_the_console_line_holds_the_labelled_metrics_and_no_control_characters() -> None:
    stream = io.StringIO()
    sink = ConsoleSink("ppo", num_steps=200, stream=stream)
    sink.write(7, {"ppo/score_mean": 0.41234, "ppo/score_std": 1.0, "ppo/kl_per_response": 3.1, "time/step": 12.0})
    assert stream.getvalue() == "ppo step   7/200  score 0.4123  kl 3.100  s 12.00\n"
    assert stream.getvalue().strip("\n").isprintable()


def test_the_console_line_without_labelled_metrics_names_them_all() -> None:
    assert ConsoleSink("ppo").line(3, {"ppo/kl_coef": 0.05}) == "ppo step     3  ppo/kl_coef 0.05000"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.41234, "0.4123"), (-12.3456, "-12.35"), (123456.0, "123,456"), (1e-5, "1e-05"), (math.nan, "nan")],
)
def test_numbers_are_written_with_four_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_tensorboard_receives_every_scalar(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = LoggingConfig(console=False, jsonl=False, tensorboard=True)
    with open_metric_log(tmp_path, config, run_name="sft") as log:
        log.log(1, {"sft/loss": 2.5})
        log.log(2, {"sft/loss": 1.5})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("sft/loss")] == [(1, 2.5), (2, 1.5)]


WANDB_PROGRAM = """
import sys
from pathlib import Path
from rlhf_ray.config.logging import LoggingConfig
from rlhf_ray.metrics.sinks import open_metric_log
config = LoggingConfig(console=False, jsonl=False, wandb="offline")
with open_metric_log(Path(sys.argv[1]), config, run_name="sft") as log:
    log.log(1, {"sft/loss": 2.5})
"""


def test_wandb_offline_writes_into_the_runs_directory_and_prints_nothing(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    # In a process of its own: wandb starts a service and hooks, which should not outlive the test.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", WANDB_PROGRAM, str(tmp_path / "run")],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert done.stdout == ""


def test_importing_the_sinks_imports_no_vendor_library() -> None:
    program = "import rlhf_ray.metrics.sinks, sys; print({'torch', 'wandb', 'tensorboard', 'ray'} & set(sys.modules))"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_log_creates_its_directory(tmp_path: Path) -> None:
    MetricLog(tmp_path / "a" / "b", []).log(1, {"sft/loss": 1.0})
    assert (tmp_path / "a" / "b").is_dir()


def test_wandb_needs_a_project_and_a_known_mode() -> None:
    with pytest.raises(ConfigError, match=r"logging\.wandb_project"):
        LoggingConfig(wandb="offline", wandb_project="")
    merged = OmegaConf.merge(OmegaConf.structured(LoggingConfig), {"wandb": "offline"})
    assert OmegaConf.to_object(merged) == LoggingConfig(wandb="offline")
