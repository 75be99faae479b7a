"""An endpoint's log: one answered conversation a line, by day.

    {"time": "2030-01-31T12:00:00Z" or seconds since 1970, "response": "..."}
    {"timestamp" or "created": ..., "messages": [..., {"role": "assistant", "content": "..."}]}
    {"created": ..., "choices": [{"message": {"content": "..."}}]}        an OpenAI reply as it is

What users said of an answer may stand under ``satisfaction``, ``rating``, ``score``, ``feedback`` or ``thumbs``: a
number, true or false, or up and down. Times without a zone are UTC, and so are days.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rlhf_ray.data.jsonl import Record
from rlhf_ray.errors import DataError
from rlhf_ray.metrics.drift import Drift, drift
from rlhf_ray.metrics.text import is_refusal, num_words

TIMES = ("time", "timestamp", "created", "created_at")
SIGNALS = ("satisfaction", "rating", "score", "feedback", "thumbs")
WORDS: Mapping[str, float] = {"up": 1.0, "down": 0.0, "yes": 1.0, "no": 0.0, "good": 1.0, "bad": 0.0}
MILLISECONDS_FROM = 1e11  # seconds since 1970 reach it in the year 5138
LOG_FORM = '{"time": "2030-01-31T12:00:00Z", "response": "..."}'


@dataclass(frozen=True)
class Logged:
    """One answer: its day (ISO date, UTC), its text, and what its reader said of it, if anything."""

    day: str
    response: str
    satisfaction: float | None = None


def parse_logged(record: Record) -> Logged:
    """Read one line of a log. Raises DataError with its place for one without a time or an answer."""
    return Logged(_day(record), _response(record), _satisfaction(record))


def drifts(logged: Iterable[Logged], *, baseline_days: int) -> list[Drift]:
    """Refusals, words and, where there is any, satisfaction by day, compared with the first ``baseline_days`` days.

    Raises DataError for an empty log.
    """
    measures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in logged:
        measures["drift/refusals"][each.day].append(float(is_refusal(each.response)))
        measures["drift/words"][each.day].append(float(num_words(each.response)))
        if each.satisfaction is not None:
            measures["drift/satisfaction"][each.day].append(each.satisfaction)
    if not measures:
        raise DataError(f"the log holds no conversation; write one a line, {LOG_FORM}")
    return [drift(name, days, baseline_days=baseline_days) for name, days in measures.items()]


def _day(record: Record) -> str:
    value = next((record.value[name] for name in TIMES if record.value.get(name) is not None), None)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value / 1000 if value > MILLISECONDS_FROM else value
            return datetime.fromtimestamp(seconds, UTC).date().isoformat()
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date().isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise DataError(f"{record.where}: {value!r} is no time ({error}); write it as 2030-01-31T12:00:00Z") from error
    raise DataError(f"{record.where}: has no time under {', '.join(TIMES)}; write {LOG_FORM}")


def _response(record: Record) -> str:
    """The last thing that the assistant said."""
    text = record.value.get("response")
    if isinstance(text, str):
        return text
    choices, messages = record.value.get("choices"), record.value.get("messages")
    said: list[object] = []
    if isinstance(choices, list):
        said += [choice.get("message") for choice in choices if isinstance(choice, Mapping)]
    elif isinstance(messages, list):
        said += [m for m in messages if isinstance(m, Mapping) and m.get("role") == "assistant"][-1:]
    if said and isinstance(said[0], Mapping) and isinstance(said[0].get("content"), str):
        return str(said[0]["content"])
    raise DataError(f"{record.where}: has no answer under response, messages or choices; write {LOG_FORM}")


def _satisfaction(record: Record) -> float | None:
    for name in SIGNALS:
        value = record.value.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, str) and value.strip().lower() in WORDS:
            return WORDS[value.strip().lower()]
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise DataError(f'{record.where}: "{name}" ({value!r:.40}) must be a number, true, false, up or down')
    return None
