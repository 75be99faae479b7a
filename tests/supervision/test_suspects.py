"""Which batch kills servers: the one at the head of a dead server's queue, and no other."""

from __future__ import annotations

from rlhf_ray.errors import RlhfError
from rlhf_ray.supervision.suspects import Suspects, poison


def test_the_batch_that_a_server_worked_on_is_suspected_and_those_behind_it_are_not() -> None:
    suspects = Suspects(max_deaths=2)
    suspects.given("a", "first")
    suspects.given("a", "second")
    suspects.died("a")
    assert (suspects.deaths("first"), suspects.deaths("second")) == (1, 0)


def test_a_server_that_dies_idle_blames_nobody() -> None:
    suspects = Suspects(max_deaths=1)
    suspects.given("a", "batch")
    suspects.answered("a", "batch")
    suspects.died("a")
    assert not suspects.is_poison("batch")


def test_a_batch_is_poison_when_as_many_servers_as_allowed_have_died_with_it() -> None:
    suspects = Suspects(max_deaths=2)
    for server in ("a", "b"):
        assert not suspects.is_poison("batch")
        suspects.given(server, "batch")
        suspects.died(server)
    assert suspects.is_poison("batch")


def test_an_answer_clears_a_batch_of_suspicion() -> None:
    suspects = Suspects(max_deaths=1)
    suspects.given("a", "batch")
    suspects.died("a")
    suspects.given("b", "batch")
    suspects.answered("b", "batch")
    assert suspects.deaths("batch") == 0


def test_nobody_waits_for_a_batch_of_a_dead_server_any_more() -> None:
    suspects = Suspects(max_deaths=3)
    suspects.given("a", "batch")
    suspects.died("a")
    suspects.answered("a", "batch")
    suspects.died("a")
    assert suspects.deaths("batch") == 0


def test_poison_names_the_rollouts_and_the_setting() -> None:
    error = poison("reward source a", "score", 3, [f"7/p{n}/0" for n in range(7)], RlhfError("it died"))
    assert "3 times in a row a reward source a died while it worked at 'score' of the same 7 rollouts" in str(error)
    assert "7/p0/0, 7/p1/0, 7/p2/0, 7/p3/0, 7/p4/0 and 2 more" in str(error)
    assert "faults.max_deaths_per_batch" in str(error)
