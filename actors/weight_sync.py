"""One weight sync over the fleet: pause, buckets, verify, resume. Trainer and engines each know their own half.

Generators come and go: a round reaches those that are there, goes on without those that it loses, and lets serve only
who holds every byte of it. A newcomer is given a round of its own, as soon as it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.answers import answers
from actors.generators import GeneratorGroup
from actors.groups import TRAINER_RANK
from rlhf_ray.errors import WeightSyncError
from rlhf_ray.roles import SyncReport
from rlhf_ray.weight_sync.topology import NcclGroup


@dataclass(frozen=True)
class _Round:
    """What was sent, and who holds it."""

    digest: str
    served: tuple[str, ...]


class FleetWeightSync:
    """Brings the trainer's policy into every engine and proves that it arrived.

    Two proofs: each engine worker's digest of what it received equals the trainer's digest of what it sent; and the
    log-probabilities of a fixed text, computed by the kernels that will sample, equal the trainer's within a tolerance.
    """

    def __init__(
        self, *, trainer: Any, generators: GeneratorGroup, probe: Sequence[int], tolerance: float, timeout_s: float
    ) -> None:
        self._trainer = trainer  # its ranks may be replaced
        self._incarnation: int | None = None  # of the trainer that the channel was opened with
        self._generators = generators
        self._members = generators.members
        self._met: set[str] = set()  # members that have met this incarnation
        self._probe = list(probe)
        self._tolerance = tolerance
        self._timeout_s = timeout_s
        self._num_buckets = 0
        self._num_bytes = 0
        self._busy = asyncio.Lock()  # one round at a time
        self._spent: dict[str, float] = defaultdict(float)  # seconds by part, of the sync under way
        self._last: tuple[int, str] | None = None  # version and digest of the last sync

    async def open(self, *, backend: str, dtype: str, bucket_bytes: int, workers_per_engine: int) -> None:
        """Prepare both halves and let them meet; again where anybody was replaced."""
        self._settings = {"backend": backend, "dtype": dtype, "bucket_bytes": bucket_bytes}
        self._workers_per_engine = workers_per_engine
        names = await self._members.to_sync()
        await self._trainer.lasting(lambda: self._meet(names))
        self._members.catch_up = self.catch_up

    async def sync(self, version: int, *, waited_s: float | None = None) -> SyncReport:
        """Give every generator the trainer's weights as ``version``; those that are lost in it are left behind.

        Where all are lost, another round waits for one to come.
        """
        async with self._busy:
            begun = time.perf_counter()
            self._spent.clear()
            self._members.send_leavers()
            while not (done := await self._lasting_round(version, await self._members.to_sync())).served:
                continue
            self._last = version, done.digest
            for name in done.served:
                self._members.serves(name, version)
        self._members.adjust()
        seconds = time.perf_counter() - begun
        fleet = self._generators.settle(waited_s)
        return SyncReport(version, done.digest, self._num_bytes, seconds, fleet, dict(self._spent))

    async def catch_up(self, name: str) -> int | None:
        """Bring a newcomer to the version that the others serve.

        Returns None where the trainer's weights are not those of the last sync any more, which their digest tells:
        then the next sync brings the newcomer in, or one has done so already.
        """
        async with self._busy:
            if self._last is None:
                return 0
            if not self._members.is_catching_up(name):
                return None
            version, digest = self._last
            done = await self._lasting_round(version, [name])
            return version if done == _Round(digest, (name,)) else None

    async def _lasting_round(self, version: int, names: Sequence[str]) -> _Round:
        """A whole round; where a rank of the trainer is lost in it, another with the ranks that took their places."""
        done: _Round = await self._trainer.lasting(lambda: self._round(version, names))
        return done

    async def _round(self, version: int, names: Sequence[str]) -> _Round:
        """The trainer prepares a bucket while the engines load the one before: two are in memory at a time."""
        await self._meet(names)
        for name in self._members.present(names):
            self._members.syncs(name)
        *_, prepared = await together(self._begin(), self._pause(version, names), self._prepare(0, version))
        for index in range(self._num_buckets):
            free = [self._release(index - 1)] if index else []
            halves = self._transmit(index), self._receive(prepared, names)
            *_, prepared = await together(*free, *halves, self._prepare(index + 1, version))
        digest, trained = prepared
        await together(self._release(self._num_buckets - 1), self._finish(version, digest, names))
        with self._spending("probe"):
            await self._require_same_function(version, names, trained)
        return _Round(digest, tuple(self._members.present(names)))

    async def _meet(self, names: Sequence[str]) -> None:
        """Whoever has not met the others yet does: all anew in an NCCL group of other members."""
        nccl = self._settings["backend"] == "nccl"
        present = self._members.present(names)
        if not present:
            return
        if self._incarnation != self._trainer.incarnation:
            sizes = await self._of_ranks("open_sync", [r.open_sync.remote(**self._settings) for r in self._ranks])
            self._num_buckets, self._num_bytes = sizes[0]
            self._met = set()
        elif self._met == set(present) or (not nccl and self._met.issuperset(present)):
            return
        address = (await self._of_ranks("free_address", [self._ranks[0].free_address.remote()]))[0]
        host, _, port = address.rpartition(":")
        group = NcclGroup(host, int(port), len(present), self._workers_per_engine)
        strangers = present if nccl else [name for name in present if name not in self._met]
        infos = {name: group.engine_info(present.index(name)) if nccl else {} for name in strangers}
        joining = [] if self._met and not nccl else [r.join_sync.remote(group) for r in self._ranks]
        calls = {name: self._members.handle(name).init_weight_sync.remote(info) for name, info in infos.items()}
        await asyncio.gather(self._of_ranks("join_sync", joining), self._members.answers(calls, "init_weight_sync"))
        self._met = set(present) if nccl else self._met | set(present)
        self._incarnation = self._trainer.incarnation

    # ----------------------------------------------------------------------------------------------- parts of a round
    async def _begin(self) -> None:
        await self._of_ranks("begin_sync", [r.begin_sync.remote() for r in self._ranks])

    async def _pause(self, version: int, names: Sequence[str]) -> None:
        with self._spending("begin"):
            await self._of_engines("begin_weight_sync", names, lambda e: e.begin_weight_sync.remote(version))

    async def _prepare(self, index: int, version: int) -> Any:
        """What the engines must know of a bucket; after the last one (digest of all, log-probabilities of the text)."""
        if index < self._num_buckets:
            with self._spending("offer"):
                return (await self._of_ranks("offer_bucket", [r.offer_bucket.remote(index) for r in self._ranks]))[0]
        digests, trained = await together(
            self._of_ranks("sync_digest", [self._ranks[0].sync_digest.remote(version)]),
            self._of_ranks("probe", [r.probe.remote(self._probe) for r in self._ranks]),
        )
        return digests[0], trained[0]

    async def _transmit(self, index: int) -> None:
        with self._spending("transmit"):
            await self._of_ranks("transmit_bucket", [r.transmit_bucket.remote(index) for r in self._ranks])

    async def _receive(self, offer: Any, names: Sequence[str]) -> None:
        with self._spending("receive"):
            await self._of_engines("receive_weights", names, lambda e: e.receive_weights.remote(offer))

    async def _release(self, index: int) -> None:
        await self._of_ranks("release_bucket", [r.release_bucket.remote(index) for r in self._ranks])

    async def _finish(self, version: int, digest: str, names: Sequence[str]) -> None:
        with self._spending("finish"):
            await self._of_engines("finish_weight_sync", names, lambda e: e.finish_weight_sync.remote(version, digest))

    @contextmanager
    def _spending(self, part: str) -> Iterator[None]:
        """Note the seconds of the block; parts that run at the same time count each."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] += time.perf_counter() - begun

    async def _require_same_function(self, version: int, names: Sequence[str], trained: Sequence[float]) -> None:
        """Compare what the kernels answer, not only what arrived: a layer may have been left with older weights."""
        served = await self._of_engines("prompt_logprobs", names, lambda e: e.prompt_logprobs.remote(self._probe))
        for name, logprobs in served.items():
            difference = float(np.abs(np.subtract(trained, logprobs)).max())
            if not difference <= self._tolerance:
                raise WeightSyncError(
                    f"{name} holds version {version} by checksum, yet its log-probabilities of a fixed text "
                    f"differ from the trainer's by up to {difference:.4g} (tolerance {self._tolerance:g}); a layer was "
                    "not rebuilt from the new weights: restart the engine, or raise weight_sync.probe_tolerance where "
                    "precision alone explains it"
                )

    @property
    def _ranks(self) -> list[Any]:
        ranks: list[Any] = self._trainer.ranks
        return ranks

    async def _of_ranks(self, verb: str, refs: list[Any]) -> list[Any]:
        return await answers(refs, who=TRAINER_RANK, verb=verb, timeout_s=self._timeout_s)

    async def _of_engines(self, verb: str, names: Sequence[str], call: Callable[[Any], Any]) -> dict[str, Any]:
        """Ask those of ``names`` that are still there."""
        calls = {name: call(self._members.handle(name)) for name in self._members.present(names)}
        return await self._members.answers(calls, verb)


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """What each gives, begun in this order, once all have ended: nobody is still receiving when a round has failed."""
    tasks = [asyncio.ensure_future(each) for each in work]
    await asyncio.wait(tasks)
    return [task.result() for task in tasks]
