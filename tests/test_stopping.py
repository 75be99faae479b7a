"""How long a run that is told to stop still has."""

from __future__ import annotations

from rlhf_ray.stopping import Stop


def test_a_run_that_is_told_to_stop_has_its_grace_period() -> None:
    now = [100.0]
    stop = Stop(grace_s=30.0, clock=lambda: now[0])
    heard: list[str] = []
    assert not stop.heard
    unlisten = stop.listen(lambda: heard.append("asked"))
    assert stop.heard
    assert (stop.asked, stop.remaining_s) == (False, 30.0)
    stop.ask()
    now[0] = 110.0
    assert (stop.asked, stop.remaining_s, heard) == (True, 20.0, ["asked"])
    now[0] = 200.0
    assert stop.remaining_s == 0.0
    unlisten()
    assert not stop.heard


def test_asked_again_it_has_no_time_left_and_nobody_is_called_twice() -> None:
    stop, heard = Stop(grace_s=30.0, clock=lambda: 5.0), []  # type: tuple[Stop, list[int]]
    stop.listen(lambda: heard.append(1))
    stop.ask()
    stop.ask()
    assert (stop.remaining_s, heard) == (0.0, [1])
