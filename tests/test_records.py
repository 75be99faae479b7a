"""What flows: a ranking's pairs follow from its ranks, or from soft labels where it has any."""

from __future__ import annotations

from rlhf_ray.records import Message, Ranking, SoftLabel


def ranking(ranks: tuple[int, ...], *soft: SoftLabel) -> Ranking:
    return Ranking("p", (Message("user", "q"),), tuple("abcd"[: len(ranks)]), ranks, "someone", soft=soft)


def test_ranks_give_certain_labels_in_order_and_ties_give_none() -> None:
    assert ranking((1, 0, 1)).labels == (SoftLabel(1, 0, 1.0), SoftLabel(1, 2, 1.0))
    assert ranking((0, 0)).labels == ()


def test_soft_labels_stand_in_for_the_ranks_with_the_likelier_winner_first() -> None:
    unsure = ranking((0, 1, 2), SoftLabel(0, 1, 0.25), SoftLabel(2, 1, 0.75), SoftLabel(0, 2, 0.5))
    assert unsure.labels == (SoftLabel(1, 0, 0.75), SoftLabel(2, 1, 0.75), SoftLabel(0, 2, 0.5))
    assert unsure.pairs == ((1, 0), (2, 1))  # even odds decide nothing


def test_a_certain_soft_label_gives_the_pairs_of_a_rank() -> None:
    assert ranking((0, 0), SoftLabel(0, 1, 0.0)).labels == ranking((1, 0)).labels
