"""Digests: the same for the same bytes, another for anything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync import checksum
from rlhf_ray.weight_sync.buckets import Bucket, TensorMeta, fill_bucket, plan_buckets
from rlhf_ray.weight_sync.checksum import (
    SyncReceipt,
    bucket_digest,
    device_bucket_digest,
    sync_digest,
    tensor_checksum,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int64, torch.bool]


def random_tensor(dtype: torch.dtype, numel: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = torch.empty(0, dtype=dtype).element_size()
    data = torch.randint(0, 2 if dtype == torch.bool else 256, (numel * width,), dtype=torch.uint8, generator=generator)
    return data.view(dtype)


def slow_checksum(tensor: torch.Tensor, chunk: int) -> int:
    """The formula in Python's unbounded integers, modulo 2**64 at the end."""
    width = min(tensor.element_size(), 4)
    kind = {1: np.uint8, 2: np.int16, 4: np.int32}[width]
    words = [int(word) for word in np.frombuffer(tensor.contiguous().view(torch.uint8).numpy().tobytes(), dtype=kind)]
    total = 0
    for start in range(0, len(words), chunk):
        part = sum(word * (2 * index + 1) for index, word in enumerate(words[start : start + chunk]))
        total = total * 0x9E3779B97F4A7C15 + part
    total %= 1 << 64
    return total - (1 << 64) if total >= 1 << 63 else total


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_checksum_equals_the_formula_in_unbounded_integers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksum, "_CHUNK", 16)
    tensor = random_tensor(dtype, 75)
    assert int(tensor_checksum(tensor)) == slow_checksum(tensor, chunk=16)


@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_every_single_flipped_bit_changes_the_checksum(dtype: torch.dtype) -> None:
    tensor = random_tensor(dtype, 9)
    data = tensor.view(torch.uint8)
    seen = {int(tensor_checksum(tensor))}
    for bit in range(8 * data.numel()):
        data[bit // 8] ^= 1 << (bit % 8)
        seen.add(int(tensor_checksum(tensor)))
        data[bit // 8] ^= 1 << (bit % 8)
    assert len(seen) == 8 * data.numel() + 1


@pytest.mark.parametrize("chunk", [4, 1 << 22])
def test_every_swap_of_two_elements_changes_the_checksum(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum, "_CHUNK", chunk)
    tensor = torch.arange(1, 13, dtype=torch.bfloat16)
    before = int(tensor_checksum(tensor))
    for i in range(12):
        for j in range(i):
            swapped = tensor.clone()
            swapped[i], swapped[j] = tensor[j], tensor[i]
            assert int(tensor_checksum(swapped)) != before


def test_checksum_ignores_strides_and_takes_empty_tensors() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    assert int(tensor_checksum(tensor.t())) == int(tensor_checksum(tensor.t().contiguous()))
    assert int(tensor_checksum(torch.empty(0))) == 0


def bucket_of(tensors: dict[str, torch.Tensor]) -> tuple[Bucket, torch.Tensor]:
    (bucket,) = plan_buckets([TensorMeta.of(name, tensor) for name, tensor in tensors.items()], max_bytes=1 << 20)
    data = torch.zeros(bucket.nbytes, dtype=torch.uint8)
    fill_bucket(data, bucket, tensors.items())
    return bucket, data


@pytest.mark.parametrize("digest", [bucket_digest, device_bucket_digest])
def test_bucket_digest_notices_a_bit_an_element_a_tensor_and_a_name(digest) -> None:  # type: ignore[no-untyped-def]
    first, second = torch.randn(8, 8), torch.randn(8, 8)
    bucket, data = bucket_of({"first": first, "second": second})
    again = digest(*bucket_of({"first": first.clone(), "second": second.clone()}))
    flipped, exchanged = data.clone(), first.clone()
    flipped[5] ^= 16
    exchanged[0, 0], exchanged[0, 1] = first[0, 1], first[0, 0]
    others = [
        digest(bucket, flipped),
        digest(*bucket_of({"first": exchanged, "second": second})),
        digest(*bucket_of({"first": second, "second": first})),
        digest(*bucket_of({"second": first, "first": second})),
        digest(*bucket_of({"first": first.reshape(64), "second": second})),
    ]
    assert digest(bucket, data) == again
    assert len({again, *others}) == 6


def test_sync_digest_depends_on_order_count_and_version() -> None:
    digests = [
        sync_digest(["a", "b"], 1),
        sync_digest(["b", "a"], 1),
        sync_digest(["a"], 1),
        sync_digest(["a", "b"], 2),
    ]
    assert len(set(digests)) == 4
    assert sync_digest(["a", "b"], 1) == digests[0]


def test_receipt_names_the_worker_that_received_something_else() -> None:
    SyncReceipt(policy_version=3, digests=("x", "x")).require("x")
    with pytest.raises(WeightSyncError, match=r"version 3: workers \[1\] of 2"):
        SyncReceipt(policy_version=3, digests=("x", "y")).require("x")
    with pytest.raises(WeightSyncError, match="of 0"):
        SyncReceipt(policy_version=3, digests=()).require("x")
