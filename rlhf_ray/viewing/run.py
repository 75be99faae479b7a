"""A run's directory as it lies there: which stages it has, what they logged and left, and whether it is alive.

Nothing of it is trusted: a file that is damaged, or of another version, is told as a problem and the rest is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
import yaml

from rlhf_ray.data.jsonl import whole_letters
from rlhf_ray.errors import ConfigError, DataError
from rlhf_ray.hacking.log import ALARMS_FILE
from rlhf_ray.metrics.sinks import METRICS_FILE, MetricRow, parse_row
from rlhf_ray.pipeline.artefacts import ARTEFACT_FILE, BEGUN_FILE
from rlhf_ray.pipeline.phases import PHASES_FILE
from rlhf_ray.supervision.control import read_status
from rlhf_ray.viewing.tail import Tail

CONFIG_FILE = "config.yaml"
ORDER = ("model", "sft", "comparison", "reward_model", "ppo", "dpo", "raft", "evaluation", "report")
LIVE_FILES = (METRICS_FILE, PHASES_FILE, ALARMS_FILE, ARTEFACT_FILE, BEGUN_FILE)
NUM_COLOURS = 8


@dataclass(frozen=True)
class StageRecord:
    """What a stage's ``artefact.json`` says. ``place`` is its directory below the run's: ``ppo``, ``round_1/ppo``."""

    place: str
    key: str
    parents: Mapping[str, str]
    settings: Mapping[str, Any]
    code_version: str
    finished: str
    seconds: float
    results: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.place.rpartition("/")[2]


@dataclass(frozen=True)
class StatusNow:
    """What the run says of itself. ``state`` is one of alive, ended, silent and unknown."""

    state: str
    ended: str
    phase: str
    step: int
    age_s: float
    fleet: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Alarm:
    """One line of a stage's ``alarms.jsonl``; samples are rollout ids, or texts."""

    stage: str
    step: int
    name: str
    metric: str
    value: float
    message: str
    action: str
    samples: tuple[str, ...]
    time: float


