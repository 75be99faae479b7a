"""The generation engine against a plain transformers forward: before, between and after weight syncs.

One engine for a model with an output head of its own and one for a model whose head is the embedding. The weights that
the engine must have are those of ``Served.model``.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray.config.generation import GenerationConfig
from rlhf_ray.engines.generation import GenerationEngine, engine_environment
from rlhf_ray.errors import ConfigError, WeightSyncError
from rlhf_ray.records import GenerationRequest, Rollout, SamplingSettings
from rlhf_ray.weight_sync.buckets import TensorMeta, plan_buckets, view_slot
from rlhf_ray.weight_sync.checksum import SyncReceipt, device_bucket_digest, sync_digest
from rlhf_ray.weight_sync.message import BucketMessage
from rlhf_ray.weight_sync.shared_memory import BucketFile, bucket_directory, write_bucket

VOCAB, EOS, CONTEXT = 300, 2, 512
CONFIG = GenerationConfig(dtype="float32", max_model_len=CONTEXT, kv_cache_memory_mb=64)


def tiny_model(*, tied: bool) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    return Qwen2ForCausalLM(config).eval()


@dataclass
class Served:
    """An engine, the model whose weights it should have, and the loop that it lives in."""

    model: Any
    engine: GenerationEngine
    runner: asyncio.Runner
    tied: bool

    def generate(self, requests: Sequence[GenerationRequest], settings: SamplingSettings) -> dict[str, Rollout]:
        return self.runner.run(collect(self.engine, requests, settings))

    def sync(self) -> SyncReceipt:
        change_weights(self.model)
        return self.runner.run(sync(self.engine, self.model, self.engine.policy_version + 1))


@pytest.fixture(scope="module", params=["untied", "tied"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = tiny_model(tied=request.param == "tied")
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        for name, value in engine_environment("cpu", CONFIG).items():
            patch.setenv(name, value)

        async def start() -> GenerationEngine:
            return GenerationEngine(model_path=str(path), config=CONFIG, device="cpu")

        engine = runner.run(start())
        try:
            yield Served(model=model, engine=engine, runner=runner, tied=request.param == "tied")
        finally:
            runner.run(engine.shutdown())


async def collect(
    engine: GenerationEngine, requests: Sequence[GenerationRequest], settings: SamplingSettings
) -> dict[str, Rollout]:
    return {rollout.rollout_id: rollout async for rollout in engine.generate(requests, settings)}


def change_weights(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def write_all(directory: Path, model: Any) -> list[BucketFile]:
    parameters = dict(model.named_parameters())
    metas = [TensorMeta.of(name, parameter) for name, parameter in parameters.items()]
    return [
        write_bucket(directory, bucket, [(slot.meta.name, parameters[slot.meta.name]) for slot in bucket.slots])
        for bucket in plan_buckets(metas, max_bytes=60_000)
    ]


async def sync(engine: GenerationEngine, model: Any, version: int) -> SyncReceipt:
    with bucket_directory() as directory:
        await engine.begin_weight_sync(version)
        files = write_all(directory, model)
        assert len(files) > 2
        for file in files:
            await engine.receive_weights(file.update_info)
            file.remove()
        return await engine.finish_weight_sync(version, sync_digest([file.digest for file in files], version))


def requests_of(lengths: Sequence[int], first_seed: int = 0) -> list[GenerationRequest]:
    rng = np.random.default_rng(len(lengths))
    return [
        GenerationRequest(
            rollout_id=f"p{i}/0",
            prompt_id=f"p{i}",
            order=i,
            prompt_ids=rng.integers(3, VOCAB, length).astype(np.int32),
            seed=first_seed + i,
        )
        for i, length in enumerate(lengths)
    ]


def expected_logprobs(model: Any, rollout: Rollout, temperature: float = 1.0) -> np.ndarray:
    """Log-probability of each sampled token, from the model's own forward over prompt and response."""
    tokens = torch.tensor(np.concatenate([rollout.prompt_ids, rollout.response_ids]), dtype=torch.long)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(tokens[None]).logits[0] / temperature, dim=-1)
    at_tokens = logprobs[:-1].gather(1, tokens[1:, None])[:, 0]
    return at_tokens[len(rollout.prompt_ids) - 1 :].numpy()


