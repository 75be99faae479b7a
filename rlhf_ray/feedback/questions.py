"""Prompts with responses that wait for judgement: a file of them, or of responses of several models, one a line.

| a record | becomes |
|---|---|
| ``{"prompt" or "messages", "responses": [...]}`` | an item; ``gold_ranks`` make it one with a known answer |
| ``{"prompt", "response"}`` | a candidate; those of one prompt become an item together |

A response is text, or ``{"text", "model", "sampling", "seed", "token_ids"}``; ``model`` may stand beside ``response``.
What judgements the file holds beside is left out, so that people can judge a run's own comparisons again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

from rlhf_ray.data.formats import parse_prompt
from rlhf_ray.data.jsonl import Record
from rlhf_ray.data.sources import read_source
from rlhf_ray.errors import DataError
from rlhf_ray.feedback.records import Candidate, Item
from rlhf_ray.feedback.store import PreferenceStore
from rlhf_ray.records import TextPrompt

FORM = '{"prompt": "...", "responses": ["...", "..."]} or, one response a line, {"prompt": "...", "response": "..."}'


@dataclass(frozen=True)
class Added:
    """How many items the files have, how many the store did not have, and how many have a known answer."""

    items: int
    new: int
    gold: int


def add_questions(store: PreferenceStore, sources: Sequence[str]) -> Added:
    """Add the items of files or of ``hub:owner/name``; responses of one prompt may stand in several of them.

    Raises DataError with file and line for the first record that cannot be read; nothing is then added.
    """
    items: list[Item] = []
    singles: dict[str, Item] = {}
    for record in chain.from_iterable(map(read_source, sources)):
        prompt = _prompt(record)
        if "responses" in record.value:
            items.append(_item(record, prompt))
            continue
        candidate = _candidate(record, record.value.get("response"), str(record.value.get("model", "")))
        item = singles.setdefault(prompt.prompt_id, Item(prompt, (candidate,)))
        if candidate not in item.candidates:
            singles[prompt.prompt_id] = replace(item, candidates=(*item.candidates, candidate))
    items += singles.values()
    if not items:
        raise DataError(f"{', '.join(sources)}: no record; write {FORM}")
    before = len(store.items())
    store.add_items(items)
    return Added(len(items), len(store.items()) - before, sum(bool(item.gold_ranks) for item in items))


def _prompt(record: Record) -> TextPrompt:
    """A run's own files say ``messages`` and ``prompt_id`` where others say ``prompt`` and ``id``."""
    value = dict(record.value)
    for ours, theirs in (("messages", "prompt"), ("prompt_id", "id")):
        if ours in value:
            value.setdefault(theirs, value[ours])
    return parse_prompt(Record(value, record.where))


def _item(record: Record, prompt: TextPrompt) -> Item:
    responses: Any = record.value["responses"]
    token_ids: Any = record.value.get("response_token_ids") or ()
    if not isinstance(responses, list) or not responses:
        raise DataError(f'{record.where}: "responses" must be a list of texts; write {FORM}')
    candidates = [_candidate(record, each, "") for each in responses]
    gold: Any = record.value.get("gold_ranks") or ()
    try:
        if token_ids:
            candidates = [replace(a, token_ids=tuple(b)) for a, b in zip(candidates, token_ids, strict=True)]
        return Item(prompt, tuple(candidates), tuple(gold))
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{record.where}: the lists of this item do not fit its responses ({error})") from error


def _candidate(record: Record, response: object, model: str) -> Candidate:
    if isinstance(response, str):
        return Candidate(response, model)
    if isinstance(response, Mapping) and isinstance(response.get("text"), str):
        known = {each.name for each in fields(Candidate)}
        if response.keys() <= known:
            return Candidate(**{**response, "token_ids": tuple(response.get("token_ids") or ())})
    raise DataError(f'{record.where}: a response must be text, or an object with "text"; write {FORM}')
