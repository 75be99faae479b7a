"""One vLLM engine as an async actor: many shards are sampled at the same time, in one running batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.records import GenerationRequest, Rollout, RolloutSummary, SamplingSettings


class GeneratorActor:
    """``arguments`` are those of GenerationEngine."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._engine: Any = None

    async def start(self) -> None:
        """Load the model; the engine wants a running event loop."""
        from rlhf_ray.engines.generation import GenerationEngine

        self._engine = GenerationEngine(**self._arguments)

    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> tuple[tuple[Rollout, ...], tuple[RolloutSummary, ...]]:
        """Sample one shard; two objects, so that the rollouts stay here and their summaries travel."""
        rollouts = sorted([r async for r in self._engine.generate(requests, settings)], key=lambda r: r.order)
        return tuple(rollouts), tuple(r.summary for r in rollouts)

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        result: list[float] = await self._engine.prompt_logprobs(token_ids)
        return result

    async def load(self, model_path: str) -> None:
        await self._engine.load(model_path)

    async def init_weight_sync(self, init_info: Mapping[str, Any]) -> None:
        await self._engine.init_weight_sync(init_info)

    async def begin_weight_sync(self, version: int) -> None:
        await self._engine.begin_weight_sync(version)

    async def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        await self._engine.receive_weights(update_info)

    async def finish_weight_sync(self, version: int, expected_digest: str) -> Any:
        return await self._engine.finish_weight_sync(version, expected_digest)

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()
