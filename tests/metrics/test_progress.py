from __future__ import annotations

import io

import pytest

from rlhf_ray.metrics.progress import PlainProgress, format_duration, format_rate, progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_plain(num_units: int, seconds_per_unit: float) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    lines = PlainProgress("generate", num_units, "prompts", stream, clock)
    for _ in range(num_units):
        clock.now += seconds_per_unit
        lines.advance()
    lines.end("done")
    return stream.getvalue().splitlines()


def test_quick_work_prints_its_start_and_its_end_only() -> None:
    assert run_plain(100, 0.05) == ["generate  100 prompts", "generate  done  100 prompts  in 0:05  20.0 prompts/s"]


def test_a_line_appears_for_each_tenth_when_tenths_take_longer_than_ten_seconds() -> None:
    lines = run_plain(100, 2.0)  # a tenth is 20 s
    assert len(lines) == 1 + 9 + 1
    assert lines[1] == "generate  10/100 prompts (10%)  2 s per prompt  3:00 left"
    assert lines[-1] == "generate  done  100 prompts  in 3:20  2 s per prompt"


def test_lines_are_never_nearer_than_ten_seconds() -> None:
    assert len(run_plain(100, 0.5)) == 1 + 4 + 1  # 50 s: lines at 10, 20, 30 and 40


def test_slow_work_prints_a_line_a_minute_so_that_it_is_seen_to_go_on() -> None:
    assert len(run_plain(100, 60.0)) == 1 + 99 + 1


def test_a_note_stands_at_the_end_of_a_line() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainProgress("ppo", 10, "steps", stream, clock)
    lines.note("kl 2.1")
    clock.now += 20
    lines.advance(5)
    assert stream.getvalue().splitlines()[1] == "ppo  5/10 steps (50%)  4 s per step  0:20 left  kl 2.1"


def test_a_file_gets_no_control_characters_and_hears_of_a_failure() -> None:
    stream = io.StringIO()

    def fail_after_three() -> None:
        with progress("score", 4, "responses", stream) as report:
            report.advance(3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_three()
    lines = stream.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[-1].startswith("score  stopped  3/4 responses")


@pytest.mark.parametrize("unit", ["step", "steps"])
def test_a_unit_may_be_given_in_the_singular(unit: str) -> None:
    stream = io.StringIO()
    with progress("sft", 200, unit, stream):
        pass
    assert stream.getvalue().splitlines()[0] == "sft  200 steps"


def test_work_of_unknown_size_counts_without_a_share() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = PlainProgress("wait", 0, "nodes", stream, clock)
    clock.now += 30
    lines.advance(60)
    assert stream.getvalue().splitlines() == ["wait", "wait  60 nodes  2.0 nodes/s"]


def test_a_terminal_gets_a_bar_with_count_rate_and_note() -> None:
    stream = Terminal()
    with progress("generate", 4, "prompts", stream) as report:
        report.note("kl [2.1]")
        report.advance(4)
    assert "4/4 prompts" in stream.getvalue()
    assert "kl [2.1]" in stream.getvalue()
    assert "prompts/s" in stream.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(7.2, "0:07"), (59.7, "1:00"), (760, "12:40"), (11109, "3:05:09")])
def test_durations_are_written_like_a_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_rate_below_one_a_second_is_written_as_seconds_for_each() -> None:
    assert format_rate(1, 41.0, "steps") == "41 s per step"
    assert format_rate(320, 100.0, "prompts") == "3.2 prompts/s"
    assert format_rate(123456, 10.0, "tokens") == "12,346 tokens/s"
    assert format_rate(0, 10.0, "tokens") == ""
