"""Silence: who is judged, and who is forgiven."""

from __future__ import annotations

from rlhf_ray.supervision.heartbeats import Heartbeats


def judged_every_second(beats: Heartbeats, start: int, end: int) -> dict[str, float]:
    """The last verdict of a judge who was there all the time."""
    silent: dict[str, float] = {}
    for now in range(start, end + 1):
        silent = beats.silent(float(now))
    return silent


def test_one_that_falls_silent_is_named_with_the_seconds() -> None:
    beats = Heartbeats(timeout_s=10.0)
    beats.heard("a", 0.0)
    beats.heard("b", 0.0)
    assert judged_every_second(beats, 0, 10) == {}
    beats.heard("b", 10.5)
    assert beats.silent(11.0) == {"a": 11.0}


def test_one_that_was_never_heard_is_not_judged() -> None:
    assert judged_every_second(Heartbeats(timeout_s=1.0), 0, 100) == {}


def test_one_that_is_gone_is_not_judged() -> None:
    beats = Heartbeats(timeout_s=1.0)
    beats.heard("a", 0.0)
    beats.forget("a")
    assert judged_every_second(beats, 0, 9) == {}


def test_a_judge_who_was_away_forgives_everybody_once() -> None:
    beats = Heartbeats(timeout_s=10.0)
    beats.heard("a", 0.0)
    assert beats.silent(1.0) == {}
    assert beats.silent(100.0) == {}
    assert judged_every_second(beats, 101, 110) == {}
    assert judged_every_second(beats, 111, 111) == {"a": 11.0}
