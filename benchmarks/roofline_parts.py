"""The work of one PPO step done by its bare parts, each alone: vLLM, plain torch, a copy of the weights.

No Ray, no DeepSpeed, nothing of the driver. Each measurer lives in a process of its own and is idle between two turns.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

SCORE = ("reference", "reward_model")
TRAIN = ("old_logprobs", "values", "policy_update", "critic_update")
PARTS = ("generate", *SCORE, *TRAIN, "copy")


@dataclass(frozen=True)
class Work:
    """One step: its models, its size, and what they compute in."""

    policy: str
    reward_model: str
    prompts: int
    prompt_tokens: int
    response_tokens: int
    micro_batch: int
    dtype: str

    @property
    def length(self) -> int:
        return self.prompt_tokens + self.response_tokens


@contextmanager
def bare_parts(work: Work, threads: int) -> Iterator[Callable[[], dict[str, float]]]:
    """What takes all parts once, one after the other, and returns the seconds of each."""
    with measurer(engine_part, work, threads) as generate, measurer(torch_parts, work, threads) as others:
        yield lambda: {**generate(), **others()}


@contextmanager
def measurer(measure: Callable[..., None], work: Work, threads: int) -> Iterator[Callable[[], dict[str, float]]]:
    """``measure`` in a new process: it takes its parts once each time that it is asked, after a first time unasked."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the process starts
    try:
        process = context.Process(target=measure, args=(there, work, threads))
        process.start()
        there.close()
    finally:
        del os.environ["OMP_NUM_THREADS"]

    def ask() -> dict[str, float]:
        here.send("again")
        seconds: dict[str, float] = here.recv()
        return seconds

    try:
        here.recv()
        yield ask
    finally:
        here.close()
        process.join()


def serve(connection: Connection, take: Callable[[], dict[str, float]]) -> None:
    """Warm up, then take the parts whenever asked, until the other end is closed."""
    take()
    connection.send("ready")
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(take())


# ----------------------------------------------------------------------------------------------------------- generation
def engine_part(connection: Connection, work: Work, threads: int) -> None:
    """vLLM alone, with the settings that our generators give it."""
    import numpy as np

    from rlhf_ray.config.generation import GenerationConfig
    from rlhf_ray.engines.generation import GenerationEngine
    from rlhf_ray.records import GenerationRequest, SamplingSettings

    config = GenerationConfig(dtype=work.dtype, max_model_len=work.length)  # type: ignore[arg-type]
    drawn = np.random.default_rng(0).integers(10, 500, (work.prompts, work.prompt_tokens)).astype(np.int32)
    requests = [GenerationRequest(str(i), str(i), i, row, seed=i) for i, row in enumerate(drawn)]
    settings = SamplingSettings(temperature=1.0, max_tokens=work.response_tokens)

    async def built() -> GenerationEngine:
        return GenerationEngine(model_path=work.policy, config=config, device="cpu")

    with asyncio.Runner() as runner:
        engine = runner.run(built())

        async def sample() -> int:
            return sum([len(rollout.response_ids) async for rollout in engine.generate(requests, settings)])

        def take() -> dict[str, float]:
            begun = time.perf_counter()
            tokens = runner.run(sample())
            assert tokens == work.prompts * work.response_tokens
            return {"generate": time.perf_counter() - begun}

        serve(connection, take)
        runner.run(engine.shutdown())


# ---------------------------------------------------------------------------------------------------------------- torch
def torch_parts(connection: Connection, work: Work, threads: int) -> None:
    """Forward passes, updates and the copy, in plain torch over transformers' own models."""
    import torch

    torch.set_num_threads(threads)
    parts = TorchParts(work)
    serve(connection, lambda: {name: seconds_of(getattr(parts, name)) for name in (*SCORE, *TRAIN, "copy")})


def seconds_of(part: Callable[[], None]) -> float:
    begun = time.perf_counter()
    part()
    return time.perf_counter() - begun


class TorchParts:
    """Each part is a method of its name. Only sampled tokens pass through the vocabulary's head, as with us."""

    def __init__(self, work: Work) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        dtype = getattr(torch, work.dtype)

        def causal() -> Any:
            return AutoModelForCausalLM.from_pretrained(work.policy, dtype=dtype)

        def scalar() -> Any:
            return AutoModelForSequenceClassification.from_pretrained(work.reward_model, dtype=dtype)

        self._work = work
        self._reference, self._reward, self._policy, self._critic = causal(), scalar(), causal(), scalar()
        self._steps = {id(model): Adam(model) for model in (self._policy, self._critic)}
        rows = torch.randint(10, 500, (work.prompts, work.length), generator=torch.Generator().manual_seed(0))
        self._batches = rows.split(work.micro_batch)
        size = sum(parameter.nbytes for parameter in self._policy.parameters())
        self._bytes = torch.zeros(size, dtype=torch.uint8)
        self._room = torch.zeros_like(self._bytes)

    def reference(self) -> None:
        self._forwards(self._reference, self._log_likelihood)

    def reward_model(self) -> None:
        self._forwards(self._reward, self._values)

    def old_logprobs(self) -> None:
        self._forwards(self._policy, self._log_likelihood)

    def values(self) -> None:
        self._forwards(self._critic, self._values)

    def policy_update(self) -> None:
        self._update(self._policy, self._log_likelihood)

    def critic_update(self) -> None:
        self._update(self._critic, self._values)

    def copy(self) -> None:
        self._room.copy_(self._bytes)

    def _forwards(self, model: Any, forward: Callable[[Any, Any], Any]) -> None:
        import torch

        with torch.inference_mode():
            for rows in self._batches:
                forward(model, rows)

    def _update(self, model: Any, forward: Callable[[Any, Any], Any]) -> None:
        for rows in self._batches:
            forward(model, rows).square().mean().backward()
        self._steps[id(model)].step()

    def _log_likelihood(self, model: Any, rows: Any) -> Any:
        """Of the sampled tokens, [B * R]."""
        import torch

        hidden = model.model(input_ids=rows, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, self._work.prompt_tokens - 1 : -1]).float()
        targets = rows[:, self._work.prompt_tokens :].flatten()
        return -torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")

    def _values(self, model: Any, rows: Any) -> Any:
        """Of the states before the sampled tokens, [B, R, 1]."""
        hidden = model.model(input_ids=rows, use_cache=False).last_hidden_state
        return model.score(hidden[:, self._work.prompt_tokens - 1 : -1]).float()


class Adam:
    """AdamW on float32 weights; a model in bfloat16 gets a copy of them after each step."""

    def __init__(self, model: Any) -> None:
        import torch

        self._weights: Sequence[Any] = list(model.parameters())
        self._whole = all(weight.dtype == torch.float32 for weight in self._weights)
        self._masters = self._weights if self._whole else [weight.detach().float() for weight in self._weights]
        self._optimizer = torch.optim.AdamW(self._masters, lr=1e-6)

    def step(self) -> None:
        import torch

        if not self._whole:
            for weight, master in zip(self._weights, self._masters, strict=True):
                master.grad = weight.grad.float()
        self._optimizer.step()
        with torch.no_grad():
            for weight, master in zip(self._weights, self._masters, strict=True):
                weight.grad = None
                if not self._whole:
                    weight.copy_(master)
        self._optimizer.zero_grad()
