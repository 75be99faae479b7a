"""Sampling responses with vLLM: tokens in, tokens and log-probabilities out, new weights between two requests.

The engine is vLLM's AsyncLLM, the same on CPUs and GPUs. vLLM is imported when an engine is built and not before, so
that anybody may import this module.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.engines.generation_lifetime import claim_ownership
from rlhf_ray.engines.generation_settings import (
    Device,
    TransferBackend,
    engine_args,
    require_checkpoint,
    require_cpu_head_size,
    require_settings,
    sampling_params,
    sleeps,
)
from rlhf_ray.errors import ConfigError, RlhfError, WeightSyncError
from rlhf_ray.records import FinishReason, GenerationRequest, IntArray, Rollout, SamplingSettings
from rlhf_ray.weight_sync.checksum import SyncReceipt

if TYPE_CHECKING:
    from vllm import AsyncLLMEngine, CompletionOutput, SamplingParams

WATCH_INTERVAL_S = 0.5
_SHUT_DOWN = "the engine was shut down"
_FINISH_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}


class GenerationError(RlhfError):
    """The engine stopped working; its process must be started again."""


def engine_environment(
    device: Device, config: GenerationConfig, backend: TransferBackend = "shared_memory"
) -> dict[str, str]:
    """Environment variables that an engine's process must be started with."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if device == "cpu":
        # More OpenMP threads than free cores collapse throughput; compiling costs 15 s and gains 5%.
        environment |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
        if config.tensor_parallel_size == 1:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the model lives in the engine's process
        else:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
                str(rank) for rank in range(config.tensor_parallel_size)
            )
    return environment


