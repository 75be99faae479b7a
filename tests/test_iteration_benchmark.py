"""What the benchmark of rounds says of its arms."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.iteration import Arm, against, table


def arm(name: str, seed: int, gold: Sequence[float]) -> Arm:
    rounds = len(gold) - 1
    labels = [500 * (n + 1) for n in range(rounds)]
    return Arm(name, seed, gold, [1.0] * len(gold), [9.0] * len(gold), labels, [0.7 + seed / 10] * rounds, 60.0)


ARMS = [
    arm("unsure", 0, [0.6, 0.7, 0.8, 0.9]),
    arm("unsure", 1, [0.6, 0.7, 0.8, 0.8]),
    arm("one_round", 0, [0.6, 0.8]),
    arm("one_round", 1, [0.6, 0.8]),
]


def test_an_arm_of_one_round_has_no_later_ones() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(ARMS)[2:]]
    assert rows[0][0] == "unsure"
    assert rows[0][4].startswith("0.850 ± ")
    assert rows[1][:5] == ["one round", "0.600 ± 0.000", "0.800 ± 0.000", "-", "-"]
    assert rows[1][5:] == ["0.750", "1.00", "9.0", "60"]


def test_rounds_are_compared_with_one_round_seed_by_seed() -> None:
    (line,) = against(ARMS)
    assert line.startswith("- unsure, after 3 rounds, minus one round: 0.050 ± 0.635")