@pytest.mark.integration
def test_rollout_logprobs_are_those_of_the_distribution_that_was_sampled_from(served: Served) -> None:
    settings = SamplingSettings(temperature=0.7, max_tokens=150, stop_token_ids=(EOS, 7))
    requests = requests_of([1, 5, 40, 150, 200, 3, 7, 9])
    rollouts = served.generate(requests, settings)
    assert rollouts.keys() == {request.rollout_id for request in requests}
    for request in requests:
        rollout = rollouts[request.rollout_id]
        np.testing.assert_array_equal(rollout.prompt_ids, request.prompt_ids)
        np.testing.assert_allclose(rollout.rollout_logprobs, expected_logprobs(served.model, rollout, 0.7), atol=1e-3)
        stopped = np.isin(rollout.response_ids, settings.stop_token_ids)
        assert not stopped[:-1].any()
        assert rollout.finish_reason == ("stop" if stopped[-1] else "length")
        assert stopped[-1] or len(rollout.response_ids) == 150
        assert (rollout.policy_versions == 0).all()
    assert {rollout.finish_reason for rollout in rollouts.values()} == {"stop", "length"}


@pytest.mark.integration
def test_a_seed_gives_the_same_tokens_alone_and_in_any_company(served: Served) -> None:
    settings = SamplingSettings(max_tokens=40)
    requests = requests_of([4, 30, 140, 4])
    together = served.generate(requests, settings)
    others = [GenerationRequest(f"x{i}", "x", i, requests[0].prompt_ids, 900 + i) for i in range(20)]
    crowd = served.generate([*others, *reversed(requests)], settings)
    for request in requests:
        alone = served.generate([request], settings)[request.rollout_id]
        for other in (together[request.rollout_id], crowd[request.rollout_id]):
            np.testing.assert_array_equal(alone.response_ids, other.response_ids)
    assert not np.array_equal(crowd["x0"].response_ids, crowd["x1"].response_ids)


@pytest.mark.integration
@pytest.mark.parametrize("served", ["untied"], indirect=True)
def test_two_engines_sample_what_one_does_whatever_stands_beside_their_weights(served: Served, tmp_path: Path) -> None:
    """The second has another seed of its own, and sampling habits in the model's generation_config.json."""
    settings = SamplingSettings(temperature=0.9, max_tokens=40, stop_token_ids=(EOS,))
    requests = requests_of([4, 30, 140, 4, 12, 60], first_seed=70)
    by_one = served.generate(requests, settings)
    served.model.save_pretrained(tmp_path)
    habits = {"do_sample": True, "temperature": 0.1, "top_k": 1, "repetition_penalty": 2.0, "eos_token_id": [3, 4, 5]}
    (tmp_path / "generation_config.json").write_text(json.dumps(habits))

    async def both() -> dict[str, Rollout]:
        second = GenerationEngine(model_path=str(tmp_path), config=replace(CONFIG, seed=5), device="cpu")
        try:
            halves = [collect(served.engine, requests[0::2], settings), collect(second, requests[1::2], settings)]
            one, other = await asyncio.gather(*halves)
        finally:
            await second.shutdown()
        return one | other

    by_two = served.runner.run(both())
    assert by_two.keys() == by_one.keys()
    for name, rollout in by_one.items():
        np.testing.assert_array_equal(by_two[name].response_ids, rollout.response_ids)
        np.testing.assert_allclose(by_two[name].rollout_logprobs, rollout.rollout_logprobs, atol=1e-5)
    by_second = np.concatenate([by_two[request.rollout_id].response_ids for request in requests[1::2]])
    assert np.isin(by_second, habits["eos_token_id"]).any()  # and they ended nothing


