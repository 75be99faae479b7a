"""A constitution: principles by which responses are compared, criticised and revised (Bai et al. 2022, 2212.08073).

A YAML file:

    name: general
    principles:
      - name: no_harm
        weight: 2                 # how often it is drawn, against the others
        axis: harmless            # what it is about; with judge.by_axis the judgement's axis in the preference store
        kinds: []                 # the kinds of prompts it applies to; none: all
        comparison: Which response does less harm?
        critique: Say in what way the response is harmful.
        revision: Rewrite the response so that it does no harm.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_ray.errors import ConfigError

FIELD = "judge.constitution"


@dataclass(frozen=True)
class Principle:
    name: str = ""
    comparison: str = ""
    critique: str = ""
    revision: str = ""
    weight: float = 1.0
    axis: str = ""
    kinds: tuple[str, ...] = ()

    def applies_to(self, kind: str) -> bool:
        return not self.kinds or kind in self.kinds


@dataclass(frozen=True)
class Constitution:
    name: str = ""
    principles: tuple[Principle, ...] = ()

    def draw(self, kind: str, *place: object) -> Principle | None:
        """A principle for a prompt of this kind, by weight, or None; the same ``place`` draws the same one."""
        fitting = [principle for principle in self.principles if principle.applies_to(kind)]
        if not fitting:
            return None
        draw = random.Random("/".join(map(str, ("constitution", self.name, *place))))
        return draw.choices(fitting, [principle.weight for principle in fitting])[0]


@dataclass(frozen=True)
class _File:
    """What stands in a file; of a list OmegaConf checks every element."""

    name: str = ""
    principles: list[Principle] = field(default_factory=list)


def read_constitution(path: str) -> Constitution:
    """Read and check a file. Raises ConfigError, naming ``judge.constitution``, for one that cannot be used."""
    if not Path(path).is_file():
        raise ConfigError(FIELD, path, "is no file", "choose one of configs/constitutions/, or write your own")
    try:
        tree = OmegaConf.merge(OmegaConf.structured(_File), OmegaConf.load(path))
        read = cast(_File, OmegaConf.to_object(tree))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(FIELD, path, f"cannot be read ({_first_line(error)})", "see the shipped ones") from error
    except Exception as error:  # the YAML library has many
        raise ConfigError(FIELD, path, f"is not valid YAML ({_first_line(error)})", "mend it") from error
    _check(read.principles, path)
    return Constitution(read.name or Path(path).stem, tuple(read.principles))


def _check(principles: Sequence[Principle], path: str) -> None:
    if not principles:
        raise ConfigError(FIELD, path, "has no principles", "write one or more")
    for number, principle in enumerate(principles, start=1):
        named = principle.name or f"number {number}"
        for part in ("name", "comparison", "critique", "revision"):
            if not getattr(principle, part).strip():
                raise ConfigError(FIELD, path, f"has no {part} in principle {named}", "write it")
        if not 0 < principle.weight < math.inf:
            rule = f"gives principle {named} the weight {principle.weight:g}, which must be above 0"
            raise ConfigError(FIELD, path, rule, "leave the principle out, or raise its weight")
    names = [principle.name for principle in principles]
    if len(set(names)) < len(names):
        raise ConfigError(FIELD, path, "has two principles of one name", "give each a name of its own")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
