"""Routing: least load first, nothing lost, nothing delivered twice, whatever dies."""

from __future__ import annotations

import random

import pytest

from rlhf_ray.supervision.routing import Assignment, Router, RoutingError


def router_of(*members: str, capacity: int = 100, max_deaths: int = 3) -> Router:
    router = Router(capacity=capacity, max_deaths=max_deaths)
    for member in members:
        router.join(member)
    return router


def assigned(router: Router) -> list[Assignment]:
    made = []
    while (assignment := router.assign()) is not None:
        made.append(assignment)
    return made


def test_shards_go_to_who_has_least_and_ties_to_who_came_first() -> None:
    router = router_of("b", "a")
    for size in (4, 4, 2, 2, 4):
        router.submit(size)
    assert [(a.ticket, a.member) for a in assigned(router)] == [(0, "b"), (1, "a"), (2, "b"), (3, "a"), (4, "b")]


def test_no_member_has_more_than_its_capacity_but_an_idle_one_takes_any_shard() -> None:
    router = router_of("a", "b", capacity=10)
    for _ in range(10):
        router.submit(4)
    assert len(assigned(router)) == 4
    assert (router.load("a"), router.load("b"), router.num_waiting) == (8, 8, 6)
    alone = router_of("a", capacity=10)
    alone.submit(50)
    assert len(assigned(alone)) == 1


def test_what_a_dead_member_had_goes_to_others_before_all_that_came_later() -> None:
    router = router_of("a", "b", capacity=2)
    tickets = [router.submit(1) for _ in range(6)]
    first = assigned(router)
    had = sorted(a.ticket for a in first if a.member == "a")
    assert router.leave("a", died=True).requeued == tuple(had)
    for assignment in first:
        if assignment.member == "b":
            assert router.finish(assignment)
    again = assigned(router)
    assert [a.ticket for a in again] == had
    assert {(a.member, a.attempt) for a in again} == {("b", 2)}
    assert router.num_waiting == len(tickets) - 4


def test_an_answer_from_before_the_death_is_refused_and_the_shard_delivered_once() -> None:
    router = router_of("a", "b")
    router.submit(1)
    early = router.assign()
    assert early is not None
    router.leave("a", died=True)
    again = router.assign()
    assert again == Assignment(early.ticket, "b", 2)
    assert not router.finish(early)
    assert router.finish(again)
    assert not router.finish(again)


def test_a_draining_member_gets_nothing_new_and_hands_back_what_it_has_without_blame() -> None:
    router = router_of("a", "b", max_deaths=1)
    for _ in range(4):
        router.submit(1)
    running = assigned(router)
    router.drain("a")
    router.submit(1)
    assert [a.member for a in assigned(router)] == ["b"]
    assert not router.is_drained("a")
    mine = [a for a in running if a.member == "a"]
    assert router.finish(mine[0])
    assert router.leave("a", died=False).requeued == (mine[1].ticket,)
    assert [a.member for a in assigned(router)] == ["b"]


def test_a_shard_that_kills_whoever_takes_it_is_given_to_nobody_any_more() -> None:
    router = router_of("a", "b", "c", max_deaths=2)
    poison = router.submit(1)
    for victim in ("a", "b"):
        assignment = router.assign()
        assert assignment is not None
        assert assignment.member == victim
        returned = router.leave(victim, died=True)
    assert (returned.requeued, returned.poisoned) == ((), (poison,))
    assert router.assign() is None


def test_a_cancelled_shard_frees_its_member_and_is_never_delivered() -> None:
    router = router_of("a", capacity=1)
    running, waiting = router.submit(1), router.submit(1)
    assignment = router.assign()
    assert assignment is not None
    router.cancel(running)
    router.cancel(waiting)
    assert not router.finish(assignment)
    assert (router.load("a"), router.num_waiting, router.assign()) == (0, 0, None)


def test_without_members_everything_waits_for_one_to_come() -> None:
    router = router_of()
    router.submit(3)
    assert router.assign() is None
    router.join("late")
    assert router.assign() == Assignment(0, "late", 1)


def test_members_are_known_from_joining_to_leaving() -> None:
    router = router_of("a", "b")
    router.leave("a", died=True)
    assert ("a" in router, "b" in router, router.num_members) == (False, True, 1)


def test_an_unknown_member_is_an_error() -> None:
    with pytest.raises(RoutingError, match="no member"):
        router_of("a").leave("b", died=True)


@pytest.mark.parametrize("seed", range(20))
def test_under_random_deaths_and_arrivals_every_shard_is_delivered_exactly_once(seed: int) -> None:
    chance = random.Random(seed)
    router = router_of("m0", capacity=8, max_deaths=10**9)
    names, wanted, delivered, running = 1, set(), [], []
    for _ in range(3000):
        match chance.randrange(6):
            case 0 if len(wanted) < 300:
                wanted.add(router.submit(chance.randrange(1, 10)))
            case 1 if chance.random() < 0.2:
                router.join(f"m{names}")
                names += 1
            case 2 if router.members and chance.random() < 0.2:
                router.leave(chance.choice(router.members), died=chance.random() < 0.5)
            case 3 if router.members and chance.random() < 0.1:
                router.drain(chance.choice(router.members))
            case _ if running:
                assignment = running.pop(chance.randrange(len(running)))
                delivered += [assignment.ticket] if router.finish(assignment) else []
        running += assigned(router)
    router.join("last")
    while running := [*running, *assigned(router)]:
        assignment = running.pop()
        delivered += [assignment.ticket] if router.finish(assignment) else []
    assert sorted(delivered) == sorted(wanted)


def test_the_books_of_a_large_fleet_stay_small() -> None:
    router = router_of(*(f"m{i}" for i in range(1000)), capacity=4)
    for _ in range(20_000):
        router.submit(1)
        assignment = router.assign()
        assert assignment is not None
        router.finish(assignment)
    assert len(router._by_load) <= 4 * 1000 + 64
    assert not router._shards
