"""What was found out before is not found out again: an append-only file of results by the hash of their causes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.suite import SuiteConfig
from rlhf_ray.data.jsonl import cut_half_line, read_jsonl
from rlhf_ray.errors import DataError
from rlhf_ray.records import Message


@dataclass(frozen=True)
class Response:
    """What a model said. ``num_tokens`` are sampled ones, EOS included, or what an endpoint bills."""

    text: str
    num_tokens: int
    finished: bool  # ended by itself, not at the limit


def key_of(*parts: object) -> str:
    """Equal parts have equal keys: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def response_key(identity: Mapping[str, object], messages: Sequence[Message], suite: SuiteConfig, sample: int) -> str:
    """Of a response: whoever is asked, the conversation, how it is sampled, and which of several samples it is."""
    sampling = [suite.temperature, suite.top_p, suite.max_tokens, suite.seed]
    return key_of("response", dict(identity), [asdict(message) for message in messages], sampling, sample)


class Kept:
    """Results by key, one JSON object a line. One process writes at a time."""

    def __init__(self, path: Path) -> None:
        """Open, or make, the file at ``path``. Raises DataError, with its line, for one that is damaged."""
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_half_line(path)
        self._values: dict[str, dict[str, Any]] = {}
        for record in read_jsonl(path) if path.exists() else ():
            key, value = record.value.get("key"), record.value.get("value")
            if not isinstance(key, str) or not isinstance(value, dict):
                raise DataError(f"{record.where}: is no kept result; move the file away to ask anew")
            self._values[key] = value
        self._file = path.open("ab", buffering=0)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> dict[str, Any] | None:
        return self._values.get(key)

    def append(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a result: it is with the system when this returns."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False)
        self._file.write(line.encode("utf-8", "replace") + b"\n")
        self._values[key] = dict(value)

    def response(self, key: str) -> Response | None:
        value = self.get(key)
        return None if value is None else Response(value["text"], value["num_tokens"], value["finished"])

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
