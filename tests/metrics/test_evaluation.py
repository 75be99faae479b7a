from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.errors import DataError
from rlhf_ray.metrics.evaluation import GradedResponse, compare, read_graded, summarise, write_graded
from rlhf_ray.metrics.statistics import Interval, proportion_interval


def graded(prompt_id: str, kind: str, gold: float, *, kl: float = 0.0, num_tokens: int = 10) -> GradedResponse:
    return GradedResponse(
        prompt_id=prompt_id,
        kind=kind,
        prompt_text=f"Q {prompt_id}",
        response_text="a b c",
        grades={"honest": 0.5, "gold": gold},
        score=2 * gold,
        kl=kl,
        num_tokens=num_tokens,
        finished=gold > 0.3,
    )


SFT = [graded("p1", "fact", 0.2), graded("p2", "fact", 0.6), graded("p3", "refuse", 0.4)]
PPO = [
    graded("p3", "refuse", 0.4, kl=1.0, num_tokens=30),
    graded("p1", "fact", 0.8, kl=2.0, num_tokens=10),
    graded("p2", "fact", 0.5, kl=3.0, num_tokens=20),
]


def test_a_summary_has_all_kinds_first_and_gold_first() -> None:
    summary = summarise(PPO)
    assert list(summary) == ["all", "fact", "refuse"]
    assert list(summary["all"].measures)[:3] == ["gold", "honest", "score"]
    assert [summary[kind].num_prompts for kind in summary] == [3, 2, 1]


def test_means_are_over_the_prompts_of_a_kind() -> None:
    summary = summarise(PPO)
    assert summary["fact"].measures["gold"].value == pytest.approx(0.65)
    assert summary["all"].measures["score"].value == pytest.approx(2 * 1.7 / 3)
    assert summary["all"].measures["kl_per_response"].value == pytest.approx(2.0)
    assert summary["all"].measures["tokens"].value == pytest.approx(20.0)


def test_a_response_that_no_source_could_score_is_left_out_of_the_score_alone() -> None:
    failed = [replace(PPO[0], score=None), *PPO[1:]]
    measures = summarise(failed)["all"].measures
    assert measures["score"].value == pytest.approx(2 * 1.3 / 2)
    assert (measures["score"].count, measures["gold"].count) == (2, 3)
    compared = compare(failed, SFT)["all"]
    assert compared.num_prompts == 3
    assert compared.differences["score"].value == pytest.approx(2 * (0.6 - 0.1) / 2)
    assert compare([replace(r, score=None) for r in PPO], SFT)["all"].differences["score"].count == 0


def test_kl_per_token_is_the_sum_over_the_sum() -> None:
    assert summarise(PPO)["all"].measures["kl_per_token"].value == pytest.approx(6.0 / 60.0)
    assert summarise(PPO)["fact"].measures["kl_per_token"].value == pytest.approx(5.0 / 30.0)


def test_a_yes_or_no_has_wilsons_interval() -> None:
    assert summarise(SFT)["all"].measures["finished"] == proportion_interval(2, 3)


def test_a_quantity_that_happens_to_be_zero_everywhere_is_no_proportion() -> None:
    assert summarise(SFT)["all"].measures["kl_per_response"] == Interval(0.0, 0.0, 0.0, 3)


def test_several_responses_to_a_prompt_count_as_one_prompt() -> None:
    summary = summarise([graded("p1", "fact", 0.0), graded("p1", "fact", 1.0), graded("p2", "fact", 1.0)])["all"]
    assert (summary.num_prompts, summary.num_responses) == (2, 3)
    assert summary.measures["gold"].value == 0.75  # (0.5 + 1) / 2, not 2 / 3
    assert summary.measures["gold"].count == 2


def test_a_single_kind_is_not_repeated() -> None:
    assert list(summarise(PPO[1:])) == ["all"]


def test_a_comparison_pairs_by_prompt_whatever_the_order() -> None:
    comparison = compare(PPO, SFT)
    assert comparison["all"].differences["gold"].value == pytest.approx((0.6 - 0.1 + 0.0) / 3)
    assert comparison["fact"].differences["gold"].value == pytest.approx(0.25)
    assert (comparison["all"].wins, comparison["all"].ties, comparison["all"].losses) == (1, 1, 1)


def test_equal_models_differ_by_exactly_nothing() -> None:
    assert compare(SFT, SFT)["all"].differences["gold"] == Interval(0.0, 0.0, 0.0, 3)


def test_without_gold_the_score_decides_wins() -> None:
    sft = [replace(response, grades={"words": 3.0}) for response in SFT]
    ppo = [replace(response, grades={"words": 5.0}) for response in PPO]
    comparison = compare(ppo, sft)["all"]
    assert "gold" not in comparison.differences
    assert comparison.differences["words"].value == 2.0
    assert (comparison.wins, comparison.ties, comparison.losses) == (1, 1, 1)


def test_models_with_different_prompts_are_not_compared() -> None:
    with pytest.raises(DataError, match="1 are only in the first, 2 only in the second"):
        compare([graded("p9", "fact", 0.1), PPO[0]], SFT)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(DataError, match="no response to compare"):
        compare([], [])


def test_a_grade_that_some_prompts_lack_is_taken_over_the_others() -> None:
    sft = [SFT[0], SFT[1], replace(SFT[2], grades={"honest": 1.0})]
    ppo = [replace(PPO[0], grades={"honest": 1.0}), PPO[1], PPO[2]]
    assert summarise(ppo)["all"].measures["gold"].count == 2
    assert "gold" not in summarise(ppo)["refuse"].measures
    comparison = compare(ppo, sft)["all"]
    assert comparison.differences["gold"].value == pytest.approx((0.6 - 0.1) / 2)
    assert (comparison.num_prompts, comparison.wins, comparison.ties, comparison.losses) == (3, 1, 0, 1)


def test_a_grade_whose_name_is_taken_is_an_error() -> None:
    with pytest.raises(DataError, match=r"\['score'\] have names"):
        summarise([replace(SFT[0], grades={"score": 1.0})])


def test_responses_without_a_token_count_nowhere_in_kl_per_token() -> None:
    empty = graded("p4", "fact", 0.0, kl=0.0, num_tokens=0)
    assert summarise([*PPO, empty])["all"].measures["kl_per_token"].value == pytest.approx(0.1)


def test_graded_responses_survive_the_file_even_with_newlines_and_hostile_text(tmp_path: Path) -> None:
    responses = [replace(SFT[0], response_text='line\nline\u2028 "quote" <script>'), *PPO]
    write_graded(tmp_path / "graded.jsonl", responses)
    assert read_graded(tmp_path / "graded.jsonl") == responses
    (tmp_path / "graded.jsonl").write_text('{"prompt_id": "p1"}\n')
    with pytest.raises(DataError, match=r"graded\.jsonl:1 is not a graded response"):
        read_graded(tmp_path / "graded.jsonl")
