"""Buckets: what travels together, and where in the bytes."""

from __future__ import annotations

import pytest
import torch

from rlhf_ray.errors import ConfigError, WeightSyncError
from rlhf_ray.weight_sync.buckets import ALIGNMENT, Bucket, TensorMeta, fill_bucket, plan_buckets, view_slot
from rlhf_ray.weight_sync.message import BucketMessage

METAS = (
    TensorMeta("embed", "float32", (10, 3)),  # 120 bytes
    TensorMeta("norm", "bfloat16", (3,)),  # 6 bytes
    TensorMeta("scale", "float32", ()),  # 4 bytes
    TensorMeta("head", "float32", (100,)),  # 400 bytes
    TensorMeta("bias", "float32", (2,)),  # 8 bytes
)


def names(bucket: Bucket) -> list[str]:
    return [slot.meta.name for slot in bucket.slots]


def test_buckets_keep_the_order_and_stay_below_the_limit() -> None:
    buckets = plan_buckets(METAS, max_bytes=190)
    assert [names(bucket) for bucket in buckets] == [["embed", "norm"], ["scale"], ["head"], ["bias"]]
    assert [bucket.index for bucket in buckets] == [0, 1, 2, 3]
    assert [slot.offset for slot in buckets[0].slots] == [0, 128]
    assert [bucket.nbytes for bucket in buckets] == [134, 4, 400, 8]


def test_a_bucket_that_just_fits_is_not_cut() -> None:
    metas = METAS[:2]
    assert len(plan_buckets(metas, max_bytes=134)) == 1
    assert len(plan_buckets(metas, max_bytes=133)) == 2


def test_every_tensor_starts_at_the_alignment_and_none_overlaps() -> None:
    (bucket,) = plan_buckets(METAS, max_bytes=10_000)
    assert all(slot.offset % ALIGNMENT == 0 for slot in bucket.slots)
    ends = [slot.end for slot in bucket.slots]
    assert all(slot.offset >= end for slot, end in zip(bucket.slots[1:], ends, strict=False))
    assert bucket.nbytes == ends[-1]


def test_a_tensor_above_the_limit_gets_a_bucket_of_its_own() -> None:
    assert [names(bucket) for bucket in plan_buckets(METAS, max_bytes=1)] == [[meta.name] for meta in METAS]


def test_no_tensors_make_no_buckets() -> None:
    assert plan_buckets((), max_bytes=8) == ()


def test_a_limit_below_one_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_bytes \(0\) must be at least 1"):
        plan_buckets(METAS, max_bytes=0)


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(WeightSyncError, match="'norm' is listed twice"):
        plan_buckets([METAS[1], METAS[1]], max_bytes=100)


def test_a_dtype_that_cannot_travel_is_refused() -> None:
    with pytest.raises(WeightSyncError, match="complex64"):
        TensorMeta.of("phase", torch.zeros(2, dtype=torch.complex64))


def test_filled_bytes_hold_every_tensor_cast_to_the_dtype_of_the_plan() -> None:
    (bucket,) = plan_buckets(METAS, max_bytes=10_000)
    torch.manual_seed(0)
    tensors = {meta.name: torch.randn(meta.shape, dtype=torch.float64) for meta in METAS}
    data = torch.zeros(bucket.nbytes, dtype=torch.uint8)
    fill_bucket(data, bucket, tensors.items())
    for slot in bucket.slots:
        torch.testing.assert_close(
            view_slot(data, slot), tensors[slot.meta.name].to(slot.meta.torch_dtype), rtol=0, atol=0
        )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("norm", torch.zeros(3))], "'embed' is next in the plan and 'norm' was given"),
        ([("embed", torch.zeros(10, 3))], "'norm' is next in the plan and 'nothing' was given"),
        ([("embed", torch.zeros(3, 10))], r"shape \(3, 10\) and the plan says \(10, 3\)"),
    ],
)
def test_tensors_that_differ_from_the_plan_are_refused(tensors: list[tuple[str, torch.Tensor]], message: str) -> None:
    (bucket,) = plan_buckets(METAS[:2], max_bytes=1000)
    with pytest.raises(WeightSyncError, match=message):
        fill_bucket(torch.zeros(bucket.nbytes, dtype=torch.uint8), bucket, tensors)


def test_a_message_survives_the_wire() -> None:
    (bucket,) = plan_buckets(METAS, max_bytes=10_000)
    message = BucketMessage(bucket=bucket, digest="abc", address={"path": "/dev/shm/x"})
    assert BucketMessage.from_wire(message.to_wire()) == message


@pytest.mark.parametrize("change", [{"names": ["one"]}, {"shapes": None}, {"nbytes": 3}, {"offsets": [-64] * 5}])
def test_a_message_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    (bucket,) = plan_buckets(METAS, max_bytes=10_000)
    wire = BucketMessage(bucket=bucket, digest="abc", address={}).to_wire()
    with pytest.raises(WeightSyncError):
        BucketMessage.from_wire({**wire, **change})
