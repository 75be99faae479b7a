"""An engine that sleeps while a trainer has its GPU: what it asks of vLLM, and in which order, with a fake vLLM."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.engines.generation import GenerationEngine
from rlhf_ray.engines.generation_settings import engine_args

VERSION = 3


class FakeLlm:
    """Writes down what it is asked. Requests would wait for ever while it sleeps: they are refused."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errored = False
        self.memory = {"weights", "kv_cache"}

    async def sleep(self, level: int, mode: str) -> None:
        self.calls.append(f"sleep {level} {mode}")
        self.memory = set()

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        self.calls.append(f"wake {' '.join(tags or ['all'])}")
        self.memory |= set(tags or ["weights", "kv_cache"])
        return len(self.memory) == 2

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.calls.append("pause")

    async def start_weight_update(self) -> None:
        assert "weights" in self.memory
        self.calls.append("start")

    async def update_weights(self, request: Any) -> None:
        assert "weights" in self.memory
        self.calls.append("update")

    async def collective_rpc(self, method: str, **arguments: Any) -> list[str]:
        return ["digest"]

    async def finish_weight_update(self, weight_version: str) -> None:
        self.calls.append("finish")

    async def resume_generation(self) -> None:
        assert len(self.memory) == 2, "resumed without room for keys and values"
        self.calls.append("resume")

    async def generate(self, prompt: Any, params: Any, request_id: str) -> Any:
        assert len(self.memory) == 2, "asked while it slept"
        self.calls.append("generate")
        raise StopHereError
        yield  # a generator


class StopHereError(Exception):
    """The request has arrived."""


def engine(*, sleeps: bool = True) -> tuple[GenerationEngine, FakeLlm]:
    made, llm = object.__new__(GenerationEngine), FakeLlm()
    made._llm, made._sleeps, made._asleep, made._keeps_kv = llm, sleeps, False, False  # type: ignore[assignment]
    made._failure, made._incoming_version, made._policy_version, made._first_version = None, None, VERSION, 0
    made._sampling, made._request_ids, made._max_model_len, made._vocab_size = set(), itertools.count(), 64, 100
    return made, llm


@pytest.mark.integration
async def test_it_wakes_for_a_sync_in_two_stages_weights_first() -> None:
    made, llm = engine()
    await made.sleep()
    await made.sleep()  # once more changes nothing
    await made.begin_weight_sync(VERSION + 1)
    await made.receive_weights({})
    assert llm.memory == {"weights"}
    await made.finish_weight_sync(VERSION + 1)
    assert llm.calls == [
        "sleep 1 wait",
        "wake weights",
        "pause",
        "start",
        "update",
        "finish",
        "wake kv_cache",
        "resume",
    ]
    assert made.policy_version == VERSION + 1


@pytest.mark.integration
async def test_an_engine_that_is_awake_is_not_woken() -> None:
    made, llm = engine()
    await made.begin_weight_sync(VERSION + 1)
    await made.finish_weight_sync(VERSION + 1)
    assert llm.calls == ["pause", "start", "finish", "resume"]


@pytest.mark.integration
async def test_whoever_asks_for_tokens_wakes_it() -> None:
    made, llm = engine()
    await made.sleep()
    with pytest.raises(StopHereError):
        await made.prompt_logprobs([1, 2, 3])
    assert llm.calls == ["sleep 1 wait", "wake all", "generate"]


async def test_one_that_was_not_built_for_it_stays_awake() -> None:
    made, llm = engine(sleeps=False)
    await made.sleep()
    assert llm.calls == []


def test_only_on_a_gpu_it_is_built_to_sleep() -> None:
    config = GenerationConfig(sleeps=True)
    assert engine_args("m", config, "cuda", "ipc")["enable_sleep_mode"] is True
    assert "enable_sleep_mode" not in engine_args("m", config, "cpu", "shared_memory")
    assert "enable_sleep_mode" not in engine_args("m", GenerationConfig(), "cuda", "ipc")


def test_kept_keys_and_values_serve_no_new_request() -> None:
    kept = engine_args("m", GenerationConfig(kv_on_sync="keep"), "cuda", "nccl")
    assert kept["enable_prefix_caching"] is False
    assert "enable_prefix_caching" not in engine_args("m", GenerationConfig(), "cuda", "nccl")
