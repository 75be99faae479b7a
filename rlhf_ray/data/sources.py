"""Where records come from: JSON Lines, a JSON array, Parquet, or a dataset of the hub when it is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import cast

from rlhf_ray.data.jsonl import Record, as_object, decode, read_bytes, read_jsonl
from rlhf_ray.data.recorded import require_file
from rlhf_ray.errors import ConfigError, DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

STORE = "store:"
_GAP = re.compile(r"[ \t\r\n,]*")
_HUB = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<subset>[\w.-]+))?(?::(?P<split>.+))?")


def check_source(source: str, *, field: str) -> None:
    """Raise ConfigError, naming ``field``, for a file that is missing or of an unknown kind; nothing is read."""
    if source.startswith(STORE):
        from rlhf_ray.feedback.store import require_store

        require_store(source.removeprefix(STORE), field=field)
    elif source.startswith("hub:"):
        if _HUB.fullmatch(source) is None:
            raise ConfigError(field, source, "is no hub dataset", "write hub:owner/name[/subset][:split]")
    elif not source.endswith(SUFFIXES):
        raise ConfigError(
            field, source, f"must end in one of {', '.join(SUFFIXES)}", "or be hub:owner/name, store:PATH"
        )
    else:
        require_file(Path(source), field=field, remedy="check the path")


def read_source(source: str) -> Iterator[Record]:
    """Yield the records of a file or of ``hub:owner/name[/subset][:split]`` (split ``train`` unless said), in order.

    ``store:PATH`` yields the rankings of a preference store that count, then what its ratings compare by axis. The
    network is used for ``hub:`` only.
    DataError names file and 1-based line (row for Parquet and hub) of what is malformed.
    """
    if source.startswith("hub:"):
        return _hub(source)
    if source.startswith(STORE):
        return _store(source)
    path = Path(source)
    if source.endswith(".parquet"):
        return _parquet(path)
    return read_jsonl(path) if source.endswith((".jsonl", ".jsonl.gz")) else _json_array(path)


def _json_array(path: Path) -> Iterator[Record]:
    text = decode(read_bytes(path), f"{path}:1")
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); write one array of objects"
        ) from error
    if not isinstance(items, list):
        raise DataError(f"{path}:1: a .json file must hold one array of objects, [{{...}}, ...]; or use .jsonl")
    for item, line in zip(items, _element_lines(text), strict=True):
        where = f"{path}:{line}"
        yield Record(as_object(item, where), where)


def _element_lines(text: str) -> Iterator[int]:
    """The line on which each element of a valid array begins."""
    decoder = json.JSONDecoder()
    line, counted, place = 1, 0, _past_gap(text, text.index("[") + 1)
    while text[place] != "]":
        line, counted = line + text.count("\n", counted, place), place
        yield line
        _, place = decoder.raw_decode(text, place)
        place = _past_gap(text, place)


def _past_gap(text: str, start: int) -> int:
    match = _GAP.match(text, start)
    return match.end() if match else start


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        yield from _rows((row for batch in batches for row in batch.to_pylist()), str(path))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({error})") from error


def _hub(source: str) -> Iterator[Record]:
    import datasets

    match = _HUB.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: is no hub dataset; write hub:owner/name[/subset][:split]")
    try:
        rows = datasets.load_dataset(match["name"], match["subset"], split=match["split"] or "train")
    except Exception as error:  # the errors of the hub client have no common base
        raise DataError(f"{source}: the hub dataset cannot be loaded ({type(error).__name__}: {error})") from error
    yield from _rows(cast(Iterable[Mapping[str, object]], rows), source)


def _store(source: str) -> Iterator[Record]:
    from rlhf_ray.feedback.exchange import axis_records, ranking_records
    from rlhf_ray.feedback.store import open_store

    with open_store(source.removeprefix(STORE)) as store:
        yield from _rows(chain(ranking_records(store), axis_records(store)), source)


def _rows(rows: Iterable[Mapping[str, object]], name: str) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        # A table has every column in every row: what a row does not have is None there.
        yield Record({key: value for key, value in row.items() if value is not None}, f"{name}:{number}")
