"""One vLLM engine as an async actor: many shards are sampled at the same time, in one running batch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from actors.pulse import Watched
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked
from rlhf_ray.records import GenerationRequest, IntArray, Rollout, RolloutSummary, SamplingSettings


class GeneratorActor(Watched):
    """Serves one stage after another; an engine that fits the next one stays, with other weights."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._watch: asyncio.Future[None] | None = None

    @booked(Account.START_UP)
    async def start(self, *, model_path: str, **arguments: Any) -> str:
        """Serve a checkpoint as version 0; the address of this node. ``arguments`` are those of GenerationEngine.

        Not in the constructor: an engine wants a running event loop.
        """
        import ray

        from rlhf_ray.engines.generation import GenerationEngine

        if self._engine is not None and self._engine.fits(model_path=model_path, **arguments):
            await self._engine.load(model_path, policy_version=0)
        else:
            await self.close()
            self._engine = GenerationEngine(model_path=model_path, **arguments)
        return str(ray.util.get_node_ip_address())

    async def watch(self) -> None:
        """Wait for ever: fails when this process dies, and raises GenerationError when its engine does."""
        self._watch = asyncio.ensure_future(self._engine.watch())
        await self._watch

    @booked(Account.GENERATION)
    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> tuple[tuple[Rollout, ...], tuple[RolloutSummary, ...]]:
        """Sample one shard; two objects, so that the rollouts stay here and their summaries travel."""
        rollouts = sorted([r async for r in self._engine.generate(requests, settings)], key=lambda r: r.order)
        return tuple(rollouts), tuple(r.summary for r in rollouts)

    @booked(Account.GENERATION)
    async def next_token_logprobs(self, prompts: Sequence[IntArray], token_ids: Sequence[int]) -> list[list[float]]:
        """One list a prompt; the engine batches them as it can."""
        lists = [self._engine.next_token_logprobs([int(t) for t in prompt], token_ids) for prompt in prompts]
        return list(await asyncio.gather(*lists))

    @booked(Account.SYNC)
    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        result: list[float] = await self._engine.prompt_logprobs(token_ids)
        return result

    @booked(Account.START_UP)
    async def load(self, model_path: str) -> None:
        await self._engine.load(model_path)

    @booked(Account.SYNC)
    async def init_weight_sync(self, init_info: Mapping[str, Any]) -> None:
        await self._engine.init_weight_sync(init_info)

    @booked(Account.SYNC)
    async def begin_weight_sync(self, version: int) -> None:
        await self._engine.begin_weight_sync(version)

    @booked(Account.SYNC)
    async def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        await self._engine.receive_weights(update_info)

    @booked(Account.SYNC)
    async def finish_weight_sync(self, version: int, expected_digest: str) -> Any:
        return await self._engine.finish_weight_sync(version, expected_digest)

    @booked(Account.SYNC)
    async def sleep(self) -> None:
        await self._engine.sleep()

    @booked(Account.START_UP)
    async def rest(self) -> bool:
        """Leave the stage; whether another one may be served."""
        if self._watch is not None:
            self._watch.cancel()
        return self._engine is None or bool(await self._engine.rest())

    @booked(Account.START_UP)
    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()
            self._engine = None
