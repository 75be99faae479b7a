"""Pairs chosen by people: Anthropic's Helpful and Harmless comparisons.

Data: Bai et al. 2022, arXiv:2204.05862 (github.com/anthropics/hh-rlhf, MIT). The harmless part holds offensive text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rlhf_ray.data.jsonl import Record, read_jsonl
from rlhf_ray.data.recorded import (
    digest,
    is_heldout,
    no_annotators,
    prompt_id_of,
    require_file,
    require_fraction,
)
from rlhf_ray.data.task import Split, Task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.metrics.text import is_refusal, num_words
from rlhf_ray.records import Demonstration, Message, Ranking, TextPrompt

DIFFERING_PROMPTS = "differing_prompts"
EMPTY_ANSWER = "empty_answer"
SAME_ANSWER = "same_answer"
ROLES_DO_NOT_ALTERNATE = "roles_do_not_alternate"
ANNOTATOR = "crowdworker"

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):", re.ASCII)


@dataclass(frozen=True)
class HhRlhfConfig:
    """Which files under ``path`` to read (``.jsonl`` or ``.jsonl.gz``) and how much to hold out, by prompt."""

    path: str
    files: tuple[str, ...]
    seed: int = 0
    heldout_fraction: float = 0.1

    def __post_init__(self) -> None:
        require_fraction(self.heldout_fraction, field="data.hh_rlhf.heldout_fraction")
        if not self.files:
            raise ConfigError(
                "data.hh_rlhf.files", self.files, "must name a file", "try [helpful_single_turn_a.jsonl.gz]"
            )


@dataclass(frozen=True)
class Pair:
    """One usable row. ``row_id`` is its file and its number in it, from 1."""

    row_id: str
    prompt_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    kind: str


class HhRlhfTask(Task):
    """Recorded pairs; chosen answers as demonstrations. The split is by prompt, so no prompt is on both sides."""

    def __init__(self, config: HhRlhfConfig) -> None:
        """Read the files; ConfigError names ``data.hh_rlhf.path`` where one is missing, DataError a malformed line."""
        self.config = config
        remedy = "point data.hh_rlhf.path to the folder with the HH-RLHF files, or change data.hh_rlhf.files"
        paths = [
            require_file(Path(config.path) / name, field="data.hh_rlhf.path", remedy=remedy) for name in config.files
        ]
        dropped: Counter[str] = Counter()
        self._pairs = [
            pair for name, path in zip(config.files, paths, strict=True) for pair in _read_pairs(name, path, dropped)
        ]
        self._dropped = dict(dropped)
        self._fingerprint = digest([*self._pairs, config.seed, config.heldout_fraction])

    @property
    def has_annotators(self) -> bool:
        return False

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many rows were left out, by reason."""
        return self._dropped

    def demonstrations(self, split: Split) -> list[Demonstration]:
        return [
            Demonstration(pair.row_id, (*pair.prompt, Message("assistant", pair.chosen)), pair.kind)
            for pair in self._side(split)
        ]

    def prompts(self, split: Split) -> list[TextPrompt]:
        """Every prompt once, in the order of its first row."""
        prompts = {
            pair.prompt_id: TextPrompt(pair.prompt_id, pair.prompt, pair.kind) for pair in self._side(split)[::-1]
        }
        return list(prompts.values())[::-1]

    def rankings(self, split: Split) -> list[Ranking]:
        return [
            Ranking(pair.prompt_id, pair.prompt, (pair.chosen, pair.rejected), (0, 1), ANNOTATOR, kind=pair.kind)
            for pair in self._side(split)
        ]

    def rank(self, prompt: TextPrompt, responses: Sequence[str], seed: int) -> list[Ranking]:
        raise no_annotators("hh_rlhf")

    def grade(self, prompt: TextPrompt, response: str) -> Mapping[str, float]:
        """Measure only: nobody knows the true worth of a new answer here, so there is no ``gold``.

        words: how many. refused: 1 where a set phrase of refusal stands in the response, else 0.
        """
        return {"words": float(num_words(response)), "refused": float(is_refusal(response))}

    def fingerprint(self) -> str:
        return self._fingerprint

    def _side(self, split: Split) -> list[Pair]:
        seed, fraction = self.config.seed, self.config.heldout_fraction
        wanted = split == "heldout"
        return [pair for pair in self._pairs if is_heldout(pair.prompt_id, seed=seed, fraction=fraction) == wanted]


def parse_conversation(text: str, where: str) -> tuple[Message, ...]:
    r"""Split ``"\n\nHuman: ...\n\nAssistant: ..."`` into turns, one per marker, white space at their ends removed.

    A marker counts at the beginning of the text and after an empty line only. Raises DataError, with ``where``, for
    text that does not begin with a Human turn.
    """
    text = text.strip()
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() > 0 or marks[0][1] != "Human":
        raise DataError(f'{where}: the text does not begin with "Human:"; write "\\n\\nHuman: ...\\n\\nAssistant: ..."')
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return tuple(
        Message("user" if mark[1] == "Human" else "assistant", text[mark.end() : end].strip())
        for mark, end in zip(marks, ends, strict=True)
    )


def reason_to_drop(chosen: Sequence[Message], rejected: Sequence[Message]) -> str:
    """Return why two whole conversations are no comparison of two answers to one prompt; "" where they are one."""
    if tuple(chosen[:-1]) != tuple(rejected[:-1]):
        return DIFFERING_PROMPTS
    if any(side[-1].role != "assistant" or not side[-1].content.strip() for side in (chosen, rejected)):
        return EMPTY_ANSWER
    if chosen[-1].content.strip() == rejected[-1].content.strip():
        return SAME_ANSWER
    turns = [message for message in chosen if message.role != "system"]
    if any(before.role == after.role for before, after in pairwise(turns)):
        return ROLES_DO_NOT_ALTERNATE
    return ""


def _read_pairs(name: str, path: Path, dropped: Counter[str]) -> list[Pair]:
    pairs = []
    kind = next((kind for kind in ("helpful", "harmless") if kind in name), "")
    for line, record in enumerate(read_jsonl(path), start=1):
        chosen, rejected = (parse_conversation(_text(record, side), record.where) for side in ("chosen", "rejected"))
        if reason := reason_to_drop(chosen, rejected):
            dropped[reason] += 1
            continue
        prompt = chosen[:-1]
        pairs.append(
            Pair(f"{name}:{line}", prompt_id_of(prompt), prompt, chosen[-1].content, rejected[-1].content, kind)
        )
    if not pairs:
        raise DataError(f"{path}: no usable row ({dict(dropped)} dropped); check that this is an HH-RLHF file")
    return pairs


def _text(record: Record, side: str) -> str:
    value = record.value.get(side)
    if not isinstance(value, str):
        raise DataError(
            f'{record.where}: "{side}" must be the whole conversation as text; found {type(value).__name__}'
        )
    return value
