"""Preference files in and out, in the field's shapes; ``store`` loses nothing.

| shape | a record |
|---|---|
| store | one item: prompt, candidates with what made them, and every judgement that was ever made of it |
| rankings | ``{"prompt", "responses", "ranks", "annotator", "kind"}``, ``soft`` and ``axis`` where a judge gave them |
| pairs | ``{"prompt", "chosen", "rejected"}``, the prompt as text or, where it has several messages, as messages |
| conversational | the same with messages everywhere |
| kto | ``{"prompt", "completion", "label"}``: true for what beats more than beats it, else false, "all bad" too |
| hh_rlhf | ``{"chosen", "rejected"}`` as whole conversations in text |
| ultrafeedback | ``{"instruction", "completions": [{"model", "response", "overall_score", "annotations"}]}`` |

Files end in .jsonl, .jsonl.gz or .parquet. What comes in is recognised by its keys.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rlhf_ray.data.formats import UNKNOWN_ANNOTATOR, Dropped, parse_preference, parse_prompt
from rlhf_ray.data.jsonl import Record, write_jsonl
from rlhf_ray.data.recorded import prompt_id_of
from rlhf_ray.data.sources import read_source
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.feedback.records import AnnotatorKind, Candidate, Item, Judgement, Kept, axis_rankings_of
from rlhf_ray.feedback.store import Incoming, PreferenceStore, item_id_of
from rlhf_ray.records import Message, Ranking, SoftLabel, TextPrompt

Shape: TypeAlias = Literal["store", "rankings", "pairs", "conversational", "kto", "hh_rlhf", "ultrafeedback"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
STORE_KEYS = frozenset({"messages", "candidates", "judgements"})
ULTRAFEEDBACK = "ultrafeedback"  # the annotator where a record names none
SAID_BEFORE = "said_before"
LABEL = "desirable"  # the axis of single responses that are labelled and not compared
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """What came in. ``dropped`` counts records that are well formed and of no use, by reason."""

    items: int
    judgements: int
    dropped: Mapping[str, int]


# ------------------------------------------------------------------------------------------------------------------ out
def export(store: PreferenceStore, path: Path, shape: Shape) -> int:
    """Write the store's content and return the number of records.

    Raises ConfigError for a name that says no kind of file, DataError for content that the shape cannot hold.
    """
    if path.suffix != ".parquet" and not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError("file", str(path), "must end in .jsonl, .jsonl.gz or .parquet", "choose one of these")
    records = list(_WRITERS[shape](store))
    if path.suffix == ".parquet":
        return _write_parquet(path, records)
    return write_jsonl(path, records)


def _whole(store: PreferenceStore) -> Iterator[Json]:
    said: dict[str, list[Kept]] = {}
    for kept in store.history():
        said.setdefault(kept.judgement.item_id, []).append(kept)
    kinds = store.annotators()
    for item_id, item in store.items().items():
        judgements = [
            {
                "judgement_id": kept.judgement_id,
                "at": kept.at,
                "annotator_kind": kinds[kept.judgement.annotator],
                **{name: value for name, value in asdict(kept.judgement).items() if name != "item_id"},
            }
            for kept in said.get(item_id, ())
        ]
        prompt = item.prompt
        yield {
            "id": prompt.prompt_id,
            "kind": prompt.kind,
            "facts": dict(prompt.facts),
            "messages": _plain(prompt.messages),
            "candidates": [asdict(candidate) for candidate in item.candidates],
            "gold_ranks": list(item.gold_ranks),
            "judgements": judgements,
        }


def ranking_records(store: PreferenceStore) -> Iterator[Json]:
    """The judgements that count and compare anything, as preference files have them."""
    for ranking in store.rankings():
        if len(ranking.responses) < 2:
            continue
        yield {
            "prompt": _prompt_value(ranking.messages),
            "responses": list(ranking.responses),
            "ranks": list(ranking.ranks),
            **({"soft": [asdict(label) for label in ranking.soft]} if ranking.soft else {}),
            **_origin(ranking),
        }


def axis_records(store: PreferenceStore) -> Iterator[Json]:
    """What ratings compare, a record an axis of a judgement, in the form of :func:`ranking_records` with ``axis``.

    The label of a single response (``desirable``) is no axis.
    """
    known = store.items()
    for kept in store.judgements():
        for ranking in axis_rankings_of(known[kept.judgement.item_id], kept.judgement):
            if ranking.axis != LABEL:
                yield {
                    "prompt": _prompt_value(ranking.messages),
                    "responses": list(ranking.responses),
                    "ranks": list(ranking.ranks),
                    **_origin(ranking),
                    "axis": ranking.axis,
                }


def _pairs(store: PreferenceStore) -> Iterator[Json]:
    for ranking, chosen, rejected in _decided(store):
        yield {"prompt": _prompt_value(ranking.messages), "chosen": chosen, "rejected": rejected, **_origin(ranking)}


def _conversational(store: PreferenceStore) -> Iterator[Json]:
    for ranking, chosen, rejected in _decided(store):
        sides = {name: [_said(text)] for name, text in (("chosen", chosen), ("rejected", rejected))}
        yield {"prompt": _plain(ranking.messages), **sides, **_origin(ranking)}


def _hh_rlhf(store: PreferenceStore) -> Iterator[Json]:
    for ranking, chosen, rejected in _decided(store):
        yield {name: _as_turns(ranking, text) for name, text in (("chosen", chosen), ("rejected", rejected))}


def _as_turns(ranking: Ranking, response: str) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    if any(message.role not in names for message in ranking.messages):
        raise DataError(f"prompt {ranking.prompt_id!r} has a system message, which hh_rlhf cannot hold; use pairs")
    turns = [(names[message.role], message.content) for message in ranking.messages] + [("Assistant", response)]
    return "".join(f"\n\n{name}: {text}" for name, text in turns)


def _kto(store: PreferenceStore) -> Iterator[Json]:
    known = store.items()
    for kept in store.judgements():
        item, judgement = known[kept.judgement.item_id], kept.judgement
        for candidate, label in zip(item.candidates, labels(item, judgement), strict=True):
            if label is not None:
                yield {"prompt": _prompt_value(item.prompt.messages), "completion": candidate.text, "label": label}


def labels(item: Item, judgement: Judgement) -> list[bool | None]:
    """Of each candidate whether it is desirable; None where the judgement does not say."""
    if judgement.verdict == "all_bad":
        return [False] * len(item.candidates)
    if judgement.verdict != "ranked":
        return [None] * len(item.candidates)
    if LABEL in judgement.ratings:
        return [None if given is None else given > 0 for given in judgement.ratings[LABEL]]
    ahead = [sum((rank < other) - (rank > other) for other in judgement.ranks) for rank in judgement.ranks]
    return [None if count == 0 else count > 0 for count in ahead]


def _ultrafeedback(store: PreferenceStore) -> Iterator[Json]:
    known = store.items()
    for kept in store.judgements():
        item, judgement = known[kept.judgement.item_id], kept.judgement
        if judgement.verdict != "ranked":
            continue
        worst = max(judgement.ranks)
        completions = [
            {
                "model": candidate.model,
                "response": candidate.text,
                "overall_score": float(worst - rank),
                "annotations": {
                    axis: {"Rating": "N/A" if given[place] is None else f"{given[place]:g}"}
                    for axis, given in judgement.ratings.items()
                },
            }
            for place, (candidate, rank) in enumerate(zip(item.candidates, judgement.ranks, strict=True))
        ]
        instruction = "\n\n".join(message.content for message in item.prompt.messages)
        yield {"instruction": instruction, "source": judgement.annotator, "completions": completions}


def _decided(store: PreferenceStore) -> Iterator[tuple[Ranking, str, str]]:
    for ranking in store.rankings():
        for winner, loser in ranking.pairs:
            yield ranking, ranking.responses[winner], ranking.responses[loser]


_WRITERS: Mapping[Shape, Callable[[PreferenceStore], Iterable[Json]]] = {
    "store": _whole,
    "rankings": ranking_records,
    "pairs": _pairs,
    "conversational": _conversational,
    "kto": _kto,
    "hh_rlhf": _hh_rlhf,
    "ultrafeedback": _ultrafeedback,
}


def _write_parquet(path: Path, records: Sequence[Json]) -> int:
    """A column a key. Values that are different objects in different rows (settings, ratings, facts) are JSON text."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    rows = [{key: json.dumps(v) if key in _FREE else v for key, v in record.items()} for record in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return len(rows)


