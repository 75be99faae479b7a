"""One rank of a trainer group. Thin: a method is one line of delegation to the learner or to the sender of weights."""

from __future__ import annotations

import gc
from typing import Any

from actors.ports import meeting_port
from actors.pulse import Watched
from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.booking import booked


class TrainerActor(Watched):
    """Builds its learner when the whole group exists, since joining the group waits for every rank."""

    def __init__(self) -> None:
        self._learner: Any = None
        self._sender: Any = None

    def free_address(self) -> str:
        """``host:port`` of this process, where the port was free a moment ago."""
        import ray

        return f"{ray.util.get_node_ip_address()}:{meeting_port()}"

    @booked(Account.START_UP)
    def build(self, spec: Any, info: Any) -> None:
        """Join the group and load the models."""
        from rlhf_ray.engines.training import join_group

        join_group(info, spec.training)
        self._learner = spec.build(info)

    # ------------------------------------------------------------------------------------------------------- learning
    def update(self, work: Any, *blocks: Any) -> Any:
        return self._learner.update(work, *blocks)

    @booked(Account.EVALUATION)
    def evaluate(self, work: Any) -> Any:
        return self._learner.evaluate(work)

    @booked(Account.EVALUATION)
    def score(self, work: Any) -> Any:
        return self._learner.score(work)

    @booked(Account.SYNC)
    def probe(self, token_ids: Any) -> Any:
        return self._learner.probe(token_ids)

    @booked(Account.CHECKPOINT)
    def keep_failure(self, directory: str) -> str:
        return str(self._learner.keep_failure(directory))

    @booked(Account.FITTING)
    def examine(self, directory: str, work: Any, *blocks: Any) -> Any:
        return self._learner.examine(directory, work, *blocks)

    # ---------------------------------------------------------------------------------------------------------- state
    @booked(Account.CHECKPOINT)
    def save(self, directory: str, *arguments: Any) -> None:
        self._learner.save(directory, *arguments)

    @booked(Account.CHECKPOINT)
    def save_state(self, directory: str, tag: str) -> None:
        self._learner.save_state(directory, tag)

    @booked(Account.CHECKPOINT)
    def load_state(self, directory: str, tag: str) -> None:
        self._learner.load_state(directory, tag)

    # --------------------------------------------------------------------------------------------------- weight sync
    @booked(Account.SYNC)
    def open_sync(self, backend: str, dtype: str, bucket_bytes: int) -> Any:
        """Prepare to send; return (number of buckets, bytes of a sync)."""
        from rlhf_ray.engines.senders import make_sender

        self._sender = make_sender(self._learner.policy, backend=backend, dtype=dtype, bucket_bytes=bucket_bytes)
        return self._sender.num_buckets, self._sender.num_bytes

    @booked(Account.SYNC)
    def join_sync(self, group: Any) -> None:
        self._sender.join(group)

    @booked(Account.SYNC)
    def begin_sync(self) -> None:
        self._sender.begin()

    @booked(Account.SYNC)
    def offer_bucket(self, index: int) -> Any:
        return self._sender.offer(index)

    @booked(Account.SYNC)
    def transmit_bucket(self, index: int) -> None:
        self._sender.transmit(index)

    @booked(Account.SYNC)
    def release_bucket(self, index: int) -> None:
        self._sender.release(index)

    @booked(Account.SYNC)
    def sync_digest(self, version: int) -> str:
        digest: str = self._sender.digest(version)
        return digest

    @booked(Account.START_UP)
    def rest(self) -> bool:
        """Drop the models of a stage; the same ranks, which stay a group, may be given others."""
        if self._sender is not None:
            self._sender.close()
        self._learner = self._sender = None
        gc.collect()
        return True

    @booked(Account.START_UP)
    def close(self) -> None:
        """Give back what outlives a process: files in memory, the process group."""
        from rlhf_ray.engines.training import leave_group

        self.rest()
        leave_group()
