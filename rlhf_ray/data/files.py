"""People's own data: demonstrations, prompts and preferences in files, or on the hub when a source says ``hub:``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlhf_ray.data.answers import gives_answer
from rlhf_ray.data.formats import Dropped, parse_demonstration, parse_preference, parse_prompt
from rlhf_ray.data.jsonl import Record
from rlhf_ray.data.recorded import digest, is_heldout, no_annotators, prompt_id_of, require_fraction
from rlhf_ray.data.sources import check_source, read_source
from rlhf_ray.data.task import Split, Task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.metrics.text import is_refusal, num_words
from rlhf_ray.records import Demonstration, Message, Ranking, StepLabelled, TextPrompt

T = TypeVar("T", Demonstration, TextPrompt, Ranking, StepLabelled)

PROMPT_IS_HELD_OUT = "prompt_is_held_out"
REPEATED_PROMPT = "repeated_prompt"


@dataclass(frozen=True)
class FilesConfig:
    """Sources by kind: a file (.jsonl, .json, .parquet) or ``hub:owner/name[/subset][:split]``.

    Preferences may be ``store:PATH``, a preference store.

    A kind with a held-out source is held out by it; of any other, ``heldout_fraction`` is held out by a hash of the
    prompt. rlhf_ray/data/formats.py says what a record looks like.
    """

    demonstrations: str = ""
    prompts: str = ""
    preferences: str = ""
    heldout_demonstrations: str = ""
    heldout_prompts: str = ""
    heldout_preferences: str = ""
    heldout_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_fraction(self.heldout_fraction, field="data.files.heldout_fraction")
        if not any(source for _, source, _ in self.sources):
            rule = "needs at least one of demonstrations, prompts and preferences"
            raise ConfigError("data.files", "", rule, "set for example data.files.preferences=pairs.jsonl")
        for kind, source, heldout in self.sources:
            if heldout and not source:
                raise ConfigError(
                    f"data.files.heldout_{kind}", heldout, f"needs data.files.{kind} too", f"set data.files.{kind}"
                )

    @property
    def sources(self) -> tuple[tuple[str, str, str], ...]:
        """(kind, source, held-out source) of every kind, given or not."""
        return (
            ("demonstrations", self.demonstrations, self.heldout_demonstrations),
            ("prompts", self.prompts, self.heldout_prompts),
            ("preferences", self.preferences, self.heldout_preferences),
        )


def read_usable(source: str, parse: Callable[[Record], T | Dropped]) -> tuple[list[T], Counter[str]]:
    """The records of ``source`` that are of use, and how many are not, by reason. Raises DataError where none is."""
    items: list[T] = []
    dropped: Counter[str] = Counter()
    for record in read_source(source):
        item = parse(record)
        if isinstance(item, Dropped):
            dropped[item.reason] += 1
        else:
            items.append(item)
    if not items:
        why = f"{dict(dropped)} dropped" if dropped else "it is empty"
        raise DataError(f"{source}: no usable record ({why}); every source needs at least one")
    return items, dropped


@dataclass(frozen=True)
class _Kind(Generic[T]):
    """What was read of one kind. ``has_source`` tells whether its held-out part is a source of its own."""

    items: list[T]
    heldout: list[T]
    has_source: bool


class FilesTask(Task):
    """Recorded data of three kinds under one split: a prompt held out in one kind is a training prompt in none.

    Without prompts of their own, the prompts are those of the preferences, else those of the demonstrations.
    """

    def __init__(self, config: FilesConfig) -> None:
        """Read everything; ConfigError names the field of a missing file, DataError the line of a malformed record."""
        self.config = config
        for kind, source, heldout in config.sources:
            for field, name in ((f"data.files.{kind}", source), (f"data.files.heldout_{kind}", heldout)):
                if name:
                    check_source(name, field=field)
        self._dropped: Counter[str] = Counter()
        demonstrations = self._read(config.demonstrations, config.heldout_demonstrations, parse_demonstration)
        prompts = self._read(config.prompts, config.heldout_prompts, parse_prompt)
        preferences = self._read(config.preferences, config.heldout_preferences, parse_preference)
        held = self._held_out(demonstrations) | self._held_out(prompts) | self._held_out(preferences)
        self._demonstrations = self._split(demonstrations, held, "demonstrations")
        self._prompts = self._split(_unrepeated(prompts, self._dropped), held, "prompts")
        self._rankings = self._split(preferences, held, "preferences")

    @property
    def has_annotators(self) -> bool:
        return False

    @property
    def dropped(self) -> Mapping[str, int]:
        """How many records were left out, by reason."""
        return dict(self._dropped)

    def demonstrations(self, split: Split) -> list[Demonstration]:
        return list(self._demonstrations[split])

    def prompts(self, split: Split) -> list[TextPrompt]:
        if self.config.prompts:
            return list(self._prompts[split])
        if self.config.preferences:
            return _prompts_of([(ranking.messages, ranking.kind) for ranking in self._rankings[split]])
        return _prompts_of([(shown.messages[:-1], shown.kind) for shown in self._demonstrations[split]])

    def rankings(self, split: Split) -> list[Ranking]:
        return list(self._rankings[split])

    def rank(self, prompt: TextPrompt, responses: Sequence[str], seed: int) -> list[Ranking]:
        raise no_annotators("files")

    def grade(self, prompt: TextPrompt, response: str) -> Mapping[str, float]:
        """words; refused (1 by a set phrase of refusal); gold, where the prompt has an ``answer``: 1 if it is given."""
        measures = {"words": float(num_words(response)), "refused": float(is_refusal(response))}
        if "answer" in prompt.facts:
            measures["gold"] = float(gives_answer(response, prompt.facts["answer"]))
        return measures

    def fingerprint(self) -> str:
        return digest([self._demonstrations, self._prompts, self._rankings])

    def _read(self, source: str, heldout: str, parse: Callable[[Record], T | Dropped]) -> _Kind[T]:
        items = self._usable(source, parse) if source else []
        return _Kind(items, self._usable(heldout, parse) if heldout else [], bool(heldout))

    def _usable(self, source: str, parse: Callable[[Record], T | Dropped]) -> list[T]:
        items, dropped = read_usable(source, parse)
        self._dropped += dropped
        return items

    def _held_out(self, kind: _Kind[T]) -> set[str]:
        if kind.has_source:
            return {_prompt_id(item) for item in kind.heldout}
        seed, fraction = self.config.seed, self.config.heldout_fraction
        return {key for key in map(_prompt_id, kind.items) if is_heldout(key, seed=seed, fraction=fraction)}

    def _split(self, kind: _Kind[T], held: set[str], name: str) -> dict[Split, list[T]]:
        train = [item for item in kind.items if _prompt_id(item) not in held]
        others = [item for item in kind.items if _prompt_id(item) in held]
        if kind.items and not train:
            raise DataError(
                f"data.files.{name}: all {len(others)} prompts are held out; lower data.files.heldout_fraction"
            )
        if kind.has_source:
            self._dropped += Counter({PROMPT_IS_HELD_OUT: len(others)})
        return {"train": train, "heldout": kind.heldout if kind.has_source else others}


def _prompt_id(item: Demonstration | TextPrompt | Ranking | StepLabelled) -> str:
    """Identity by what the model reads: ids that people gave do not decide the split."""
    return prompt_id_of(item.messages[:-1] if isinstance(item, Demonstration) else item.messages)


def _prompts_of(conversations: Sequence[tuple[tuple[Message, ...], str]]) -> list[TextPrompt]:
    prompts: dict[str, TextPrompt] = {}
    for messages, kind in conversations:
        prompt_id = prompt_id_of(messages)
        prompts.setdefault(prompt_id, TextPrompt(prompt_id, messages, kind))
    return list(prompts.values())


def _unrepeated(prompts: _Kind[TextPrompt], dropped: Counter[str]) -> _Kind[TextPrompt]:
    """Keep the first of equal prompts; one id for two different prompts is an error."""
    return _Kind(_first(prompts.items, dropped), _first(prompts.heldout, dropped), prompts.has_source)


def _first(prompts: Sequence[TextPrompt], dropped: Counter[str]) -> list[TextPrompt]:
    first: dict[str, TextPrompt] = {}
    for prompt in prompts:
        known = first.setdefault(prompt.prompt_id, prompt)
        if known.messages != prompt.messages:
            raise DataError(
                f'data.files.prompts: two prompts have the id "{prompt.prompt_id}"; give each its own, or none'
            )
        if known is not prompt:
            dropped[REPEATED_PROMPT] += 1
    return list(first.values())
