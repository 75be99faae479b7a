from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.spans import Span, Stretch, common, merged, total, union, without

ACCOUNTS = st.sampled_from([Account.POLICY, Account.CRITIC])
STRETCHES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (min(pair), max(pair))))


@st.composite
def spans_in_order(draw: st.DrawFn) -> list[Span]:
    found, at = [], 0
    for account, pause, length in draw(st.lists(st.tuples(ACCOUNTS, st.integers(0, 2), st.integers(1, 5)))):
        found.append(Span(account, at + pause, at + pause + length))
        at += pause + length
    return found


def moments(stretches: list[Stretch]) -> set[int]:
    """The whole seconds that they cover: a slow and certain way to tell."""
    return {second for begun, ended in stretches for second in range(int(begun), int(ended))}


@given(spans_in_order(), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2))
def test_merging_is_associative(spans: list[Span], one: int, other: int, within: int) -> None:
    low, high = sorted((min(one, len(spans)), min(other, len(spans))))
    first, second, third = spans[:low], spans[low:high], spans[high:]
    left = merged([*merged([*first, *second], within), *third], within)
    right = merged([*first, *merged([*second, *third], within)], within)
    assert left == right == merged(spans, within)


def test_neighbours_of_one_account_become_one_and_no_others() -> None:
    spans = [
        Span(Account.POLICY, 0, 1),
        Span(Account.POLICY, 1, 2),
        Span(Account.POLICY, 3, 4),
        Span(Account.CRITIC, 4, 5),
    ]
    assert merged(spans) == [Span(Account.POLICY, 0, 2), Span(Account.POLICY, 3, 4), Span(Account.CRITIC, 4, 5)]
    assert merged(spans, 1.0) == [Span(Account.POLICY, 0, 4), Span(Account.CRITIC, 4, 5)]


@given(STRETCHES)
def test_a_union_covers_the_same_moments_each_once(stretches: list[Stretch]) -> None:
    found = union(stretches)
    assert moments(found) == moments(stretches)
    assert total(found) == len(moments(stretches))


@given(STRETCHES, STRETCHES)
def test_what_is_common_and_what_is_not_are_the_whole(one: list[Stretch], other: list[Stretch]) -> None:
    one, other = union(one), union(other)
    assert moments(common(one, other)) == moments(one) & moments(other)
    assert moments(without(one, other)) == moments(one) - moments(other)
    assert total(common(one, other)) + total(without(one, other)) == total(one)


@pytest.mark.parametrize(
    ("begun", "ended", "shared"), [(0, 1, 0), (0, 2, 1), (1, 2, 1), (2, 5, 2), (0, 9, 4), (7, 9, 0)]
)
def test_edges_belong_to_one_side(begun: float, ended: float, shared: float) -> None:
    assert total(common([(begun, ended)], [(1, 3), (4, 6)])) == shared
