"""The GPU senders' arithmetic, on a CPU: what is packed is what the message describes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from rlhf_ray.engines.generation_senders import DeviceSender, NcclChannel, make_device_sender
from rlhf_ray.errors import ConfigError, WeightSyncError
from rlhf_ray.weight_sync.buckets import TensorMeta, view_slot
from rlhf_ray.weight_sync.checksum import device_bucket_digest, sync_digest
from rlhf_ray.weight_sync.message import BucketMessage
from rlhf_ray.weight_sync.topology import NcclGroup

TENSORS = {"a": torch.arange(40.0), "b": torch.ones(3, 5), "c": torch.tensor([2.5])}


class FakeExport:
    def __init__(self) -> None:
        self.walked: list[str] = []

    @property
    def metas(self) -> tuple[TensorMeta, ...]:
        return tuple(TensorMeta(name, "bfloat16", tuple(tensor.shape)) for name, tensor in TENSORS.items())

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            self.walked.append(name)
            yield name, TENSORS[name]


class FakeChannel:
    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []
        self.groups: list[NcclGroup] = []

    def join(self, group: NcclGroup) -> None:
        self.groups.append(group)

    def address(self, buffer: torch.Tensor | None) -> dict[str, Any]:
        return {"holds": buffer is not None}

    def send(self, buffer: torch.Tensor) -> None:
        self.sent.append(buffer.clone())

    def close(self) -> None:
        pass


def sender(channel: FakeChannel, *, is_source: bool, export: FakeExport | None = None) -> DeviceSender:
    return DeviceSender(
        export or FakeExport(), channel, bucket_bytes=100, is_source=is_source, holds_buffer=is_source, device="cpu"
    )


def test_the_bytes_sent_are_those_that_the_message_describes() -> None:
    channel = FakeChannel()
    source = sender(channel, is_source=True)
    source.begin()
    digests = []
    for index in range(source.num_buckets):
        message = BucketMessage.from_wire(source.offer(index))
        source.transmit(index)
        source.release(index)
        data = channel.sent[index]
        digests.append(device_bucket_digest(message.bucket, data))
        assert message.digest == digests[-1]
        for slot in message.bucket.slots:
            assert torch.equal(view_slot(data, slot), TENSORS[slot.meta.name].bfloat16())
    assert (source.num_buckets, source.num_bytes) == (2, 80 + 66)
    assert source.digest(7) == sync_digest(digests, 7)


def test_a_rank_that_does_not_send_still_takes_part_in_gathering() -> None:
    channel, export = FakeChannel(), FakeExport()
    rank = sender(channel, is_source=False, export=export)
    rank.join(NcclGroup(address="h", port=1, num_engines=1, workers_per_engine=1))
    for index in range(rank.num_buckets):
        assert rank.offer(index) == {}
        rank.transmit(index)
        rank.release(index)
    assert export.walked == ["a", "b", "c"]
    assert (channel.sent, channel.groups) == ([], [])


def test_begin_forgets_the_digests_of_the_last_sync() -> None:
    source = sender(FakeChannel(), is_source=True)
    digests = []
    for _ in range(2):
        source.begin()
        for index in range(source.num_buckets):
            source.offer(index)
            source.release(index)
        digests.append(source.digest(1))
    assert digests[0] == digests[1]


def test_nccl_does_not_send_before_it_has_met_the_engines() -> None:
    with pytest.raises(WeightSyncError, match="has not met the engines"):
        NcclChannel().send(torch.zeros(1))


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight_sync.transport \('carrier pigeon'\)"):
        make_device_sender(FakeExport(), backend="carrier pigeon", bucket_bytes=1, is_source=True)
