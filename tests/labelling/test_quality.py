"""What the manager is told of annotators: exact tail probabilities, and warnings that honest people do not get."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from rlhf_ray.feedback.agreement import Unit, kappas, krippendorff_alpha, oriented, pair_values
from rlhf_ray.feedback.records import Candidate, Item, Judgement
from rlhf_ray.labelling.assignment import shown_order
from rlhf_ray.labelling.quality import (
    Quality,
    Tally,
    extremes,
    lower_tail,
    places_of_winners,
    qualities,
    right_pairs,
    upper_tail,
)
from rlhf_ray.records import Message, TextPrompt

PROMPT = TextPrompt("p", (Message("user", "?"),))
Decide = Callable[[random.Random, Item, tuple[int, ...]], int]  # the candidate that wins


def test_tails_are_those_of_the_binomial_distribution() -> None:
    assert upper_tail(9, 10, 0.5) == pytest.approx(11 / 1024)
    assert lower_tail(1, 10, 0.5) == pytest.approx(11 / 1024)
    assert upper_tail(0, 10, 0.3) == pytest.approx(1.0)
    assert lower_tail(2, 3, 0.25) == pytest.approx(1 - 1 / 64)
    assert 0.0 < upper_tail(6000, 10_000, 0.5) < 1e-80  # factorials of this size fit no float


def test_known_pairs_are_right_where_they_are_ordered_the_same_and_a_tie_is_not() -> None:
    item = Item(PROMPT, (Candidate("a"), Candidate("b"), Candidate("c")), gold_ranks=(0, 1, 1))
    assert right_pairs(item, Judgement("i", "ann", ranks=(0, 1, 0))) == Tally(1, 2)
    assert right_pairs(item, Judgement("i", "ann", ranks=(0, 2, 1))) == Tally(2, 2)
    assert right_pairs(replace(item, gold_ranks=()), Judgement("i", "ann", ranks=(0, 1, 2))) == Tally(0, 0)


def test_the_extremes_are_the_best_and_the_worst() -> None:
    assert extremes((1, 0, 2)) == (1, 2)
    assert extremes((0, 0, 1)) == (0, 2)
    assert extremes((1, 1)) is None
    assert extremes(()) is None


def test_places_of_winners_are_places_as_shown() -> None:
    said = [
        Judgement("i", "ann", ranks=(0, 1), shown_order=(1, 0)),  # candidate 0 stood second
        Judgement("j", "ann", ranks=(0, 1), shown_order=(0, 1)),
        Judgement("k", "ann", ranks=(0, 0), shown_order=(0, 1)),  # a tie has no winner
        Judgement("l", "ann", ranks=(1, 0, 2), shown_order=(1, 0, 2)),
    ]
    assert places_of_winners(said) == {2: [1, 1], 3: [1, 0, 0]}


def test_agreement_does_not_depend_on_which_response_the_file_puts_first() -> None:
    random_ = random.Random(0)
    said = [  # the better response always comes first, and both are right in 9 of 10
        Judgement(f"i{n}", name, ranks=(0, 1) if random_.random() < 0.9 else (1, 0))
        for n in range(400)
        for name in ("ann", "bob")
    ]
    as_filed, turned = pair_values(said), oriented(pair_values(said))
    assert cohen(as_filed) < 0.2
    # They say the same of 0.9 * 0.9 + 0.1 * 0.1 = 0.82 of the items, chance would of half: (0.82 - 0.5) / 0.5.
    assert cohen(turned) == pytest.approx(0.64, abs=0.08)
    assert krippendorff_alpha(turned) == pytest.approx(cohen(turned), abs=0.01)
    assert oriented(turned) == as_filed


def cohen(values: dict[Unit, dict[str, int]]) -> float:
    return kappas(values)["ann", "bob"][0]


# ------------------------------------------------------------------------------------------- simulated annotators
def truth(item: Item) -> int:
    return item.gold_ranks.index(0)


def careful(random_: random.Random, item: Item, _order: tuple[int, ...]) -> int:
    return truth(item) if random_.random() < 0.8 else 1 - truth(item)


def guessing(random_: random.Random, _item: Item, _order: tuple[int, ...]) -> int:
    return random_.randrange(2)


def longer(_random: random.Random, item: Item, _order: tuple[int, ...]) -> int:
    return max(range(2), key=lambda each: len(item.candidates[each].text))


def first(_random: random.Random, _item: Item, order: tuple[int, ...]) -> int:
    return order[0]


def simulated(*, count: int, seed: int, **people: Decide) -> dict[str, Quality]:
    """Pairs whose better response is as often the longer as the shorter one, judged by all of these people."""
    random_ = random.Random(seed)
    items = {}
    for number in range(count):
        texts = ["x" * 10, "y" * 30]
        items[f"i{number}"] = Item(PROMPT, tuple(map(Candidate, texts)), random_.choice([(0, 1), (1, 0)]))
    said = []
    for name, decide in people.items():
        for item_id, item in items.items():
            order = shown_order(item_id, name, 2)
            winner = decide(random_, item, order)
            said.append(Judgement(item_id, name, ranks=(winner, 1 - winner), shown_order=order))
    return {quality.annotator: quality for quality in qualities(items, said)}


def words(quality: Quality) -> str:
    return " ".join(quality.warnings)


def test_who_guesses_who_follows_length_and_who_follows_the_place_are_told_from_careful_people() -> None:
    found = simulated(count=120, seed=0, ann=careful, bob=careful, eve=guessing, len=longer, one=first)
    assert found["ann"].warnings == found["bob"].warnings == ()
    assert "as if at random" in words(found["eve"])
    assert "longer response: 120 of 120" in words(found["len"])
    assert "shown first: 120 of 120" in words(found["one"])
    assert "shown first" not in words(found["len"])


def test_nobody_is_warned_of_on_few_answers() -> None:
    found = simulated(count=29, seed=0, ann=careful, eve=guessing, len=longer, one=first)
    assert all(quality.warnings == () for quality in found.values())


def test_careful_people_are_hardly_ever_warned_of() -> None:
    warned = sum(bool(simulated(count=60, seed=seed, ann=careful, bob=careful)["ann"].warnings) for seed in range(150))
    assert warned <= 6  # four tests at 1% each would give 6 at the most on average


def test_without_known_answers_agreement_is_with_other_people() -> None:
    items = {"i": Item(PROMPT, (Candidate("a"), Candidate("b")))}
    said = [
        Judgement("i", "ann", ranks=(0, 1)),
        Judgement("i", "bob", ranks=(0, 1)),
        Judgement("i", "eve", ranks=(1, 0)),
    ]
    found = {quality.annotator: quality.agreed for quality in qualities(items, said)}
    assert found == {"ann": Tally(1, 1), "bob": Tally(1, 1), "eve": Tally(0, 1)}
