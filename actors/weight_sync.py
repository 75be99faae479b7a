"""One weight sync over the fleet: pause, buckets, verify, resume. Trainer and engines each know their own half."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.answers import answers
from rlhf_ray.errors import WeightSyncError
from rlhf_ray.roles import SyncReport
from rlhf_ray.weight_sync.topology import NcclGroup


class FleetWeightSync:
    """Brings the trainer's policy into every engine and proves that it arrived.

    Two proofs: each engine worker's digest of what it received equals the trainer's digest of what it sent; and the
    log-probabilities of a fixed text, computed by the kernels that will sample, equal the trainer's within a tolerance.
    """

    def __init__(
        self, *, ranks: Sequence[Any], engines: Sequence[Any], probe: Sequence[int], tolerance: float, timeout_s: float
    ) -> None:
        self._ranks = list(ranks)
        self._engines = list(engines)
        self._probe = list(probe)
        self._tolerance = tolerance
        self._timeout_s = timeout_s
        self._num_buckets = 0
        self._num_bytes = 0

    async def open(self, *, backend: str, dtype: str, bucket_bytes: int, workers_per_engine: int) -> None:
        """Prepare both halves and let them meet; once a run."""
        sizes = await self._of_ranks(
            "open_sync", [r.open_sync.remote(backend, dtype, bucket_bytes) for r in self._ranks]
        )
        self._num_buckets, self._num_bytes = sizes[0]
        address = (await self._of_ranks("free_address", [self._ranks[0].free_address.remote()]))[0]
        host, _, port = address.rpartition(":")
        group = NcclGroup(host, int(port), len(self._engines), workers_per_engine)
        infos = [group.engine_info(index) if backend == "nccl" else {} for index in range(len(self._engines))]
        await asyncio.gather(
            self._of_ranks("join_sync", [r.join_sync.remote(group) for r in self._ranks]),
            self._of_engines(
                "init_weight_sync",
                [e.init_weight_sync.remote(info) for e, info in zip(self._engines, infos, strict=True)],
            ),
        )

    async def sync(self, version: int) -> SyncReport:
        begun = time.perf_counter()
        await self._of_ranks("begin_sync", [r.begin_sync.remote() for r in self._ranks])
        await self._of_engines("begin_weight_sync", [e.begin_weight_sync.remote(version) for e in self._engines])
        for index in range(self._num_buckets):
            await self._send(index)
        digest = (await self._of_ranks("sync_digest", [self._ranks[0].sync_digest.remote(version)]))[0]
        await self._of_engines(
            "finish_weight_sync", [e.finish_weight_sync.remote(version, digest) for e in self._engines]
        )
        await self._require_same_function(version)
        return SyncReport(version, digest, self._num_bytes, time.perf_counter() - begun)

    async def _send(self, index: int) -> None:
        offers = await self._of_ranks("offer_bucket", [r.offer_bucket.remote(index) for r in self._ranks])
        await asyncio.gather(
            self._of_ranks("transmit_bucket", [r.transmit_bucket.remote(index) for r in self._ranks]),
            self._of_engines("receive_weights", [e.receive_weights.remote(offers[0]) for e in self._engines]),
        )
        await self._of_ranks("release_bucket", [r.release_bucket.remote(index) for r in self._ranks])

    async def _require_same_function(self, version: int) -> None:
        """Compare what the kernels answer, not only what arrived: a layer may have been left with older weights."""
        trained, *served = await asyncio.gather(
            self._of_ranks("probe", [r.probe.remote(self._probe) for r in self._ranks]),
            self._of_engines("prompt_logprobs", [e.prompt_logprobs.remote(self._probe) for e in self._engines]),
        )
        for index, logprobs in enumerate(served[0]):
            difference = float(np.abs(np.subtract(trained[0], logprobs)).max())
            if not difference <= self._tolerance:
                raise WeightSyncError(
                    f"generator {index} holds version {version} by checksum, yet its log-probabilities of a fixed text "
                    f"differ from the trainer's by up to {difference:.4g} (tolerance {self._tolerance:g}); a layer was "
                    "not rebuilt from the new weights: restart the engine, or raise weight_sync.probe_tolerance where "
                    "precision alone explains it"
                )

    async def _of_ranks(self, verb: str, refs: list[Any]) -> list[Any]:
        return await answers(refs, who="trainer rank", verb=verb, timeout_s=self._timeout_s)

    async def _of_engines(self, verb: str, refs: list[Any]) -> list[Any]:
        return await answers(refs, who="generator", verb=verb, timeout_s=self._timeout_s)