_FREE = frozenset({"facts", "candidates", "judgements", "completions"})


def _prompt_value(messages: Sequence[Message]) -> str | list[Json]:
    single = len(messages) == 1 and messages[0].role == "user" and not messages[0].content.startswith("\n\nHuman:")
    return messages[0].content if single else _plain(messages)


def _plain(messages: Sequence[Message]) -> list[Json]:
    return [asdict(message) for message in messages]


def _said(text: str) -> Json:
    return {"role": "assistant", "content": text}


def _origin(ranking: Ranking) -> Json:
    axis = {"axis": ranking.axis} if ranking.axis else {}
    return {"annotator": ranking.annotator, "kind": ranking.kind, **axis}


# ------------------------------------------------------------------------------------------------------------------- in
def import_file(store: PreferenceStore, source: str) -> Imported:
    """Add the records of a file or of ``hub:owner/name``. What is in the store already is not added again.

    Raises DataError with file and line for the first record that cannot be read; nothing of the file is then added.
    """
    items: list[Item] = []
    said: list[Incoming] = []
    kinds: dict[str, AnnotatorKind] = {}
    dropped: Counter[str] = Counter()
    for record in read_source(source):
        read = _reader(record)(record)
        if isinstance(read, Dropped):
            dropped[read.reason] += 1
            continue
        item, judgements, of_annotators = read
        items.append(item)
        said += [replace(each, corrects=_shifted(each.corrects, len(said))) for each in judgements]
        kinds |= of_annotators
    if not items:
        raise DataError(f"{source}: no usable record ({dict(dropped) or 'it is empty'})")
    added = store.add_all(items, said, kinds)
    dropped[SAID_BEFORE] = len(said) - added
    return Imported(len(items), added, {reason: count for reason, count in dropped.items() if count})


