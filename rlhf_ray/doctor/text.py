"""Do tokenizer, template, model and data agree?"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.doctor.facts import Facts
from rlhf_ray.doctor.findings import Finding, error, note, ok, warning

MANY_REPEATED = 0.05
MANY_TOO_LONG = 0.10
MANY_PASSES = 20


def vocabulary(facts: Facts) -> Iterator[Finding]:
    """Every token has an embedding, and a response can end."""
    text = facts.text
    if text.not_fetched:
        path = facts.config.model.path
        yield note("model.path", f"{path} is not on this machine: its tokenizer is not checked", "the run fetches it")
        return
    if not text.tokenizer_size:
        return  # what could not be read was raised at the door
    if text.eos_token is None:
        yield error("tokenizer.eos_token", "none is set: no response would end", "set it in tokenizer_config.json")
    if text.tokenizer_size > text.embeddings:
        found = f"the tokenizer has {text.tokenizer_size} tokens and the model {text.embeddings} embeddings"
        yield error("model.path", found, "resize the embeddings, or use the model's own tokenizer")
    elif text.eos_token is not None:
        found = f"{text.tokenizer_size} tokens, {text.embeddings} embeddings; a turn ends with {text.eos_token}"
        yield ok("tokenizer", found)


def padding(facts: Facts) -> Iterator[Finding]:
    """Padding is masked here; other programs that load the checkpoint may not."""
    text = facts.text
    if text.tokenizer_size and text.pad_token is None:
        yield note("tokenizer.pad_token", "none is set", "set one where other programs will batch with the checkpoint")
    elif text.tokenizer_size and text.pad_token == text.eos_token:
        found = "it is the EOS token: programs that mask padding by its id never learn to stop"
        yield note("tokenizer.pad_token", found, "give padding a token of its own")


def prompts(facts: Facts) -> Iterator[Finding]:
    """Prompts that are empty, repeated or too long."""
    for each in facts.data.prompts:
        name, found = f"data, {each.split} prompts", []
        if each.empty:
            yield warning(name, f"{each.empty} of {each.read} are empty", "leave them out of the file")
            found.append("empty")
        if each.repeated > MANY_REPEATED * each.read:
            yield warning(name, f"{each.repeated} of {each.read} stand there before", "remove what is repeated")
            found.append("repeated")
        if each.too_long > MANY_TOO_LONG * each.read:
            share = f"{each.too_long} of {each.read} are too long and left out"
            yield warning(name, share, "raise model.max_length, or lower ppo.max_response_tokens")
            found.append("long")
        if not found and each.read:
            yield ok(name, f"{each.read} read: {each.repeated} repeated, {each.too_long} too long")


def leakage(facts: Facts) -> Iterator[Finding]:
    """Held-out prompts that are trained on make every held-out number too good."""
    if facts.data.leaked:
        found = f"{facts.data.leaked} held-out prompts stand among the training prompts"
        yield error("data, held-out prompts", found, "split by prompt")


def passes(facts: Facts) -> Iterator[Finding]:
    """How often PPO comes back to the same prompt."""
    ppo, read = facts.config.ppo, [p.read - p.too_long for p in facts.data.prompts if p.split == "training"]
    if "ppo" not in facts.config.methods or not read or not read[0]:
        return
    number = ppo.num_steps * ppo.prompts_per_step / read[0]
    if number > MANY_PASSES:
        found = f"each of {read[0]} prompts comes {number:.0f} times in {ppo.num_steps} steps"
        yield warning("ppo.num_steps", found, "bring more prompts, or fewer steps")


def not_read(facts: Facts) -> Iterator[Finding]:
    """Sources of the hub are left to the run."""
    for source in facts.data.not_read:
        yield note("data", f"{source} is on the hub and was not read", "the run reads and checks it when it starts")


CHECKS = (vocabulary, padding, prompts, leakage, passes, not_read)