class GenerationEngine:
    """One vLLM engine and the version of the policy that it serves. Build it inside a running event loop.

    Args:
        model_path: a directory with a Hugging Face checkpoint in safetensors.
        config: how large and how fast.
        device: where the model runs.
        backend: how weights will arrive.
        policy_version: the version of the weights in ``model_path``.

    """

    def __init__(
        self,
        *,
        model_path: str,
        config: GenerationConfig,
        device: Device,
        backend: TransferBackend = "shared_memory",
        policy_version: int = 0,
    ) -> None:
        require_checkpoint(model_path)
        for name, value in engine_environment(device, config, backend).items():
            os.environ.setdefault(name, value)  # inherited by the engine's own process
        claim_ownership()
        from vllm import AsyncEngineArgs, AsyncLLMEngine

        self._origin = _origin(model_path, config, device, backend)
        vllm_config = AsyncEngineArgs(**engine_args(model_path, config, device, backend)).create_engine_config()
        if device == "cpu":
            require_cpu_head_size(vllm_config.model_config.get_head_size())
        self._llm: AsyncLLMEngine = AsyncLLMEngine.from_vllm_config(vllm_config, disable_log_stats=True)
        self._max_model_len: int = self._llm.model_config.max_model_len
        self._vocab_size: int = self._llm.model_config.get_vocab_size()
        self._sleeps, self._asleep = sleeps(config, device), False
        self._keeps_kv = config.kv_on_sync == "keep"
        self._first_version = policy_version
        self._policy_version = policy_version
        self._incoming_version: int | None = None
        self._failure: str | None = None
        self._sampling: set[asyncio.Future[Rollout]] = set()
        self._request_ids = itertools.count()

    @property
    def policy_version(self) -> int:
        """The version of the weights that the next token is sampled with."""
        return self._policy_version

    # -------------------------------------------------------------------------------------------------------- sampling
    async def generate(
        self, requests: Sequence[GenerationRequest], settings: SamplingSettings
    ) -> AsyncIterator[Rollout]:
        """Sample one response for each request and yield rollouts as they finish.

        A rollout depends on its request, the settings and the weights, and not on what else is in the batch. Sampling
        stops at ``settings.stop_token_ids`` alone: put EOS there. Leaving the iteration early aborts the rest.

        Raises ConfigError, before anything is submitted, for settings that the engine cannot honour or a prompt that
        does not fit; WeightSyncError after a failed sync; GenerationError when the engine died.
        """
        self._require_usable()
        require_settings(settings, self._vocab_size)
        for request in requests:
            self._require_fit(request, settings)
        await self.wake()
        tasks = [asyncio.ensure_future(self._rollout(request, settings)) for request in requests]
        self._sampling.update(tasks)
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            self._sampling.difference_update(tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def next_token_logprobs(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of each of ``token_ids`` as the first token after a prompt, at temperature 1."""
        from vllm import SamplingParams

        self._require_usable()
        if not 1 <= len(prompt_ids) < self._max_model_len:
            limit = self._max_model_len - 1
            raise ConfigError("prompt_ids", len(prompt_ids), f"must be 1 to {limit} tokens long", "give another prompt")
        await self.wake()
        params = SamplingParams(max_tokens=1, logprob_token_ids=list(token_ids), detokenize=False, temperature=1.0)
        output = await self._final_output(prompt_ids, params)
        at_first = output.outputs[0].logprobs[0]
        return [float(at_first[token].logprob) for token in token_ids]

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of tokens 1, 2, ... of a text given those before, at temperature 1; one fewer than tokens.

        Nothing is read from the prefix cache: this is what the weights say now.
        """
        from vllm import SamplingParams

        self._require_usable()
        if not 2 <= len(token_ids) < self._max_model_len:
            raise ConfigError(
                "token_ids", len(token_ids), f"must be 2 to {self._max_model_len - 1} tokens long", "give another text"
            )
        await self.wake()
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False, temperature=0.0)
        output = await self._final_output(token_ids, params)
        pairs = zip(token_ids[1:], output.prompt_logprobs[1:], strict=True)
        return [float(at_position[token].logprob) for token, at_position in pairs]

    async def _rollout(self, request: GenerationRequest, settings: SamplingSettings) -> Rollout:
        params = sampling_params(settings, request.seed)
        output = await self._final_output([int(token) for token in request.prompt_ids], params)
        completion = output.outputs[0]
        reason = _FINISH_REASONS.get(completion.finish_reason)
        if reason is None:
            raise GenerationError(
                f"rollout {request.rollout_id!r} ended with {completion.finish_reason!r}; sample it again"
            )
        logprobs = np.asarray(completion.logprobs.logprobs, dtype=np.float32)
        return Rollout(
            rollout_id=request.rollout_id,
            prompt_id=request.prompt_id,
            order=request.order,
            prompt_ids=request.prompt_ids,
            response_ids=np.asarray(completion.token_ids, dtype=np.int32),
            # At temperature 0 the distribution that was sampled from is a point.
            rollout_logprobs=logprobs if settings.temperature > 0 else np.zeros_like(logprobs),
            policy_versions=self._versions(completion),
            finish_reason=reason,
            seed=request.seed,
        )

    async def _final_output(self, token_ids: Sequence[int], params: SamplingParams) -> Any:
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        params.output_kind = RequestOutputKind.FINAL_ONLY
        prompt = {"prompt_token_ids": list(token_ids)}
        try:
            outputs = self._llm.generate(prompt, params, request_id=str(next(self._request_ids)))
            return [output async for output in outputs][-1]
        except asyncio.CancelledError:
            self._require_usable()  # cancelled by _fail: say why
            raise
        except (EngineDeadError, EngineGenerateError) as error:
            raise GenerationError(f"the engine failed ({error.__cause__ or error}); restart it") from error

    def _versions(self, completion: CompletionOutput) -> IntArray:
        """Policy version of each sampled token. A request that waited through a sync has more than one."""
        count = len(completion.token_ids)
        versions = np.full(count, self._policy_version, dtype=np.int32)
        for span in completion.weight_versions or ():
            # Until the first sync the engine has no label but this one.
            versions[span.start : span.end] = self._first_version if span.version == "default" else int(span.version)
        return versions

    def _require_fit(self, request: GenerationRequest, settings: SamplingSettings) -> None:
        length = len(request.prompt_ids)
        if length == 0 or length + settings.max_tokens > self._max_model_len:
            raise ConfigError(
                "generation.max_model_len",
                self._max_model_len,
                f"must hold a prompt of one token or more and its response: prompt {request.prompt_id!r} has {length}"
                f" tokens and max_tokens is {settings.max_tokens}",
                "raise it, lower max_tokens or drop the prompt",
            )
        if not 0 <= request.seed < 2**63:
            raise ConfigError("seed", request.seed, "must lie between 0 and 2**63 - 1", "derive it from the run's seed")
        low, high = int(np.min(request.prompt_ids)), int(np.max(request.prompt_ids))
        if low < 0 or high >= self._vocab_size:
            raise ConfigError(
                "prompt_ids",
                (low, high),
                f"must lie below the vocabulary's size, {self._vocab_size}",
                "use its tokenizer",
            )

    # ----------------------------------------------------------------------------------------------------- weight sync
    async def init_weight_sync(self, init_info: Mapping[str, Any]) -> None:
        """Meet the trainer, once, before the first sync (NCCL and IPC; shared memory needs nothing)."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        with self._failing_the_engine("init"):
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=dict(init_info)))

    async def begin_weight_sync(self, version: int) -> None:
        """Stop sampling and get ready for the weights of ``version``.

        Requests in flight freeze; they go on under the new weights, their prefix computed again or not as
        ``generation.kv_on_sync`` says. A sync under way is given up, for its trainer is lost: what it brought is not
        used.
        """
        self._require_usable()
        if version < 0:
            raise WeightSyncError(f"policy version {version} must not be negative; count syncs from 0")
        begun_before, self._incoming_version = self._incoming_version is not None, version
        with self._failing_the_engine("begin"):
            if begun_before:
                await self._llm.collective_rpc("abandon_weight_update")
            if self._asleep:
                await self._llm.wake_up(["weights"])  # there is no need of room for keys and values yet
            await self._llm.pause_generation(mode="keep", clear_cache=not self._keeps_kv)
            await self._llm.start_weight_update()

    async def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        """Load one bucket, or with NCCL and IPC whatever the trainer's sender describes. Any number of times."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._require_sync_under_way("receive_weights")
        with self._failing_the_engine("receive"):
            await self._llm.update_weights(WeightTransferUpdateRequest(update_info=dict(update_info)))

    async def finish_weight_sync(self, version: int, expected_digest: str | None = None) -> SyncReceipt:
        """Put the new weights in place, go on sampling and return what each worker received.

        With ``expected_digest`` the engine stays paused and this raises unless every worker received exactly that.
        """
        self._require_sync_under_way("finish_weight_sync")
        with self._failing_the_engine("finish"):
            if version != self._incoming_version:
                raise WeightSyncError(f"version {self._incoming_version} was begun and {version} is to be finished")
            digests = await self._llm.collective_rpc("weight_sync_digest", kwargs={"version": version})
            receipt = SyncReceipt(policy_version=version, digests=tuple(digests))
            if expected_digest is not None:
                receipt.require(expected_digest)
            await self._llm.finish_weight_update(weight_version=str(version))
            if self._asleep:
                await self._llm.wake_up(["kv_cache"])
                self._asleep = False
            await self._llm.resume_generation()
        self._policy_version, self._incoming_version = version, None
        return receipt

    async def load(self, model_path: str, policy_version: int | None = None) -> None:
        """Serve another checkpoint of the same architecture from now on: seconds less than a new engine.

        The policy version stays what it is, for it counts syncs, unless another one is given. Raises ConfigError for a
        directory without weights in safetensors, WeightSyncError where they are not those of this model; the engine
        must then be restarted.
        """
        require_checkpoint(model_path)
        version = self._policy_version if policy_version is None else policy_version
        await self.begin_weight_sync(version)
        with self._failing_the_engine("load"):
            await self._llm.collective_rpc("load_checkpoint", args=(model_path,))
        await self.finish_weight_sync(version)

    def _require_sync_under_way(self, verb: str) -> None:
        self._require_usable()
        if self._incoming_version is None:
            raise WeightSyncError(f"{verb} needs a sync under way; call begin_weight_sync first")

    def _require_usable(self) -> None:
        if self._failure is not None:
            raise WeightSyncError(f"{self._failure}; nothing can be sampled: restart the engine")

    def _fail(self, reason: str) -> None:
        """Nothing can be sampled from now on: callers that wait for a paused engine are told, and not left waiting."""
        self._failure = reason
        for task in self._sampling:
            task.cancel()

    @contextmanager
    def _failing_the_engine(self, verb: str) -> Iterator[None]:
        """Whatever interrupts a sync leaves layers half loaded: note it, so that nothing is sampled from them."""
        try:
            yield
        except BaseException as error:
            self._fail(f"weight sync to policy version {self._incoming_version} failed in {verb}: {error}")
            if isinstance(error, Exception) and self._llm.errored:
                raise GenerationError(f"the engine died in a {self._failure}; restart it") from error
            if isinstance(error, Exception):
                raise WeightSyncError(f"{self._failure}; the engine stays paused and must be restarted") from error
            raise

    async def watch(self) -> None:
        """Return when the engine is shut down. Raises GenerationError as soon as it has died."""
        while self._failure != _SHUT_DOWN:
            if self._llm.errored:
                raise GenerationError("the engine died; restart it")
            await asyncio.sleep(WATCH_INTERVAL_S)

    # ---------------------------------------------------------------------------------------------------------- memory
    async def sleep(self) -> None:
        """Give GPU memory back until the next sync or request; the host keeps the weights.

        Nothing happens where the engine was not built for it (``generation.sleeps``) or sleeps already.
        """
        self._require_usable()
        if self._sleeps and not self._asleep:
            self._asleep = True
            await self._llm.sleep(1, mode="wait")

    async def wake(self) -> None:
        """Take all memory again, with the weights of before. Nothing happens where the engine is awake."""
        if self._asleep:
            self._asleep = False  # others who ask meanwhile wait in the engine, which is paused
            await self._llm.wake_up()

    # --------------------------------------------------------------------------------------------------- several stages
    def fits(
        self, *, model_path: str, config: GenerationConfig, device: Device, backend: TransferBackend = "shared_memory"
    ) -> bool:
        """Whether an engine built from this would be this one, but for the weights."""
        return self._origin == _origin(model_path, config, device, backend)

    async def rest(self) -> bool:
        """Give up what is being sampled; whether the engine may serve others: it works, and is not amid a sync."""
        given_up = list(self._sampling)
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        return self._failure is None and self._incoming_version is None and not self._llm.errored

    async def shutdown(self) -> None:
        """Stop the engine and its processes; the engine cannot be used afterwards. Blocks until they are gone."""
        if self._failure != _SHUT_DOWN:
            self._fail(_SHUT_DOWN)
            await asyncio.sleep(0)
            # On the loop's own thread: vLLM's output task must not run between the end of its process and its own.
            self._llm.shutdown()
            # vLLM leaves the context of its sockets to the garbage collector.
            self._llm.engine_core.resources.ctx.destroy(linger=0)
            del self._llm


def _origin(model_path: str, config: GenerationConfig, device: Device, backend: TransferBackend) -> tuple[Any, ...]:
    """Everything about an engine but its weights."""
    require_checkpoint(model_path)
    architecture = json.loads((Path(model_path) / "config.json").read_text(encoding="utf-8"))
    for name in ("_name_or_path", "transformers_version"):
        architecture.pop(name, None)
    return architecture, config, device, backend
