"""The queue: overlap, leases, known answers mixed in, orders that are shuffled and stay."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

from rlhf_ray.config.labelling import AssignmentConfig
from rlhf_ray.labelling.assignment import (
    Lease,
    Progress,
    Question,
    Standing,
    is_gold_turn,
    next_item,
    progress,
    shown_order,
    wanted,
)

RULES = AssignmentConfig(overlap_every=3, overlap=2, gold_every=0)
ITEMS = [Question(f"i{number}") for number in range(5)]
NOTHING = Standing({}, {})


def answered(**by_item: str) -> Standing:
    """``i0="ann bob"``: both have answered it, and are not asked again."""
    said = {item_id: frozenset(names.split()) for item_id, names in by_item.items()}
    return Standing(said, said)


def given(standing: Standing, leases: list[Lease], annotator: str, now: float = 0.0) -> str | None:
    return next_item(ITEMS, standing, leases, annotator=annotator, rules=RULES, now=now)


def test_every_third_item_is_wanted_from_two_and_known_answers_are_not_counted_among_the_items() -> None:
    questions = [Question("g", is_gold=True), *ITEMS]
    assert wanted(questions, RULES) == {"i0": 2, "i1": 1, "i2": 1, "i3": 2, "i4": 1}
    assert set(wanted(questions, AssignmentConfig(overlap_every=0, overlap=2)).values()) == {1}


def test_an_item_in_hand_is_given_to_nobody_else_until_its_lease_runs_out() -> None:
    leases = [Lease("ann", "i0", 0.0, 100.0), Lease("bob", "i0", 0.0, 100.0)]
    assert given(NOTHING, leases, "eve") == "i1"  # i0 is wanted from two, and two have it
    assert given(NOTHING, leases, "eve", now=100.0) == "i0"


def test_whoever_has_an_item_in_hand_gets_it_again_and_also_late_if_nobody_else_has_taken_it() -> None:
    lease = Lease("ann", "i1", 0.0, 100.0)
    assert given(NOTHING, [lease], "ann") == "i1"
    assert given(NOTHING, [lease], "ann", now=500.0) == "i1"
    assert given(NOTHING, [lease, Lease("bob", "i1", 200.0, 600.0)], "ann", now=500.0) == "i0"
    assert given(answered(i1="bob"), [lease], "ann") == "i0"


def test_overlapping_items_go_to_different_people_and_stop_when_enough_have_answered() -> None:
    assert given(answered(i0="ann"), [], "ann") == "i1"
    assert given(answered(i0="ann"), [], "bob") == "i0"
    assert given(answered(i0="ann bob"), [], "eve") == "i1"
    everything = answered(i0="ann bob", i1="ann", i2="ann", i3="ann bob", i4="bob")
    assert given(everything, [], "eve") is None


def test_a_skipped_item_goes_to_somebody_else() -> None:
    skipped = Standing(answered={}, closed={"i0": frozenset({"ann"})})
    assert given(skipped, [], "ann") == "i1"
    assert given(skipped, [], "bob") == "i0"


def test_three_people_who_take_turns_answer_each_item_as_often_as_it_is_wanted_and_never_hold_one_twice() -> None:
    said: dict[str, set[str]] = {}
    leases: dict[str, Lease] = {}
    for turn in range(60):
        name = ("ann", "bob", "eve")[turn % 3]
        standing = Standing(*({key: frozenset(names) for key, names in said.items()} for _ in range(2)))
        if name in leases:
            said.setdefault(leases.pop(name).item_id, set()).add(name)
            continue
        item_id = given(standing, list(leases.values()), name)
        if item_id is not None:
            leases[name] = Lease(name, item_id, 0.0, 1.0)
            held = Counter(lease.item_id for lease in leases.values())
            assert held[item_id] + len(said.get(item_id, ())) <= wanted(ITEMS, RULES)[item_id]
    assert {item_id: len(names) for item_id, names in said.items()} == wanted(ITEMS, RULES)


def test_one_question_of_each_four_has_a_known_answer_at_a_place_that_differs() -> None:
    turns = [[is_gold_turn("ann", 4 * block + place, 4) for place in range(4)] for block in range(50)]
    assert all(sum(block) == 1 for block in turns)
    assert {block.index(True) for block in turns} == {0, 1, 2, 3}
    assert turns != [[is_gold_turn("bob", 4 * block + place, 4) for place in range(4)] for block in range(50)]
    assert not any(is_gold_turn("ann", done, 0) for done in range(50))


def test_known_answers_are_asked_of_everybody_once_and_never_alone_at_the_end() -> None:
    rules = AssignmentConfig(overlap_every=0, gold_every=2)
    questions = [Question("g0", is_gold=True), *ITEMS, Question("g1", is_gold=True), Question("g2", is_gold=True)]
    closed: dict[str, frozenset[str]] = {}
    order = []
    while (
        item_id := next_item(questions, Standing({}, closed), [], annotator="ann", rules=rules, now=0.0)
    ) is not None:
        order.append(item_id)
        closed[item_id] = frozenset({"ann"})
    assert len(order) == len(set(order))
    assert [each for each in order if each.startswith("i")] == ["i0", "i1", "i2", "i3", "i4"]
    assert {"g0", "g1", "g2"} == {each for each in order if each.startswith("g")}
    assert order[-1] == "i4"
    only = next_item(questions[:1], NOTHING, [], annotator="ann", rules=rules, now=0.0)
    assert only == "g0"  # a store of nothing but known answers is an exam


def test_progress_counts_what_is_done_and_what_is_left_for_this_person() -> None:
    standing, leases = answered(i0="ann", i1="bob"), [Lease("bob", "i2", 0.0, 9.0)]
    assert progress(ITEMS, standing, leases, annotator="ann", rules=RULES, now=0.0) == Progress(1, 2)
    assert progress(ITEMS, standing, leases, annotator="bob", rules=RULES, now=0.0) == Progress(1, 4)


def test_the_order_is_the_same_again_differs_between_people_and_has_no_favourite() -> None:
    assert shown_order("i0", "ann", 3) == shown_order("i0", "ann", 3)
    assert any(shown_order(f"i{n}", "ann", 3) != shown_order(f"i{n}", "bob", 3) for n in range(5))
    counts = Counter(shown_order(f"i{n}", "ann", 3) for n in range(1200))
    assert set(counts) == set(permutations(range(3)))
    assert all(140 < count < 260 for count in counts.values())  # 200 expected, standard deviation 13
