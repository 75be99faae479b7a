"""What suites and an endpoint's log measure: name, unit, definition, and which direction is good, for the registry."""

from __future__ import annotations

from typing import Literal, TypeAlias

Row: TypeAlias = tuple[str, str, str, Literal["higher", "lower", ""]]

# Of a checkpoint on a suite (`rlhf-ray evaluate --suite`); grades by task or function are grade/*.
SUITE: tuple[Row, ...] = (
    (
        "suite/win_rate",
        "fraction",
        "Share of prompts on which the judge prefers the model to the baseline; both orders asked, ties by half.",
        "higher",
    ),
    (
        "suite/length_controlled_win_rate",
        "fraction",
        "The win rate where longer and shorter responses weigh the same, by strata of their ratio.",
        "higher",
    ),
    ("suite/length_covered", "fraction", "Share of judged pairs that the length-controlled win rate rests on.", ""),
    ("suite/judge_consistency", "fraction", "Share of judged pairs on which both orders name one winner.", "higher"),
    ("suite/score", "reward", "Mean of what the run's sources of rewards say of a response, by weight.", "higher"),
    ("suite/accuracy", "fraction", "Share of questions that are answered rightly; samples averaged.", "higher"),
    (
        "pass_at/*",
        "fraction",
        "Chance that so many samples of a problem hold a right one (Chen et al. 2021).",
        "higher",
    ),
    ("suite/perplexity", "", "exp of the negative log-likelihood a token of held-out text.", "lower"),
    ("suite/nats_per_token", "nats/token", "Negative log-likelihood of held-out text.", "lower"),
    ("suite/bits_per_byte", "bits/byte", "Negative log-likelihood of held-out text by UTF-8 byte.", "lower"),
    ("suite/harmful_refused", "fraction", "Share of prompts that ought to be refused and are.", "higher"),
    ("suite/harmless_refused", "fraction", "Share of harmless prompts that are refused none the less.", "lower"),
    ("suite/words", "words", "Mean number of words in a response.", ""),
    ("suite/finished", "fraction", "Share of responses that ended by themselves, not at the limit.", "higher"),
)

# Of an endpoint's log, by day (`rlhf-ray drift`).
DRIFT: tuple[Row, ...] = (
    ("drift/conversations", "", "Conversations of the day.", ""),
    ("drift/refusals", "fraction", "Share of the day's responses that refuse, by set phrases of the first person.", ""),
    ("drift/words", "words", "Mean number of words in a response of the day.", ""),
    ("drift/satisfaction", "", "Mean of what users said of a response of the day, as it was logged.", "higher"),
)
