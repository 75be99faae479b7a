"""The prompt template of a judge: a Jinja file with ``prompt``, ``response_a``, ``response_b`` and ``principle``.

It runs in a sandbox, since people pass templates on. A name that is none of these is an error, and so is a template
that does not show both responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlhf_ray.data.recorded import digest
from rlhf_ray.errors import ConfigError
from rlhf_ray.records import Message

BUILT_IN = Path(__file__).parent / "templates" / "compare.j2"
FIELD = "judge.template"


class CompareTemplate:
    """Makes the question of two responses to a prompt."""

    def __init__(self, source: str, name: str) -> None:
        """Raises ConfigError for a template that cannot be read or leaves one of the responses out."""
        self.name = f"{name}@{digest([source])[:8]}"
        self._path = name
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
        )
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(FIELD, name, f"is no Jinja template ({error})", "mend it") from error
        for principle in ("", "<principle>"):
            shown = self.render((Message("user", "<prompt>"),), "<first>", "<second>", principle)
            for part in ("<prompt>", "<first>", "<second>", principle):
                if part not in shown:
                    rule = f"does not show the {part.strip('<>')} where it has one"
                    raise ConfigError(FIELD, name, rule, "use prompt, response_a, response_b and principle")

    @classmethod
    def read(cls, path: str) -> CompareTemplate:
        """The template in a file; the built-in one where ``path`` is empty."""
        file = Path(path) if path else BUILT_IN
        try:
            return cls(file.read_text(encoding="utf-8"), file.name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(FIELD, path, f"cannot be read ({error})", "check the path") from error

    def render(self, prompt: Sequence[Message], response_a: str, response_b: str, principle: str) -> str:
        """The question as text. What responses say is never read as a template."""
        try:
            return self._template.render(
                prompt=conversation(prompt), response_a=response_a, response_b=response_b, principle=principle
            ).strip()
        except TemplateError as error:
            raise ConfigError(FIELD, self._path, f"cannot be filled in ({error})", "mend it") from error


def conversation(messages: Sequence[Message]) -> str:
    """One message as it is, several with who says them."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)
