"""A suite with its items read: prompts, or texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from rlhf_ray.config.suite import TASK, SuiteConfig
from rlhf_ray.data.recorded import digest
from rlhf_ray.data.sources import check_source, read_source
from rlhf_ray.data.task import Task
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.records import Message, TextPrompt
from rlhf_ray.suites.formats import HARMFUL, HARMLESS, parse_item, parse_text


@dataclass(frozen=True)
class Suite:
    """``prompts`` have different ids; ``texts`` are there for kind ``text`` alone."""

    config: SuiteConfig
    prompts: tuple[TextPrompt, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name

    @classmethod
    def read(cls, config: SuiteConfig, task: Task) -> Suite:
        """Read and check every item. Raises ConfigError for a source that is not there, DataError for a record."""
        if config.source == TASK:
            return cls(config, _with_system(task.prompts("heldout")[: config.num_items], config.system))
        check_source(config.source, field=f"{config.name}: source")
        records = islice(read_source(config.source), config.num_items)
        if config.kind == "text":
            texts = tuple(text for record in records if (text := parse_text(record)).strip())
            _require_some(config, len(texts))
            return cls(config, texts=texts)
        first: dict[str, TextPrompt] = {}
        for record in records:
            prompt = parse_item(record, config.kind)
            if first.setdefault(prompt.prompt_id, prompt).messages != prompt.messages:
                raise DataError(f'{record.where}: another prompt has the id "{prompt.prompt_id}"; give each its own')
        _require_some(config, len(first))
        suite = cls(config, _with_system(list(first.values()), config.system))
        if config.kind == "refusals":
            suite._require_both_kinds()
        return suite

    def _require_both_kinds(self) -> None:
        """A model that refuses everything would be perfect on harmful prompts alone."""
        found = {prompt.kind for prompt in self.prompts}
        if missing := {HARMFUL, HARMLESS} - found:
            raise ConfigError(
                f"{self.name}: source",
                self.config.source,
                f"has no {' and no '.join(sorted(missing))} prompt among the {len(self.prompts)} that are asked",
                "add some that look alike, or raise num_items: refusals mean nothing without both",
            )

    @property
    def fingerprint(self) -> str:
        """Of all that is asked."""
        return digest([self.texts, [prompt.messages for prompt in self.prompts]])[:16]


def _require_some(config: SuiteConfig, count: int) -> None:
    if not count:
        raise DataError(f"{config.name}: {config.source} holds nothing to ask; add records")


def _with_system(prompts: list[TextPrompt], system: str) -> tuple[TextPrompt, ...]:
    if not system:
        return tuple(prompts)
    return tuple(
        prompt
        if prompt.messages[0].role == "system"
        else replace(prompt, messages=(Message("system", system), *prompt.messages))
        for prompt in prompts
    )