class Run:
    """One run. ``number`` is its place on the command line, ``name`` tells it from the others."""

    def __init__(self, root: Path, number: int, name: str) -> None:
        self.root, self.number, self.name = root, number, name
        self._tails: dict[Path, Tail[Any]] = {}

    @property
    def colour(self) -> int:
        return self.number % NUM_COLOURS

    # --------------------------------------------------------------------------------------------------------- stages
    def stages(self) -> list[str]:
        """The stages that have begun, by their place, in the order in which they run; rounds come last."""
        patterns = [f"{depth}/{name}" for name in LIVE_FILES for depth in ("*", "*/*")]
        found = {path.parent for pattern in patterns for path in self.root.glob(pattern)}
        places = [path.relative_to(self.root).as_posix() for path in found if not path.name.startswith(".")]
        return sorted(places, key=_place_order)

    def stages_with(self, name: str) -> list[str]:
        """Those in whose directory lies ``name``."""
        return [place for place in self.stages() if (self.root / place / name).exists()]

    def metrics(self, place: str) -> tuple[MetricRow, ...]:
        return self.lines(self.root / place / METRICS_FILE, parse_row)

    def alarms(self) -> list[Alarm]:
        """All alarms, the newest first."""
        found: list[Alarm] = []
        for place in self.stages_with(ALARMS_FILE):
            found += self.lines(self.root / place / ALARMS_FILE, alarm_parser(place))
        return sorted(found, key=lambda alarm: alarm.time, reverse=True)

    def lines(self, path: Path, parse: Callable[[Path, int, str], Any]) -> tuple[Any, ...]:
        """The lines of a file that grows."""
        return self._tails.setdefault(path, Tail(path, parse)).records()

    def problems(self) -> list[str]:
        """What could not be read, in words."""
        _, damaged = self._artefacts()
        return [tail.problem for tail in self._tails.values() if tail.problem] + damaged

    # ---------------------------------------------------------------------------------------------------------- facts
    def artefacts(self) -> list[StageRecord]:
        return self._artefacts()[0]

    def _artefacts(self) -> tuple[list[StageRecord], list[str]]:
        found, problems = [], []
        for place in self.stages_with(ARTEFACT_FILE):
            path = self.root / place / ARTEFACT_FILE
            try:
                found.append(_stage_record(place, json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError, AttributeError) as error:
                problems.append(f"{path} cannot be understood ({error})")
        return found, problems

    def status(self) -> StatusNow:
        try:
            said = read_status(self.root)
            content, ended = said.content, str(said.content.get("ended", ""))
            state = "alive" if said.is_alive else "ended" if ended else "silent"
            fleet = tuple(_members(group) for group in content.get("fleet", ()))
            phase, step = str(content.get("phase", "")), int(content.get("step", 0))
            return StatusNow(state, ended, phase, step, said.age_s, fleet)
        except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError):
            return StatusNow("unknown", "", "", 0, 0.0, ())

    def config_text(self) -> str:
        try:
            return (self.root / CONFIG_FILE).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def config(self) -> dict[str, Any]:
        """The resolved configuration as it was written, whatever version wrote it; empty where there is none."""
        try:
            content = yaml.safe_load(self.config_text())
        except yaml.YAMLError:
            return {}
        return content if isinstance(content, dict) else {}

    def summary(self) -> dict[str, Any]:
        """What a finished run says of its models, by measure: ``summary.json``, or ``rounds.json`` of rounds."""
        if found := _json_object(self.root / "summary.json"):
            return found
        by_measure: dict[str, Any] = {}
        models = _json_object(self.root / "rounds.json").get("models")
        for model, measures in models.items() if isinstance(models, dict) else ():
            for name, value in measures.items() if isinstance(measures, dict) else ():
                by_measure.setdefault(str(name), {})[str(model)] = value
        return by_measure

    def stamp(self) -> str:
        """Changes when something that pages show has changed."""
        digest = xxhash.xxh3_64()
        for place in self.stages():
            for name in LIVE_FILES:
                path = self.root / place / name
                if path.exists():
                    state = path.stat()
                    digest.update(f"{path}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
        status = self.status()
        digest.update(f"{status.state}\0{status.phase}\0{status.step}".encode())
        return str(digest.hexdigest())


def open_runs(roots: list[Path]) -> list[Run]:
    """Raises ConfigError for a directory in which no run has ever written anything, and where there is none."""
    for root in roots:
        if not root.is_dir():
            raise ConfigError("RUN", str(root), "is no directory", "give a run's output_dir")
        if not (root / CONFIG_FILE).is_file() and not Run(root, 0, "").stages():
            raise ConfigError(
                "RUN", str(root), f"holds no {CONFIG_FILE} and no stage of a run", "give a run's output_dir"
            )
    if not roots:
        raise ConfigError("RUN", "", "names no run", "give a run's output_dir")
    return [Run(root, number, name) for number, (root, name) in enumerate(zip(roots, _names(roots), strict=True))]


def _names(roots: list[Path]) -> list[str]:
    """As few of the last parts of each path as tell it from the others."""
    whole = [root.resolve().parts for root in roots]
    for depth in range(1, 1 + max(map(len, whole), default=0)):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{root} ({number + 1})" for number, root in enumerate(roots)]


def _place_order(place: str) -> tuple[str, int, str]:
    rounds, _, name = place.rpartition("/")
    number = rounds.removeprefix("round_")
    within = ORDER.index(name) if name in ORDER else len(ORDER)
    return (f"{int(number):06d}" if number.isdecimal() else rounds, within, name)


def _json_object(path: Path) -> dict[str, Any]:
    """What a file says; empty where it is not there, or says something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _members(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group of the fleet, with those of its members that can be understood."""
    return {**group, "members": [each for each in group.get("members", ()) if isinstance(each, dict)]}


def _stage_record(place: str, content: Mapping[str, Any]) -> StageRecord:
    return StageRecord(
        place=place,
        key=str(content.get("key", "")),
        parents={str(name): str(key) for name, key in dict(content.get("parents", {})).items()},
        settings=dict(content.get("settings", {})),
        code_version=str(content.get("code_version", "")),
        finished=str(content.get("finished", "")),
        seconds=float(content.get("seconds", 0.0)),
        results=dict(content.get("results", {})),
    )


def alarm_parser(place: str) -> Callable[[Path, int, str], Alarm]:
    """From a line of the alarms of stage ``place`` to the alarm; what a line leaves out is empty."""

    def parse(path: Path, number: int, line: str) -> Alarm:
        try:
            said = json.loads(line)
            words = {name: whole_letters(str(said.get(name, ""))) for name in ("name", "metric", "message", "action")}
            samples = tuple(whole_letters(str(sample)) for sample in said.get("samples") or ())
            value, when = float(said.get("value", "nan")), float(said.get("time", 0.0))
            return Alarm(place, int(said.get("step", 0)), value=value, samples=samples, time=when, **words)
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path}:{number} is no alarm ({error})") from error

    return parse
