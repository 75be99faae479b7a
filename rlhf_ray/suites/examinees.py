"""Who is asked: ``NAME=WHAT``, where WHAT is a stage of the run, a checkpoint, or an endpoint that serves a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urldefrag, urlsplit

from rlhf_ray.errors import ConfigError

FIELD = "--model"
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Examinee:
    """``where`` is a stage's name, a checkpoint or a URL. ``model`` is what an endpoint calls it; empty: its first."""

    name: str
    where: str
    model: str = ""

    @property
    def is_endpoint(self) -> bool:
        return urlsplit(self.where).scheme in ("http", "https")

    @classmethod
    def parse(cls, text: str) -> Examinee:
        """Read ``sft``, ``mine=path/to/checkpoint`` or ``served=http://host:8000/v1#model``.

        Raises ConfigError for an address without a name, and for a name that no file could have.
        """
        name, equals, where = text.partition("=")
        if not equals:
            name = where = text
            if "/" in text:
                raise ConfigError(FIELD, text, "has no name for the table", f"write NAME={text}")
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise ConfigError(
                FIELD, text, "must have a name of letters, digits, . _ and -", "write for example new=PATH"
            )
        if not where:
            raise ConfigError(FIELD, text, "names no checkpoint", "write NAME=PATH, NAME=STAGE or NAME=http://...")
        if urlsplit(where).scheme not in ("http", "https"):
            return cls(name, where)
        url, model = urldefrag(where)
        return cls(name, url.rstrip("/"), model)


def parse_examinees(texts: Sequence[str]) -> list[Examinee]:
    """Every model, each under its own name. Raises ConfigError."""
    examinees = [Examinee.parse(text) for text in texts]
    names = [each.name for each in examinees]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(FIELD, ", ".join(sorted(twice)), "is named twice", "give each model its own name")
    return examinees


def require_baseline(baseline: str, examinees: Sequence[Examinee]) -> str:
    """The name of the baseline: the first model where none is named. Raises ConfigError for one that is not there."""
    names = [each.name for each in examinees]
    if baseline and baseline not in names:
        raise ConfigError("--baseline", baseline, "is none of the models", f"choose one of {', '.join(names)}")
    return baseline or names[0]
