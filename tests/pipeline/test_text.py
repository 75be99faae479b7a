"""Between text and tokens: what does not fit is counted and left out whole, and nothing is ever cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_ray.data.chat import set_chat_template
from rlhf_ray.engines.scoring import step_ends
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.pipeline.text import TextTools
from rlhf_ray.records import Message, Ranking, SoftLabel, StepLabelled
from tests.pipeline.fakes import demonstration, prompt, ranking

EOS = 1


@pytest.fixture
def tools(tokenizer: PreTrainedTokenizerFast) -> TextTools:
    """One token a letter, no tokens around a turn but EOS after the assistant's; 10 tokens at most."""
    set_chat_template(tokenizer, "plain")
    return TextTools(tokenizer, max_length=10)


def test_sampling_stops_at_the_token_that_closes_a_turn(tools: TextTools) -> None:
    assert tools.stop_token_ids == (EOS,)


def test_demonstrations_that_do_not_fit_are_counted_and_never_cut(tools: TextTools) -> None:
    items = [demonstration(1, "x" * length) for length in (1, 7, 8)]  # 2 for "q1", 1 for EOS
    sequences, too_long = tools.demonstrations(items)
    assert ([len(s) for s in sequences], too_long) == ([4, 10], 1)
    assert sequences[0].mask.tolist() == [False, False, True, True]
    assert sequences[1].token_ids[-1] == EOS


def test_prompts_leave_room_for_the_response(tools: TextTools) -> None:
    items = [prompt(n, "x" * length) for n, length in enumerate((7, 6, 9, 3))]
    prompts, texts, too_long = tools.prompts(items, room=4)
    assert too_long == 2
    assert [p.prompt_id for p in prompts] == [t.prompt_id for t in texts] == ["p1", "p3"]
    assert [p.order for p in prompts] == [0, 1]  # places in the list that is left, without gaps
    assert [len(p.token_ids) for p in prompts] == [6, 3]


def test_rankings_keep_their_index_and_lose_those_tied_or_too_long(tools: TextTools) -> None:
    long = Ranking("p", (Message("user", "q"),), ("x" * 9, "y"), (0, 1), "a")
    rankings, left_out = tools.rankings([ranking(0, (0, 0)), ranking(1, (2, 0, 1)), long])
    assert left_out == 2
    (kept,) = rankings
    assert kept.index == 1
    assert kept.pairs == ((1, 0), (1, 2), (2, 0))
    assert kept.gaps == (2.0, 1.0, 1.0)
    assert [len(s) for s in kept.sequences] == [4, 4, 4]  # 2 for "q1", 1 letter, EOS
    assert [s.mask.tolist() for s in kept.sequences] == [[False, False, True, True]] * 3


def test_soft_labels_are_the_pairs_and_the_likelier_winner_comes_first(tools: TextTools) -> None:
    labels = (SoftLabel(0, 1, 0.2), SoftLabel(0, 2, 0.5), SoftLabel(2, 1, 0.9))
    ((kept,), left_out) = tools.rankings([replace(ranking(1, (0, 1, 3)), soft=labels)])
    assert (kept.pairs, left_out) == (((1, 0), (0, 2), (2, 1)), 0)
    assert kept.probabilities == (0.8, 0.5, 0.9)
    assert kept.gaps == (0.0, 3.0, 0.0)  # where the ranks say the opposite they do not count


def test_sampled_tokens_are_judged_as_they_were_sampled(tools: TextTools) -> None:
    item = Ranking("p", (Message("user", "q"),), ("ab", "c"), (0, 1), "a", response_token_ids=((7, 8, EOS), (9,)))
    ((kept,), _) = tools.rankings([item])
    assert [s.token_ids[1:].tolist() for s in kept.sequences] == [[7, 8, EOS], [9]]


def test_where_nothing_fits_the_error_says_so(tools: TextTools) -> None:
    with pytest.raises(
        DataError, match=r"none of 1 demonstrations fits into 10 tokens \(model\.max_length\); raise it"
    ):
        tools.demonstrations([demonstration(1, "x" * 50)])
    with pytest.raises(DataError, match=r"none of 2 prompts leaves 9 of 10 tokens for a response \(model\.max_len"):
        tools.prompts([prompt(1, "xx"), prompt(2, "yy")], room=9)
    with pytest.raises(DataError, match=r"none of 1 rankings has a decided pair and fits into 10 tokens"):
        tools.rankings([ranking(1, (0, 0))])


def test_where_there_is_nothing_the_error_says_that(tools: TextTools) -> None:
    with pytest.raises(
        DataError, match=r"the data has no prompts where some are needed; add some, or hold out another"
    ):
        tools.prompts([], room=1)


def test_decoding_leaves_special_tokens_out(tools: TextTools) -> None:
    ids = np.array([*tools.tokenizer.encode("ab"), EOS], dtype=np.int32)
    assert tools.decode(ids) == "ab"


# ------------------------------------------------------------------------------------------------------- labelled steps
def in_steps(*steps: str) -> StepLabelled:
    return StepLabelled("p", (Message("user", "q"),), steps, tuple(len(step) % 2 == 0 for step in steps))


def test_a_step_ends_with_its_separator_and_the_last_one_with_eos(tools: TextTools) -> None:
    ((kept,), left_out) = tools.steps([in_steps("ab", "c", "de")], "\n")
    assert left_out == 0
    assert kept.labels == (True, False, True)
    newline = tools.tokenizer.encode("\n")[0]
    assert kept.sequence.token_ids[kept.sequence.mask].tolist() == [newline, newline, EOS]
    assert np.flatnonzero(kept.sequence.mask).tolist() == [3, 5, 8]  # 1 for "q", then "ab\n", "c\n", "de" and EOS


def test_a_process_reward_is_served_at_the_tokens_where_it_was_trained(tools: TextTools) -> None:
    ((kept,), _) = tools.steps([in_steps("ab", "c", "de")], "\n")
    response = kept.sequence.token_ids[1:]
    assert [1 + end for end in step_ends(response, tools.tokenizer.encode("\n"))] == np.flatnonzero(
        kept.sequence.mask
    ).tolist()


def test_labelled_responses_that_do_not_fit_are_counted_and_a_separator_must_be_text(tools: TextTools) -> None:
    kept, left_out = tools.steps([in_steps("a"), in_steps("x" * 20)], "\n")
    assert ([each.index for each in kept], left_out) == ([0], 1)
    with pytest.raises(ConfigError, match=r"reward_model\.step_separator \(''\) is no token"):
        tools.steps([in_steps("a")], "")