Read: TypeAlias = tuple[Item, list[Incoming], dict[str, AnnotatorKind]]


def _reader(record: Record) -> Callable[[Record], Read | Dropped]:
    if record.value.keys() >= STORE_KEYS:
        return _read_item
    if record.value.keys() >= {"completion", "label"}:
        return _read_kto
    return _read_ultrafeedback if "completions" in record.value else _read_preference


def _shifted(place: int | None, by: int) -> int | None:
    return None if place is None else place + by


def _read_preference(record: Record) -> Read | Dropped:
    ranking = parse_preference(record)
    if isinstance(ranking, Dropped):
        return ranking
    prompt = TextPrompt(ranking.prompt_id, ranking.messages, ranking.kind)
    item = Item(prompt, tuple(Candidate(text) for text in ranking.responses))
    judgement = Judgement(
        item_id_of(item), ranking.annotator, ranks=ranking.ranks, soft=ranking.soft, axis=ranking.axis
    )
    return item, [Incoming(judgement)], {ranking.annotator: "unknown"}


def _read_kto(record: Record) -> Read:
    prompt, text, label = parse_prompt(record), record.value["completion"], record.value["label"]
    if not isinstance(text, str) or not isinstance(label, bool):
        raise DataError(f'{record.where}: "completion" must be text and "label" true or false')
    item = Item(prompt, (Candidate(text),))
    annotator = str(record.value.get("annotator") or UNKNOWN_ANNOTATOR)
    judgement = Judgement(item_id_of(item), annotator, ranks=(0,), ratings={LABEL: (float(label),)})
    return item, [Incoming(judgement)], {annotator: "unknown"}