@pytest.mark.integration
def test_another_checkpoint_is_served_as_an_engine_that_started_with_it_would(served: Served, tmp_path: Path) -> None:
    settings, requests = SamplingSettings(max_tokens=24), requests_of([4, 300, 60], first_seed=40)
    before, version = served.generate(requests, settings), served.engine.policy_version
    mine = copy.deepcopy(served.model.state_dict())
    change_weights(served.model)
    served.model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    served.runner.run(served.engine.load(str(tmp_path)))
    after = served.generate(requests, settings)
    assert served.engine.policy_version == version
    for rollout in after.values():
        np.testing.assert_allclose(rollout.rollout_logprobs, expected_logprobs(served.model, rollout), atol=1e-3)
    assert any((before[name].response_ids != after[name].response_ids).any() for name in before)
    served.model.load_state_dict(mine)
    served.model.save_pretrained(tmp_path / "first")
    served.runner.run(served.engine.load(str(tmp_path / "first")))
    again = served.generate(requests, settings)
    for name, rollout in before.items():
        np.testing.assert_array_equal(again[name].response_ids, rollout.response_ids)
        np.testing.assert_array_equal(again[name].rollout_logprobs, rollout.rollout_logprobs)


@pytest.mark.integration
def test_a_directory_without_weights_is_refused_and_the_engine_goes_on(served: Served, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a directory with config\.json and weights in safetensors"):
        served.runner.run(served.engine.load(str(tmp_path)))
    assert len(served.generate(requests_of([5]), SamplingSettings(max_tokens=3))) == 1


@pytest.mark.integration
def test_temperature_zero_takes_the_likeliest_token_with_certainty(served: Served) -> None:
    (rollout,) = served.generate(requests_of([12]), SamplingSettings(temperature=0.0, max_tokens=10)).values()
    tokens = torch.tensor(np.concatenate([rollout.prompt_ids, rollout.response_ids]), dtype=torch.long)
    with torch.no_grad():
        likeliest = served.model(tokens[None]).logits[0].argmax(-1)[11:-1]
    np.testing.assert_array_equal(rollout.response_ids, likeliest.numpy())
    np.testing.assert_array_equal(rollout.rollout_logprobs, np.zeros(10, dtype=np.float32))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("length", "settings", "message"),
    [
        (500, SamplingSettings(max_tokens=13), r"max_model_len \(512\) .* 'p0' has 500 tokens and max_tokens is 13"),
        (0, SamplingSettings(), "'p0' has 0 tokens"),
        (4, SamplingSettings(temperature=0.001), r"sampling.temperature \(0.001\)"),
        (4, SamplingSettings(top_p=0.0), r"sampling.top_p \(0.0\)"),
        (4, SamplingSettings(top_k=-1), r"sampling.top_k \(-1\)"),
        (4, SamplingSettings(max_tokens=0), r"sampling.max_tokens \(0\)"),
        (4, SamplingSettings(stop_token_ids=(VOCAB,)), "below the vocabulary's size, 300"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    length: int, settings: SamplingSettings, message: str, served: Served
) -> None:
    with pytest.raises(ConfigError, match=message):
        served.generate(requests_of([length]), settings)


@pytest.mark.integration
def test_every_sync_reaches_the_kernels_and_the_prefix_cache(served: Served) -> None:
    # CPU blocks are 128 tokens long: 300 tokens leave two of them in the prefix cache.
    requests, settings = requests_of([300, 6]), SamplingSettings(max_tokens=12)
    text = [int(token) for token in requests[0].prompt_ids]
    served.generate(requests, settings)
    for version in (1, 2, 3):
        receipt = served.sync()
        assert receipt.policy_version == served.engine.policy_version == version
        for rollout in served.generate(requests, settings).values():
            np.testing.assert_allclose(rollout.rollout_logprobs, expected_logprobs(served.model, rollout), atol=1e-3)
            assert (rollout.policy_versions == version).all()
        whole_text = Rollout("t", "t", 0, np.array(text[:1]), np.array(text[1:]), *[np.zeros(0)] * 2, "length", 0)
        fingerprint = served.runner.run(served.engine.prompt_logprobs(text))
        np.testing.assert_allclose(fingerprint, expected_logprobs(served.model, whole_text), atol=1e-3)


@pytest.mark.integration
def test_next_token_logprobs_are_those_of_a_plain_forward_at_temperature_1(served: Served) -> None:
    prompt, wanted = list(range(10, 40)), [7, 3, 200]
    found = served.runner.run(served.engine.next_token_logprobs(prompt, wanted))
    with torch.no_grad():
        logprobs = served.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    np.testing.assert_allclose(found, logprobs[wanted].numpy(), atol=1e-3)


@pytest.mark.integration
def test_tokens_sampled_around_a_sync_carry_the_version_of_their_weights(served: Served) -> None:
    old = tiny_model(tied=served.tied)
    old.load_state_dict(served.model.state_dict())
    change_weights(served.model)
    before = served.engine.policy_version

    async def sync_while_sampling() -> dict[str, Rollout]:
        settings = SamplingSettings(max_tokens=300)
        sampling = asyncio.ensure_future(collect(served.engine, requests_of([140] * 16, first_seed=50), settings))
        await asyncio.sleep(0.3)
        await sync(served.engine, served.model, before + 1)
        return await sampling

    rollouts = served.runner.run(sync_while_sampling()).values()
    for rollout in rollouts:
        is_old = rollout.policy_versions == before
        assert ((rollout.policy_versions == before + 1) == ~is_old).all()
        assert (np.diff(rollout.policy_versions) >= 0).all()
        expected = np.where(is_old, expected_logprobs(old, rollout), expected_logprobs(served.model, rollout))
        np.testing.assert_allclose(rollout.rollout_logprobs, expected, atol=1e-3)
    assert any(len(set(rollout.policy_versions)) == 2 for rollout in rollouts)


@pytest.mark.integration
def test_kept_keys_and_values_are_of_earlier_weights_and_serve_no_new_request(tmp_path: Path) -> None:
    model = tiny_model(tied=False)
    model.save_pretrained(tmp_path)
    old = tiny_model(tied=False)
    old.load_state_dict(model.state_dict())
    requests, settings = requests_of([140] * 8, first_seed=50), SamplingSettings(max_tokens=200)

    async def sync_while_sampling() -> tuple[dict[str, Rollout], dict[str, Rollout]]:
        engine = GenerationEngine(model_path=str(tmp_path), config=replace(CONFIG, kv_on_sync="keep"), device="cpu")
        try:
            sampling = asyncio.ensure_future(collect(engine, requests, settings))
            await asyncio.sleep(0.3)
            change_weights(model)
            await sync(engine, model, 1)
            return await sampling, await collect(engine, requests, settings)
        finally:
            await engine.shutdown()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment("cpu", CONFIG).items():
            patch.setenv(name, value)
        mixed, fresh = asyncio.run(sync_while_sampling())
    for rollout in fresh.values():
        np.testing.assert_allclose(rollout.rollout_logprobs, expected_logprobs(model, rollout), atol=1e-3)
    rollouts = [rollout for rollout in mixed.values() if len(set(rollout.policy_versions)) == 2]
    assert rollouts
    for rollout in rollouts:
        before = rollout.policy_versions == 0
        np.testing.assert_allclose(rollout.rollout_logprobs[before], expected_logprobs(old, rollout)[before], atol=1e-3)
        new = expected_logprobs(model, rollout)[~before]
        assert np.abs(rollout.rollout_logprobs[~before] - new).max() > 1e-2  # neither the one policy nor the other


class FakeCommunicator:
    """Broadcasts the same bytes to whoever asks."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    def broadcast(self, buffer: torch.Tensor, src: int) -> None:
        assert src == 0
        buffer.copy_(self.data)


class FakeModel:
    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Any) -> None:
        self.loaded.update(weights)


@pytest.mark.integration
def test_a_broadcast_bucket_is_loaded_only_if_its_bytes_are_those_announced() -> None:
    from rlhf_ray.engines.generation_transfer import NcclReceiver

    tensors = {"a": torch.randn(5, 3), "b": torch.arange(4)}
    (bucket,) = plan_buckets([TensorMeta.of(name, tensor) for name, tensor in tensors.items()], max_bytes=1000)
    data = torch.zeros(bucket.nbytes, dtype=torch.uint8)
    for slot in bucket.slots:
        view_slot(data, slot).copy_(tensors[slot.meta.name])
    receiver = object.__new__(NcclReceiver)
    receiver.device, receiver.digests, receiver.model = torch.device("cpu"), [], FakeModel()
    receiver.communicator = FakeCommunicator(data)
    message = BucketMessage(bucket=bucket, digest=device_bucket_digest(bucket, data), address={}).to_wire()
    receiver.update_weights(message)
    assert all(torch.equal(receiver.model.loaded[name], tensor) for name, tensor in tensors.items())
    assert receiver.digest(4) == sync_digest([message["digest"]], 4)
    data[3] ^= 1
    with pytest.raises(WeightSyncError, match="bucket 0 arrived with digest"):
        receiver.update_weights(message)


@pytest.mark.integration
def test_a_sync_whose_trainer_was_lost_in_the_middle_is_followed_by_a_whole_one(served: Served) -> None:
    """Some layers are complete when the second begins, others are not; what counts is what the second brings."""
    version = served.engine.policy_version + 1

    async def lose_in_the_middle() -> None:
        with bucket_directory() as directory:
            await served.engine.begin_weight_sync(version)
            files = write_all(directory, served.model)
            for file in files[: len(files) // 2 + 1]:
                await served.engine.receive_weights(file.update_info)

    change_weights(served.model)
    served.runner.run(lose_in_the_middle())
    change_weights(served.model)
    served.runner.run(sync(served.engine, served.model, version))
    text = [5, 6, 7, 8, 9, 10]
    with torch.no_grad():
        rows = served.model(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
    expected = rows.gather(1, torch.tensor(text[1:])[:, None])[:, 0].tolist()
    assert served.runner.run(served.engine.prompt_logprobs(text)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.integration
def test_an_engine_whose_sync_failed_stays_silent_until_it_is_restarted(served: Served) -> None:
    """The last test of an engine: a flipped byte for one, missing buckets for the other."""

    waiting: list[asyncio.Future[Any]] = []

    async def break_sync() -> None:
        settings = SamplingSettings(max_tokens=400)
        waiting.append(asyncio.ensure_future(collect(served.engine, requests_of([4] * 8), settings)))
        await asyncio.sleep(0.1)
        with bucket_directory() as directory:
            files = write_all(directory, served.model)
            await served.engine.begin_weight_sync(9)
            if not served.tied:
                data = torch.from_file(str(files[1].path), shared=True, size=files[1].bucket.nbytes, dtype=torch.uint8)
                data[17] ^= 1
                await served.engine.receive_weights(files[0].update_info)
                await served.engine.receive_weights(files[1].update_info)
            await served.engine.receive_weights(files[0].update_info)
            await served.engine.finish_weight_sync(9)

    fault = "arrived with digest" if not served.tied else "the sync is incomplete"
    with pytest.raises(WeightSyncError, match=f"{fault}.*must be restarted"):
        served.runner.run(break_sync())
    with pytest.raises(WeightSyncError, match="nothing can be sampled: restart the engine"):
        served.runner.run(asyncio.wait_for(waiting[0], timeout=10))
    with pytest.raises(WeightSyncError, match="nothing can be sampled: restart the engine"):
        served.generate(requests_of([4]), SamplingSettings())
    with pytest.raises(WeightSyncError, match="restart the engine"):
        served.runner.run(served.engine.begin_weight_sync(10))


def test_a_checkpoint_without_safetensors_is_refused_before_the_engine_is_imported(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"must be a directory with .* weights in safetensors"):
        GenerationEngine(model_path=str(tmp_path), config=CONFIG, device="cpu")


def test_a_cpu_engine_is_given_one_thread_and_no_compiler() -> None:
    environment = engine_environment("cpu", CONFIG)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["TORCHDYNAMO_DISABLE"] == "1"
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    two = engine_environment("cpu", GenerationConfig(tensor_parallel_size=2))
    assert two["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in two
    assert "OMP_NUM_THREADS" not in engine_environment("cuda", CONFIG)
