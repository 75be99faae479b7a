"""The states of members and the changes between them."""

from __future__ import annotations

import itertools

import pytest

from rlhf_ray.supervision.health import _NEXT, STATES, Health, State, StateError
from tests.supervision.clock import ManualClock


def test_a_member_serves_after_it_has_caught_up_and_says_which_version() -> None:
    health = Health(ManualClock())
    health.joins("a")
    health.becomes("a", "catching_up")
    with pytest.raises(StateError, match="which version"):
        health.becomes("a", "serving")
    assert health.becomes("a", "serving", version=7).version == 7


def test_a_member_cannot_serve_out_of_a_sync_without_the_version_it_confirmed() -> None:
    health = Health(ManualClock())
    health.joins("a", state="serving", version=3)
    health.becomes("a", "syncing")
    with pytest.raises(StateError, match="which version"):
        health.becomes("a", "serving")
    assert health.becomes("a", "serving", version=4).version == 4


def test_the_first_failed_call_tells_of_a_death_and_the_others_are_no_news() -> None:
    health = Health(ManualClock())
    health.joins("a", state="serving", version=1)
    assert health.dies("a", "its process is gone")
    assert not health.dies("a", "a second call failed")
    assert health["a"].reason == "its process is gone"


@pytest.mark.parametrize(("before", "after"), list(itertools.product(STATES, STATES)))
def test_only_the_changes_of_the_diagram_are_possible(before: State, after: State) -> None:
    health = Health(ManualClock())
    health.joins("a", state=before, version=1)
    if after in _NEXT[before]:
        assert health.becomes("a", after, version=2).state == after
        assert (health.count(before), health.count(after)) == (0, 1)
    else:
        with pytest.raises(StateError):
            health.becomes("a", after, version=2)
        assert health.count(before) == 1


def test_dead_members_never_come_back_and_can_be_forgotten() -> None:
    health = Health(ManualClock())
    health.joins("a")
    with pytest.raises(StateError, match="only one that is gone"):
        health.forget("a")
    health.dies("a", "killed")
    health.forget("a")
    assert "a" not in health
    assert health.count(*STATES) == 0


def test_members_are_listed_by_state_in_the_order_in_which_they_joined() -> None:
    clock = ManualClock()
    health = Health(clock)
    for name in ("c", "a", "b"):
        health.joins(name, state="serving", version=0)
    health.becomes("a", "draining")
    assert [m.name for m in health.within("serving")] == ["c", "b"]
    clock.advance(2.5)
    assert health.seconds_in_state("a") == 2.5


def test_a_name_is_used_once() -> None:
    health = Health(ManualClock())
    health.joins("a")
    with pytest.raises(StateError, match="used once"):
        health.joins("a")
