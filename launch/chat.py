"""``rlhf-ray chat``: finds the models, loads them into this process and lets a person talk to them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from rich.console import Console
from rich.text import Text

from launch.command import be_quiet, endpoint_key
from rlhf_ray.chat.screen import printable
from rlhf_ray.chat.session import Session
from rlhf_ray.chat.speakers import ChatSampling, EndpointSpeaker, Speaker
from rlhf_ray.errors import ConfigError
from rlhf_ray.pipeline.find_model import Found, find


def talk(
    models: Sequence[str],
    *,
    sampling: ChatSampling,
    system: str,
    chat_template: str,
    device: Literal["auto", "cpu", "cuda"],
    key_env: str,
) -> None:
    """Talk to one model or two until the person ends it. Raises ConfigError for a model that cannot be used."""
    be_quiet()
    key = endpoint_key(key_env)
    found = [find(models[0])]
    found += [find(text, found[0].run) for text in models[1:]]
    speakers = [_speaker(each, chat_template, device, key) for each in found]
    console = Console(highlight=False)
    console.print(Text(" | ".join(printable(speaker.name) for speaker in speakers) + "    /help", "bold"))
    with suppress(ImportError):
        import readline  # noqa: F401 -- gives input() a history and editing
    Session(console, speakers, sampling, system).run(input)


def _speaker(found: Found, chat_template: str, device: Literal["auto", "cpu", "cuda"], key: str) -> Speaker:
    if found.url:
        return EndpointSpeaker(found.url, found.model, key)
    import torch

    from rlhf_ray.chat.local import LocalSpeaker
    from rlhf_ray.data.chat import set_chat_template
    from rlhf_ray.pipeline.door import checkpoint_directory, read_tokenizer

    settings = found.settings
    directory = checkpoint_directory(found.path, field="MODEL")
    tokenizer = read_tokenizer(directory, settings, field="MODEL")
    template = chat_template or ("tokenizer" if tokenizer.chat_template else settings.chat_template)
    try:
        set_chat_template(tokenizer, template)
    except ConfigError as error:
        raise ConfigError("--chat-template", template, error.rule, error.remedy) from error
    chosen: Literal["cpu", "cuda"] = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if device == "cuda" and chosen == "cpu":
        raise ConfigError("--device", device, "is not there", "use --device cpu")
    return LocalSpeaker(found.name, str(directory), tokenizer, settings, chosen)
