"""Peak memory: what this process and its children hold, shared pages counted once."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from rlhf_ray.metrics.memory import PeakMemory

MEGABYTE = 2**20


def test_the_peak_outlives_what_caused_it() -> None:
    with PeakMemory(interval_s=0.005) as memory:
        before = memory.sample()
        block = bytearray(b"x" * (64 * MEGABYTE))
        threading.Event().wait(0.2)
        del block
    assert memory.peak_bytes > before + 56 * MEGABYTE


def test_a_child_counts_and_pages_that_it_shares_count_once() -> None:
    memory = PeakMemory()
    before = memory.sample()
    code = f"x = b'x' * {192 * MEGABYTE}; print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        held = memory.sample() - before
        child.communicate(b"\n")
    # Shared pages weigh less in every process as more processes map them, those of other tests too.
    assert 150 * MEGABYTE < held < 260 * MEGABYTE


def test_one_sample_is_taken_however_short_the_block() -> None:
    with PeakMemory(interval_s=60) as memory:
        pass
    assert memory.peak_bytes > MEGABYTE


def test_an_error_in_the_block_ends_the_watch_and_comes_through() -> None:
    with pytest.raises(KeyError), PeakMemory(interval_s=60):
        raise KeyError("work")
    assert all(thread.name != "peak-memory" for thread in threading.enumerate())
