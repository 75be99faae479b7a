"""Bucket files: what a worker maps is what was written, and nothing is left behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf_ray.errors import WeightSyncError
from rlhf_ray.weight_sync.buckets import Bucket, TensorMeta, fill_bucket, plan_buckets, view_slot
from rlhf_ray.weight_sync.checksum import bucket_digest
from rlhf_ray.weight_sync.message import BucketMessage
from rlhf_ray.weight_sync.shared_memory import bucket_directory, map_bytes, write_bucket

TENSORS = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.tensor([1, 2, 3], dtype=torch.int64)}


@pytest.fixture
def bucket() -> Bucket:
    (bucket,) = plan_buckets([TensorMeta.of(name, tensor) for name, tensor in TENSORS.items()], max_bytes=1000)
    return bucket


def test_a_mapped_file_holds_the_tensors_and_its_digest(tmp_path: Path, bucket: Bucket) -> None:
    file = write_bucket(tmp_path, bucket, TENSORS.items())
    message = BucketMessage.from_wire(file.update_info)
    data = map_bytes(Path(message.address["path"]), message.bucket.nbytes)
    assert file.path.stat().st_size == bucket.nbytes
    assert bucket_digest(message.bucket, data) == message.digest == file.digest
    for slot in message.bucket.slots:
        torch.testing.assert_close(view_slot(data, slot), TENSORS[slot.meta.name], rtol=0, atol=0)


def test_a_mapping_outlives_the_removal_of_its_file(tmp_path: Path, bucket: Bucket) -> None:
    file = write_bucket(tmp_path, bucket, TENSORS.items())
    data = map_bytes(file.path, bucket.nbytes)
    file.remove()
    assert list(tmp_path.iterdir()) == []
    torch.testing.assert_close(view_slot(data, bucket.slots[0]), TENSORS["weight"], rtol=0, atol=0)


def test_what_a_worker_writes_into_its_mapping_stays_with_the_worker(tmp_path: Path, bucket: Bucket) -> None:
    file = write_bucket(tmp_path, bucket, TENSORS.items())
    map_bytes(file.path, bucket.nbytes).zero_()
    assert bucket_digest(bucket, map_bytes(file.path, bucket.nbytes)) == file.digest


def test_tensors_are_cast_and_laid_out_with_their_padding(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0), "empty": torch.zeros(0), "scalar": torch.tensor(2.0), "b": torch.ones(3, 2).T}
    metas = [TensorMeta(name, "bfloat16", tuple(tensor.shape)) for name, tensor in tensors.items()]
    (bucket,) = plan_buckets(metas, max_bytes=1000)
    file = write_bucket(tmp_path, bucket, tensors.items())
    data, packed = map_bytes(file.path, bucket.nbytes), torch.zeros(bucket.nbytes, dtype=torch.uint8)
    fill_bucket(packed, bucket, tensors.items())
    torch.testing.assert_close(data, packed, rtol=0, atol=0)
    assert file.digest == bucket_digest(bucket, packed)


def test_two_writes_of_one_bucket_are_two_files(tmp_path: Path, bucket: Bucket) -> None:
    assert write_bucket(tmp_path, bucket, TENSORS.items()).path != write_bucket(tmp_path, bucket, TENSORS.items()).path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": TENSORS["weight"]}, "'bias' is next in the plan and 'nothing' was given"),
        ({**TENSORS, "weight": torch.zeros(4, 3)}, r"shape \(4, 3\) and the plan says \(3, 4\)"),
    ],
)
def test_nothing_is_left_behind_when_a_write_fails(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path, bucket: Bucket
) -> None:
    with pytest.raises(WeightSyncError, match=message):
        write_bucket(tmp_path, bucket, tensors.items())
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_system_is_an_error_and_not_a_crash(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullFile(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    def opened(descriptor: int, mode: str) -> FullFile:
        os.close(descriptor)
        return FullFile()

    monkeypatch.setattr(os, "fdopen", opened)
    with pytest.raises(WeightSyncError, match=r"has no room for a bucket of 88 bytes"):
        write_bucket(tmp_path, bucket, TENSORS.items())
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_gone_after_an_exception(tmp_path: Path, bucket: Bucket) -> None:
    def fail() -> None:
        with bucket_directory(tmp_path) as directory:
            write_bucket(directory, bucket, TENSORS.items())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_a_directory_that_the_next_one_removes(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from rlhf_ray.weight_sync.shared_memory import bucket_directory\n"
        "with bucket_directory(Path(sys.argv[1])) as directory:\n"
        "    (directory / 'bucket').touch(); print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (abandoned,) = tmp_path.iterdir()
        with bucket_directory(tmp_path):
            assert abandoned.exists()  # its owner lives
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert abandoned.exists()
    with bucket_directory(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert list(tmp_path.iterdir()) == []