def _read_ultrafeedback(record: Record) -> Read | Dropped:
    """Grades become ranks: the higher the overall score, the better; equal scores are ties."""
    completions = _parsed(record, "completions")
    instruction = record.value.get("instruction")
    if not isinstance(instruction, str) or not isinstance(completions, list):
        raise DataError(f'{record.where}: needs "instruction" as text and "completions" as a list')
    if len(completions) < 2:
        return Dropped("fewer_than_two_completions")
    try:
        texts = [str(each["response"]) for each in completions]
        models = [str(each.get("model", "")) for each in completions]
        scores = [float(each["overall_score"]) for each in completions]
        axes = dict.fromkeys(axis for each in completions for axis in each.get("annotations") or {})
        ratings = {axis: tuple(_rating(each, axis) for each in completions) for axis in axes}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'{record.where}: a completion needs "response", "overall_score" and ratings, the two as numbers or '
            f"N/A ({type(error).__name__}: {error})"
        ) from error
    messages = (Message("user", instruction),)
    candidates = tuple(Candidate(text, model) for text, model in zip(texts, models, strict=True))
    item = Item(TextPrompt(prompt_id_of(messages), messages), candidates)
    better = sorted(set(scores), reverse=True)
    ranks = tuple(better.index(score) for score in scores)
    annotator = str(record.value.get("source") or ULTRAFEEDBACK)
    judgement = Judgement(item_id_of(item), annotator, ranks=ranks, ratings=ratings)
    return item, [Incoming(judgement)], {annotator: "judge"}


def _rating(completion: Mapping[str, Any], axis: str) -> float | None:
    given = ((completion.get("annotations") or {}).get(axis) or {}).get("Rating", "N/A")
    return None if given in ("N/A", None) else float(given)


def _read_item(record: Record) -> Read:
    """What :func:`_whole` wrote."""
    try:
        messages = tuple(Message(**message) for message in _parsed(record, "messages"))
        facts = _parsed(record, "facts") or {}
        prompt = TextPrompt(str(record.value["id"]), messages, str(record.value.get("kind", "")), facts)
        candidates = tuple(
            Candidate(**{**each, "token_ids": tuple(each.get("token_ids", ()))})
            for each in _parsed(record, "candidates")
        )
        item = Item(prompt, candidates, tuple(record.value.get("gold_ranks") or ()))  # type: ignore[arg-type]
        rows = _parsed(record, "judgements")
        places = {row["judgement_id"]: place for place, row in enumerate(rows)}
        said = [_incoming(item_id_of(item), row, places) for row in rows]
        kinds = {row["annotator"]: row["annotator_kind"] for row in rows}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{record.where}: is no item as `export --shape store` writes it ({type(error).__name__}: {error})"
        ) from error
    return item, said, kinds


def _incoming(item_id: str, row: Json, places: Mapping[int, int]) -> Incoming:
    own = {name: row[name] for name in ("annotator", "verdict", "reason", "seconds", "guideline")}
    judgement = Judgement(
        item_id=item_id,
        ranks=tuple(row["ranks"]),
        ratings={axis: tuple(given) for axis, given in row["ratings"].items()},
        shown_order=tuple(row["shown_order"]),
        soft=tuple(SoftLabel(**label) for label in row.get("soft", ())),  # version 1 had neither this
        axis=row.get("axis", ""),  # nor this
        **own,
    )
    corrected = row["corrects"]
    return Incoming(judgement, None if corrected is None else places[corrected], row["at"])


def _parsed(record: Record, name: str) -> Any:
    """A value that Parquet files hold as JSON text."""
    value = record.value.get(name)
    return json.loads(value) if isinstance(value, str) else value
