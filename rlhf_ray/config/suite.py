"""A suite: what every checkpoint is asked, and how its answers are graded. One YAML file each: configs/suites/."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlhf_ray.config.checks import require, require_between, require_not_negative, require_positive
from rlhf_ray.config.load import load_structured

Kind: TypeAlias = Literal["prompts", "questions", "refusals", "text"]
NAME = re.compile(r"[\w-]+")
TASK = "task"  # as a source: the run's own held-out prompts
GRADERS = ("task", "reward", "judge")  # beside functions, which are named as rewards are
RULES = ("exact", "number", "choice", "contains")
OF_KIND = (  # fields that belong to one kind, and what they are elsewhere
    ("prompts", "graders", ()),
    ("questions", "grader", "exact"),
    ("questions", "pass_at", ()),
)


@dataclass(frozen=True)
class SuiteConfig:
    """``prompts`` are graded by whoever ``graders`` name, ``questions`` have answers, ``refusals`` are harmful or
    harmless, and of ``text`` it is measured how likely the model finds it.

    A grader is ``task`` (the run's ground truth), ``reward`` (the run's sources of rewards), ``judge`` (the run's
    judge, against the baseline), a built-in reward function or ``package.module:name``.
    """

    kind: Kind = "prompts"
    source: str = TASK  # a file beside this one, hub:owner/name, or the run's own held-out prompts
    name: str = ""  # empty: the file's
    num_items: int | None = None  # the first so many; None: all

    graders: tuple[str, ...] = ()  # of prompts; none: task and reward where the run has them
    grader: str = "exact"  # of questions: exact, number, choice, contains, or a function
    arguments: dict[str, Any] = field(default_factory=dict)  # of functions
    pass_at: tuple[int, ...] = ()  # of questions: pass@k for these k

    system: str = ""  # a message before every prompt that has none of its own
    samples: int = 1  # responses to each prompt
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 128
    seed: int = 0
    timeout_s: float = 30.0  # of one call of a function

    def __post_init__(self) -> None:
        require_positive(
            samples=self.samples, max_tokens=self.max_tokens, timeout_s=self.timeout_s, num_items=self.num_items or 1
        )
        require_not_negative(temperature=self.temperature, seed=self.seed)
        require_between(0.001, 1, top_p=self.top_p)
        self._require_kind()
        require(
            not self.name or NAME.fullmatch(self.name) is not None,
            field="name",
            value=self.name,
            rule="must be letters, digits, _ and -: files are called after it",
            remedy="choose another name, or leave it out",
        )
        require(
            self.samples == 1 or self.temperature > 0,
            field="samples",
            value=self.samples,
            rule="would all be the same at temperature 0",
            remedy="use one sample, or a temperature above 0",
        )
        for k in self.pass_at:
            require(
                1 <= k <= self.samples,
                field="pass_at",
                value=k,
                rule=f"must lie between 1 and samples ({self.samples})",
                remedy="raise samples, or leave it out",
            )

    def _require_kind(self) -> None:
        for kind, name, default in OF_KIND:
            value = getattr(self, name)
            require(
                self.kind == kind or tuple(value) == tuple(default),
                field=name,
                value=value,
                rule=f"belongs to kind={kind}, and kind is {self.kind}",
                remedy=f"leave it out, or set kind: {kind}",
            )
        require(
            self.kind == "prompts" or self.source != TASK,
            field="source",
            value=self.source,
            rule=f"must name a file for kind={self.kind}",
            remedy="give a file of records, or hub:owner/name",
        )
        require(
            self.kind != "prompts" or self.source == TASK or bool(self.graders),
            field="graders",
            value=tuple(self.graders),
            rule="must name somebody who grades the answers to prompts of a file",
            remedy="use [judge], [reward] or a function",
        )
        require(
            self.source == TASK or TASK not in self.graders,
            field="graders",
            value=tuple(self.graders),
            rule="names the task's ground truth, which knows the task's own prompts alone",
            remedy="leave source out, or task",
        )
        wrong = [name for name in self.functions if name in RULES or name in GRADERS]
        require(
            not wrong,
            field="graders",
            value=wrong,
            rule="must be task, reward, judge or a function",
            remedy="rules like exact grade questions: use kind: questions and grader",
        )

    @property
    def functions(self) -> tuple[str, ...]:
        """Reward functions that grade."""
        if self.kind == "questions":
            return () if self.grader in RULES else (self.grader,)
        return tuple(name for name in self.graders if name not in GRADERS)


def load_suite(path: str | Path) -> SuiteConfig:
    """Read and check a suite; a source that is a file is found beside the suite's, or from the working directory.

    Raises ConfigError like :func:`rlhf_ray.config.load.load_config`.
    """
    suite = load_structured(path, SuiteConfig)
    beside = Path(path).parent / suite.source
    source = str(beside) if suite.source != TASK and beside.is_file() else suite.source
    return replace(suite, name=suite.name or Path(path).stem, source=source)
