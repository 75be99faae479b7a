"""Back to the last whole state: at the start of a run, or in the middle of one whose trainer was lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_ray.checkpoint import Checkpoints, SavedState
from rlhf_ray.collecting import Collected
from rlhf_ray.driver import Driver
from rlhf_ray.errors import ConfigError
from rlhf_ray.hacking.log import ALARMS_FILE
from rlhf_ray.metrics.sinks import METRICS_FILE, WANDB_ID_FILE
from rlhf_ray.mirror import Mirror
from rlhf_ray.pipeline.ahead import AHEAD, Fetch, write_batch
from rlhf_ray.roles import PpoTrainer

TRAINER = "trainer"  # the trainer's part of a state
LOG = "log"  # what was logged until then, for a run whose directory is lost
# In the driver's part: which run it is the state of, the model that PPO started from, and what alarms have seen.
RUN = "run"
START = "start"
ALARMS = "alarms"
LOGGED = (METRICS_FILE, WANDB_ID_FILE, ALARMS_FILE)


async def restore_last(
    checkpoints: Checkpoints,
    driver: Driver,
    trainer: PpoTrainer,
    *,
    at_most: int | None = None,
    warn: Callable[[str], None],
) -> SavedState | None:
    """Bring driver and trainer to the newest whole state, None where there is none: then nothing has changed.

    It may be called in a running job, with a trainer that was started anew: the driver then goes on from that step, and
    its next weight sync gives the generators the weights of that state. States of later steps are removed.
    """
    saved, warnings = checkpoints.latest(at_most)
    for warning in warnings:
        warn(warning)
    if saved is None:
        return None
    driver.restore(saved.driver)
    await trainer.load_state(str(saved.directory), TRAINER)
    checkpoints.forget_after(saved.step)
    return saved


async def write_state(
    directory: Path, trainer: PpoTrainer, logged_in: Path, ahead: Sequence[Collected], fetch: Fetch
) -> None:
    """The trainer's part of a state, the batches that are there already, and a copy of the log in ``logged_in``."""
    await trainer.save_state(str(directory), TRAINER)
    for batch in ahead:
        await write_batch(directory / AHEAD, batch, fetch)
    for name in LOGGED:
        if (logged_in / name).is_file():
            (directory / LOG).mkdir(exist_ok=True)
            shutil.copyfile(logged_in / name, directory / LOG / name)


def fetch_from_mirror(mirror: Mirror, checkpoints: Checkpoints, run: str, warn: Callable[[str], None]) -> None:
    """Bring the newest whole state from the mirror where there is none here. ConfigError for another run's."""
    if checkpoints.states():
        return
    checkpoints.root.mkdir(parents=True, exist_ok=True)
    found, warnings = mirror.fetch_newest(checkpoints.root)
    for warning in warnings:
        warn(warning)
    if found is not None and found.driver.get(RUN) != run:
        shutil.rmtree(found.directory)
        raise ConfigError(
            "checkpoints.mirror",
            mirror.url,
            "holds the states of a run with other settings or data",
            "choose another place, or empty this one",
        )


def restore_logged(saved: SavedState, directory: Path) -> None:
    """Lay what was logged until ``saved`` into ``directory``, where it is not there any more."""
    for name in LOGGED:
        copy = saved.directory / LOG / name
        if copy.is_file() and not (directory / name).exists():
            directory.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copy, directory / name)
