"""How the field writes down evaluation sets, and how each record becomes a prompt, or a text, of ours.

    prompts     {"prompt": ...} as everywhere, {"instruction": ..., "input": ...} (AlpacaEval), {"turns": [...]}
                (MT-Bench: its first turn)
    questions   {"question" or "prompt": ..., "answer": ...}; "choices": [...] with "answer" a letter or a place from 0
                (MMLU, ARC); "answer": "reasoning #### 18" (GSM8K); "answers": [...], any of which is right (TriviaQA)
    refusals    a prompt with "kind": harmful or harmless, or "label": unsafe or safe (XSTest); {"goal": ...} is harmful
                (AdvBench, HarmBench)
    text        {"text": ...}

What else a record holds as text or number is known to functions that grade, as facts, and to no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from string import ascii_uppercase

from rlhf_ray.config.suite import Kind
from rlhf_ray.data.formats import parse_prompt
from rlhf_ray.data.jsonl import Record
from rlhf_ray.data.recorded import prompt_id_of
from rlhf_ray.errors import DataError
from rlhf_ray.records import Message, TextPrompt

HARMFUL, HARMLESS = "harmful", "harmless"
REFUSAL_KINDS: Mapping[str, str] = {"unsafe": HARMFUL, "safe": HARMLESS, HARMFUL: HARMFUL, HARMLESS: HARMLESS}
QUESTION_FORM = '{"question": "...", "answer": "..."}'
ANSWERS = "answers"  # the fact that holds every right answer, one a line
NAMES = ("prompt", "question", "instruction", "goal")  # under which a prompt may stand


def parse_item(record: Record, kind: Kind) -> TextPrompt:
    """Read a prompt of a suite of ``kind``. Raises DataError with the record's place for one that cannot be used."""
    prompt = parse_prompt(_with_prompt(record))
    prompt = replace(prompt, kind=prompt.kind or _text(record, "category"))
    facts = {name: str(value) for name, value in record.value.items() if type(value) in (str, int, float)}
    prompt = replace(prompt, facts={**facts, **prompt.facts})
    if kind == "questions":
        return _question(record, prompt)
    return _refusal(record, prompt) if kind == "refusals" else prompt


def parse_text(record: Record) -> str:
    """Read ``text``; DataError where there is none."""
    text = record.value.get("text")
    if not isinstance(text, str):
        raise DataError(f'{record.where}: "text" must be the text to be found likely; write {{"text": "..."}}')
    return text


def _with_prompt(record: Record) -> Record:
    """The record with its prompt under the name ``prompt``, and no answer, which has many forms."""
    value = {name: each for name, each in record.value.items() if name not in ("answer", "kind", "id")}
    for name in ("kind", "id", "question_id", "task_id"):
        if type(record.value.get(name)) in (str, int):
            value["kind" if name == "kind" else "id"] = record.value[name]
    turns = value.get("turns")
    if isinstance(turns, list) and turns and isinstance(turns[0], str):
        value["prompt"] = turns[0]
    found = next((name for name in NAMES if name in value), None)
    if found is None:
        raise DataError(f"{record.where}: has no prompt; write one under {', '.join(NAMES)} or turns")
    value["prompt"] = value[found]
    if found == "instruction" and isinstance(value.get("input"), str) and value["input"]:
        value["prompt"] = f"{value['prompt']}\n\n{value['input']}"
    return Record(value, record.where)


def _question(record: Record, prompt: TextPrompt) -> TextPrompt:
    choices = record.value.get("choices")
    if isinstance(choices, Mapping):  # ARC: {"text": [...], "label": [...]}
        choices = choices.get("text")
    if choices is not None:
        return _multiple_choice(record, prompt, choices)
    right = record.value.get("answers", record.value.get("answer"))
    if isinstance(right, Mapping):  # TriviaQA: {"value": ..., "aliases": [...]}
        right = right.get("aliases") or right.get("value")
    answers = [str(each).strip() for each in (right if isinstance(right, list) else [right]) if _is_answer(each)]
    if not answers:
        raise DataError(f'{record.where}: has no "answer"; write {QUESTION_FORM}')
    # Where a solution leads to its answer, as in GSM8K, the answer is what stands after the mark.
    answers = [each.rpartition("####")[2].strip() for each in answers]
    return replace(prompt, facts={**prompt.facts, "answer": answers[0], ANSWERS: "\n".join(answers)})


def _is_answer(value: object) -> bool:
    return type(value) in (str, int, float) and str(value).strip() != ""


def _multiple_choice(record: Record, prompt: TextPrompt, choices: object) -> TextPrompt:
    """The question with its choices by letter below it; the answer is a letter."""
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
        raise DataError(f'{record.where}: "choices" must be a list of 2 to {len(ascii_uppercase)} answers')
    letters = ascii_uppercase[: len(choices)]
    given = record.value.get("answer", record.value.get("answerKey"))
    if isinstance(given, str) and given.isdigit():
        given = int(given)
    letter = letters[given] if isinstance(given, int) and 0 <= given < len(letters) else str(given).strip().upper()
    if letter not in letters or len(letter) != 1:
        raise DataError(
            f'{record.where}: "answer" ({given!r}) must be a letter or a place among {len(letters)} choices'
        )
    listed = "\n".join(f"{name}. {choice}" for name, choice in zip(letters, choices, strict=True))
    last = replace(prompt.messages[-1], content=f"{prompt.messages[-1].content}\n{listed}")
    messages = (*prompt.messages[:-1], last)
    known = {**prompt.facts, "answer": letter, ANSWERS: letter}
    return replace(prompt, prompt_id=_id(record, prompt, messages), messages=messages, facts=known)


def _id(record: Record, prompt: TextPrompt, messages: tuple[Message, ...]) -> str:
    """The record's own id, or one that follows from what the model reads."""
    has_own = any(name in record.value for name in ("id", "question_id", "task_id"))
    return prompt.prompt_id if has_own else prompt_id_of(messages)


def _refusal(record: Record, prompt: TextPrompt) -> TextPrompt:
    named = _text(record, "kind") or _text(record, "label") or (HARMFUL if "goal" in record.value else "")
    if named not in REFUSAL_KINDS:
        rule = 'must say in "kind" whether the prompt is harmful or harmless (or in "label": unsafe, safe)'
        raise DataError(f"{record.where}: {rule}, found {named!r}")
    return replace(prompt, kind=REFUSAL_KINDS[named])


def _text(record: Record, name: str) -> str:
    value = record.value.get(name)
    return value if isinstance(value, str) else ""
