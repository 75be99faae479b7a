"""How people write demonstrations, prompts and preferences down, and how each form becomes a record of ours.

A conversation is a list of ``{"role": "system" | "user" | "assistant", "content": "..."}``; a prompt may also be plain
text, which is then one user message, or text in the style of HH-RLHF. What is malformed raises DataError with its
place; what is well formed and of no use (an empty answer, say) is a :class:`Dropped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from rlhf_ray.data.hh_rlhf import EMPTY_ANSWER, parse_conversation, reason_to_drop
from rlhf_ray.data.jsonl import Record
from rlhf_ray.data.recorded import prompt_id_of
from rlhf_ray.errors import DataError
from rlhf_ray.records import Demonstration, Message, Ranking, Role, SoftLabel, StepLabelled, TextPrompt

DEMONSTRATION_FORM = '{"messages": [...]} or {"prompt": "...", "response": "..."}'
PROMPT_FORM = '{"prompt": "..."} or {"prompt": [{"role": "user", "content": "..."}]}'
PREFERENCE_FORM = (
    '{"prompt": "...", "chosen": "...", "rejected": "..."} or {"prompt", "responses": [...], "ranks": [...]}'
)
STEPS_FORM = '{"prompt": "...", "completions": ["step", "step"], "labels": [true, false]}'
MESSAGE_FORM = '{"role": "system", "user" or "assistant", "content": "..."}'
UNKNOWN_ANNOTATOR = "unknown"

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Dropped:
    """A record that is well formed and of no use."""

    reason: str


def parse_demonstration(record: Record) -> Demonstration | Dropped:
    """Read ``messages`` that end with the assistant, or ``prompt`` and ``response``; ``id`` and ``kind`` optional."""
    if "messages" in record.value:
        messages = _conversation(record, "messages", DEMONSTRATION_FORM)
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise DataError(f'{record.where}: "messages" must be a prompt and, last, the assistant\'s answer')
    else:
        prompt = _prompt(record, DEMONSTRATION_FORM)
        messages = (*prompt, Message("assistant", _text(record, "response", DEMONSTRATION_FORM)))
    if not messages[-1].content.strip():
        return Dropped(EMPTY_ANSWER)
    return Demonstration(_optional(record, "id") or record.where, messages, _optional(record, "kind"))


def parse_prompt(record: Record) -> TextPrompt:
    """Read ``prompt``; optional are ``kind``, the one right ``answer`` and ``id``, which else follows from the text."""
    messages = _prompt(record, PROMPT_FORM)
    if not messages[-1].content.strip():
        raise DataError(f'{record.where}: "prompt" is empty; write {PROMPT_FORM}')
    answer = _optional(record, "answer")
    facts = {"answer": answer} if answer else {}
    return TextPrompt(_optional(record, "id") or prompt_id_of(messages), messages, _optional(record, "kind"), facts)


def parse_preference(record: Record) -> Ranking | Dropped:
    """Read a pair or K responses with ranks; ``annotator``, ``kind`` and ``axis`` optional, with ranks ``soft`` too.

    ``chosen`` and ``rejected`` are answers as text, answers as a list of one message, or whole conversations (a list,
    or HH-RLHF text), which may stand without ``prompt``.
    """
    if "responses" in record.value:
        return _ranked(record)
    chosen, rejected = _side(record, "chosen"), _side(record, "rejected")
    if reason := reason_to_drop(chosen, rejected):
        return Dropped(reason)
    return _ranking(record, chosen[:-1], (chosen[-1].content, rejected[-1].content), (0, 1))


def parse_step_labelled(record: Record) -> StepLabelled | Dropped:
    """Read ``prompt``, ``completions`` (the steps of one response, as text) and ``labels``, true for a good step."""
    prompt, steps, labels = _prompt(record, STEPS_FORM), record.value.get("completions"), record.value.get("labels")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise DataError(f'{record.where}: "completions" must be a list of texts, one a step; write {STEPS_FORM}')
    if not isinstance(labels, list) or len(labels) != len(steps) or not all(label in (True, False) for label in labels):
        raise DataError(f'{record.where}: "labels" must be {len(steps)} times true or false; write {STEPS_FORM}')
    if not all(step.strip() for step in steps):
        return Dropped(EMPTY_ANSWER)
    return StepLabelled(prompt_id_of(prompt), prompt, tuple(steps), tuple(map(bool, labels)))


def _ranked(record: Record) -> Ranking | Dropped:
    prompt = _prompt(record, PREFERENCE_FORM)
    responses, ranks = record.value["responses"], record.value.get("ranks")
    if not isinstance(responses, list) or len(responses) < 2 or not all(isinstance(text, str) for text in responses):
        raise DataError(f'{record.where}: "responses" must be a list of at least two texts; write {PREFERENCE_FORM}')
    # bool is an int to Python, and a rank is not.
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks) or len(ranks) != len(responses):
        rule = f"must be a list of {len(responses)} whole numbers, one a response, lower is better"
        raise DataError(f'{record.where}: "ranks" ({ranks!r}) {rule}, equal is a tie')
    if not all(text.strip() for text in responses):
        return Dropped(EMPTY_ANSWER)
    ranking = _ranking(record, prompt, tuple(responses), tuple(ranks))
    return replace(ranking, soft=_soft(record, len(responses)))


def _soft(record: Record, count: int) -> tuple[SoftLabel, ...]:
    """How sure somebody is of pairs of the ``count`` responses; () where nothing is said of that."""
    given = record.value.get("soft") or []
    form = f'must be a list of {{"first": 0, "second": 1, "probability": 0.9}}, places below {count}'
    try:
        labels = tuple(SoftLabel(**label) for label in cast(list[dict[str, Any]], given))
        fits = all(
            {label.first, label.second} <= set(range(count))
            and label.first != label.second
            and 0 <= label.probability <= 1
            for label in labels
        )
    except TypeError as error:
        raise DataError(f'{record.where}: "soft" ({given!r:.80}) {form}') from error
    if not fits:
        raise DataError(f'{record.where}: "soft" ({given!r:.80}) {form}')
    return labels


def _ranking(
    record: Record, prompt: tuple[Message, ...], responses: tuple[str, ...], ranks: tuple[int, ...]
) -> Ranking:
    annotator = _optional(record, "annotator") or UNKNOWN_ANNOTATOR
    kind, axis = _optional(record, "kind"), _optional(record, "axis")
    return Ranking(prompt_id_of(prompt), prompt, responses, ranks, annotator, kind=kind, axis=axis)


def _side(record: Record, name: str) -> tuple[Message, ...]:
    """The whole conversation that ends with the answer ``name``."""
    value = record.value.get(name)
    if isinstance(value, list):
        said = _conversation(record, name, PREFERENCE_FORM)
        if said[-1].role != "assistant":
            raise DataError(
                f'{record.where}: "{name}" must end with a message of the assistant, not of the {said[-1].role}'
            )
    elif isinstance(value, str) and value.lstrip().startswith("Human:") and value.startswith("\n\n"):
        said = parse_conversation(value, record.where)
    else:
        said = (Message("assistant", _text(record, name, PREFERENCE_FORM)),)
    if len(said) == 1:
        return (*_prompt(record, PREFERENCE_FORM), *said)
    if "prompt" in record.value and _prompt(record, PREFERENCE_FORM) != said[:-1]:
        raise DataError(f'{record.where}: "{name}" repeats another prompt than "prompt"; leave one of the two out')
    return said


def _prompt(record: Record, form: str) -> tuple[Message, ...]:
    value = record.value.get("prompt")
    if isinstance(value, list):
        messages = _conversation(record, "prompt", form)
    else:
        text = _text(record, "prompt", form)
        messages = parse_conversation(text, record.where) if text.startswith("\n\nHuman:") else (Message("user", text),)
        if len(messages) > 1 and messages[-1] == Message("assistant", ""):  # HH-RLHF prompts end on "Assistant:"
            messages = messages[:-1]
    if messages[-1].role != "user":
        raise DataError(f'{record.where}: "prompt" must end with a message of the user, not of the {messages[-1].role}')
    return messages


def _conversation(record: Record, name: str, form: str) -> tuple[Message, ...]:
    items = record.value.get(name)
    if not isinstance(items, list) or not items:
        raise DataError(f'{record.where}: "{name}" must be a list of messages; write {form}')
    return tuple(
        _message(item, f'{record.where}: message {number} of "{name}"') for number, item in enumerate(items, 1)
    )


def _message(item: object, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f"{where} must be an object, found {type(item).__name__}; write {MESSAGE_FORM}")
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise DataError(f"{where} has the role {role!r}; write {MESSAGE_FORM}")
    if not isinstance(content, str):
        raise DataError(f"{where} has no text as content; write {MESSAGE_FORM}")
    return Message(cast(Role, role), content)


def _text(record: Record, name: str, form: str) -> str:
    value = record.value.get(name)
    if isinstance(value, str):
        return value
    found = (
        f"must be text, found {type(value).__name__}"
        if value is not None
        else f"is missing among {sorted(record.value)}"
    )
    raise DataError(f'{record.where}: "{name}" {found}; write {form}')


def _optional(record: Record, name: str) -> str:
    value = record.value.get(name, "")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f'{record.where}: "{name}" must be text or a number, not {type(value).__name__}')
    return str(value)
