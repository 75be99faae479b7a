"""The record of benchmarks/weight_sync.py, from made-up seconds; its plain copy, and which back ends it leaves out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import weight_sync
from benchmarks.weight_sync import Case, Sync

RECORD: Mapping[str, Any] = {
    "command": "python x",
    "note": "",
    "machine": {"cores": 2, "memory_gib": 8, "processor": "p", "gpu": "none"},
    "versions": "v 1",
}
PARTS = {"begin": 0.1, "offer": 0.3, "receive": 0.4, "finish": 0.1}
CASE = Case(
    "tiny",
    "shared_memory",
    "float32",
    10_000_000,
    (Sync(1.0, 0.5, PARTS), Sync(1.2, 0.4, {**PARTS, "offer": 0.5}), Sync(2.0, 0.8, PARTS)),
)


def test_a_row_has_medians_and_the_ratio_pair_by_pair() -> None:
    rows = [line for line in weight_sync.table(RECORD, [CASE]).splitlines() if line.startswith("| tiny")]
    assert rows == [
        "| tiny, float32 | shared_memory | 10 | 1.200 | 0.500 | 2.50 (2.00 to 3.00) | 8 "
        "| 0.100 | 0.300 | 0.000 | 0.400 | 0.100 | 0.000 |"
    ]


def test_the_plain_copy_brings_the_bytes_to_another_process_and_leaves_nothing(tmp_path: Path) -> None:
    with weight_sync.copy_through_memory(100_000) as copy:
        assert [copy() > 0 for _ in range(2)] == [True, True]


def test_back_ends_for_gpus_are_left_out_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for gpus, missing in ((0, ["", "2", "1"]), (1, ["it is", "2", ""]), (2, ["it is", "", ""])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        reasons = [weight_sync.missing(backend) for backend in weight_sync.BACKENDS]
        assert all(bool(reason) == bool(part) and part in reason for reason, part in zip(reasons, missing, strict=True))


def test_the_command_of_a_record() -> None:
    given = argparse.Namespace(
        pairs=3, shapes=["tiny"], backends=list(weight_sync.BACKENDS), dtype="bfloat16", bucket_mb=16, smoke=True
    )
    words = "--pairs 3 --shapes tiny --dtype bfloat16 --bucket-mb 16 --smoke"
    assert weight_sync.command_line(given) == f"python benchmarks/weight_sync.py {words}"


def test_the_settings_of_a_back_end_share_the_gpu_where_it_needs_that() -> None:
    given = argparse.Namespace(dtype="float32", bucket_mb=None)
    ipc = weight_sync.settings("ipc", given, Path("runs"))
    assert (ipc.training.gpus_per_rank, ipc.generation.gpus_per_engine, ipc.weight_sync.bucket_mb) == (0.5, 0.5, 64)
    assert weight_sync.settings("nccl", given, Path("runs")).training.gpus_per_rank == 1.0


def test_it_draws_its_cases(tmp_path: Path) -> None:
    weight_sync.plot([CASE], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
