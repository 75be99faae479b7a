"""A crew on a real cluster: members that are killed or stopped are noticed, replaced, and their work done again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.answers import answer
from actors.crew import Crew
from actors.monitor import Monitor
from actors.placement import bundles
from actors.pulse import Watched
from actors.replicas import Replicas
from rlhf_ray.supervision.budget import RestartBudget, RestartLimit

pytestmark = pytest.mark.usefixtures("ray_cluster")
SILENCE_S = 6.0


class Squares(Watched):
    """Sends itself a signal where it is told to, the first time that anybody is."""

    def ready(self, flag: str) -> None:
        self.flag = Path(flag)

    def square(self, number: int, signal_number: int = 0) -> int:
        if signal_number and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal_number)
        return number * number


@dataclass
class Staff:
    crew: Crew
    monitor: Monitor
    replicas: Replicas
    said: list[str] = field(default_factory=list)

    async def square(self, number: int, signal_number: int = 0) -> int:
        found: int = await self.replicas.ask(
            lambda server: server.square.remote(number, signal_number), verb="square", rollouts=[f"r{number}"]
        )
        return found


@asynccontextmanager
async def staff(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Staff]:
    from ray.util.placement_group import placement_group

    said: list[str] = []
    flag = str(directory / "flag")
    for module in ("crew", "monitor", "replicas"):
        monkeypatch.setattr(f"actors.{module}.say", said.append)
    monitor = Monitor(SILENCE_S, directory / "stacks")
    await monitor.start()
    wanted = bundles("squares", count=2, cpus=1, gpus=0, device="cpu", field="squares.num_replicas")
    crew = Crew(
        actor_class=Squares,
        environment={},
        wanted=wanted,
        group=placement_group([bundle.resources for bundle in wanted]),
        max_concurrency=1,
        wait_for_room_s=60.0,
        monitor=monitor,
    )

    async def replace(place: int, reason: str) -> Any:
        server = await crew.replace(place, reason)
        await answer(server.ready.remote(flag), who=crew.name(place), verb="ready", timeout_s=240.0)
        return server

    try:
        servers = [crew.start(place) for place in range(2)]
        await asyncio.gather(*(server.ready.remote(flag) for server in servers))
        limit = RestartLimit(5, window_s=600.0)
        budget = RestartBudget(infrastructure=limit, data=limit, clock=time.monotonic)
        replicas = Replicas("squares", servers, timeout_s=240.0, replace=replace, budget=budget, max_deaths_per_batch=3)
        yield Staff(crew, monitor, replicas, said)
    finally:
        crew.end_all()
        await monitor.close()


async def until(condition: Any) -> None:
    """Wait for something that must happen; the test's own time limit ends what does not."""
    while not condition():
        await asyncio.sleep(0.05)


async def test_work_of_one_that_is_killed_is_done_by_others_and_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staff(tmp_path, monkeypatch) as fleet:
        first = dict(fleet.crew.members)
        found = await asyncio.gather(*(fleet.square(n, signal.SIGKILL if n == 3 else 0) for n in range(8)))
        assert found == [n * n for n in range(8)]
        await until(lambda: sum(fleet.crew.members.get(place) is not first[place] for place in first) == 1)
        await until(lambda: len(fleet.replicas) == 2)
        assert [await fleet.square(n) for n in (5, 6)] == [25, 36]
    assert sum("is started again: squares" in message for message in fleet.said) == 1


async def test_one_that_is_stopped_is_noticed_its_kernel_state_written_and_its_work_done_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staff(tmp_path, monkeypatch) as fleet:
        await until(lambda: all(fleet.monitor.process(fleet.crew.name(place)) for place in range(2)))
        found = await asyncio.gather(*(fleet.square(n, signal.SIGSTOP if n == 2 else 0) for n in range(4)))
        assert found == [0, 1, 4, 9]
        (dump,) = (tmp_path / "stacks").iterdir()
    assert any("has given no sign of life for" in message for message in fleet.said)
    parts = dict(part.split("\n", 1) for part in dump.read_text().split("==== ")[1:])
    stopped, other = sorted(parts.values(), key=lambda text: "State:\tT (stopped)" not in text)
    assert "does not answer; what the kernel says of process" in stopped
    assert "State:\tT (stopped)" in stopped
    assert 'File "' in other
