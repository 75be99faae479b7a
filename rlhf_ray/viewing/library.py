"""A run's saved rollouts behind an index that keeps up with them while the run goes on."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlhf_ray.data.jsonl import read_jsonl, whole_letters
from rlhf_ray.errors import DataError
from rlhf_ray.experience_store import SavedExperience, read_experience
from rlhf_ray.records import Score
from rlhf_ray.rollout_store import KINDS_FILE, MANIFEST, ROLLOUTS, SavedShard, SavedStep, step_directory
from rlhf_ray.viewing.rollout_index import Progress, RolloutIndex, reference_of, signature
from rlhf_ray.viewing.rollout_query import Row
from rlhf_ray.viewing.run import Run
from rlhf_ray.viewing.signals import Saved
from rlhf_ray.viewing.words import Words

BELOW = ".view"  # a run's own directory for what this page keeps
LOOK_EVERY_S = 2.0
KINDS_OF = (f"{ROLLOUTS}/{KINDS_FILE}", "rankings_*.jsonl")  # files that say which kind a prompt is of


class Library:
    """``cache`` is where the index lies: below the run's directory, or in a folder for those that are not ours."""

    def __init__(self, run: Run, cache: Path | None = None) -> None:
        self.run, self.words = run, Words(run.root)
        self.index = RolloutIndex(_place(run.root, cache), self.words)
        self.progress = Progress(0, 0)
        self._kinds: dict[str, str] = {}
        self._kinds_of: frozenset[tuple[Path, int]] = frozenset()
        self._alarms: dict[str, dict[str, str]] = {}
        self._damaged: dict[tuple[str, int], tuple[str, str]] = {}  # signature and what is wrong with it
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------------ keeping up
    def start(self) -> None:
        """Keep up with the run from a thread, until ``stop``."""
        self._thread = threading.Thread(target=self._keep_up, name="rollouts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _keep_up(self) -> None:
        while not self._stopped.is_set():
            try:
                self.refresh()
            except Exception as error:  # noqa: BLE001 - whatever it is, the page says it and goes on looking
                self.progress = Progress(self.progress.done, self.progress.of, f"{type(error).__name__}: {error}")
            self._stopped.wait(LOOK_EVERY_S)

    def refresh(self) -> None:
        """Take in what is new, drop what is gone, look what alarms say."""
        known, there = self.index.known(), dict(self._on_disk())
        new_kinds = self._read_kinds()
        for stage, step in known.keys() - there.keys():
            self.index.forget(stage, step)
        seals = {key: signature(directory) for key, directory in there.items()}
        self._damaged = {key: said for key, said in self._damaged.items() if seals.get(key) == said[0]}
        fresh = sorted(key for key, seal in seals.items() if known.get(key) != seal and key not in self._damaged)
        self._tell(len(there) - len(fresh), len(there))
        for number, key in enumerate(fresh, start=1):
            if self._stopped.is_set():
                return
            try:
                self.index.add(key[0], there[key], self._kinds)
            except DataError as error:
                self._damaged[key] = (seals[key], str(error))
            self._tell(len(there) - len(fresh) + number, len(there))
        if new_kinds:
            self.index.mark_kinds(self._kinds)
        alarms = self._named_by_alarms()
        if alarms != self._alarms or (fresh and alarms):
            self.index.mark_alarms(alarms)
            self._alarms = alarms

    def _tell(self, done: int, of: int) -> None:
        self.progress = Progress(done, of, next((said for _, said in self._damaged.values()), ""))

    def _on_disk(self) -> Iterator[tuple[tuple[str, int], Path]]:
        """Stage and step of every whole step, with its directory."""
        for pattern in ("*", "*/*"):
            for path in self.run.root.glob(f"{pattern}/{ROLLOUTS}/step_*"):
                number = path.name.removeprefix("step_")
                if number.isdecimal() and (path / MANIFEST).is_file():
                    yield (path.parent.parent.relative_to(self.run.root).as_posix(), int(number)), path

    def _read_kinds(self) -> bool:
        """Learn which kinds prompts are of, from what stages have left; whether there was anything new."""
        patterns = [f"{depth}/{name}" for name in KINDS_OF for depth in ("*", "*/*")]
        files = [path for pattern in patterns for path in self.run.root.glob(pattern)]
        seen = frozenset((path, path.stat().st_mtime_ns) for path in files)
        if seen == self._kinds_of:
            return False
        for path in files:
            try:
                self._kinds.update(_kinds_in(path))
            except (DataError, OSError, ValueError, AttributeError) as error:
                self.progress = Progress(self.progress.done, self.progress.of, f"{path}: {error}")
        self._kinds_of = seen
        return True

    def _named_by_alarms(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for alarm in self.run.alarms():
            for sample in alarm.samples:
                found[alarm.stage][sample].add(alarm.name)
        return {
            stage: {sample: "\n".join(["", *sorted(names), ""]) for sample, names in own.items()}
            for stage, own in found.items()
        }

    # ---------------------------------------------------------------------------------------------------------- reading
    def saved(self, row: Row) -> Saved:
        """Everything that is saved of one rollout. Raises DataError where its step is gone or damaged."""
        step = SavedStep(step_directory(self.run.root / row.stage / ROLLOUTS, row.step))
        if row.shard >= len(step):
            raise DataError(f"{step.directory}: has changed since it was indexed; load the page again")
        shard = step.shard(row.shard)
        rollout = shard.rollouts[row.place]
        experience, problem = _experience(step.directory, rollout.order)
        return Saved(
            rollout,
            reference_of(shard, row.place),
            _score(shard, row.place),
            trained=step.record.trained.get(rollout.order),
            kl_coef=step.record.kl_coef,
            experience=experience,
            problem=problem,
        )


def _score(shard: SavedShard, place: int) -> Score | None:
    return shard.scores[place] if place < len(shard.scores) else None


def _experience(step: Path, order: int) -> tuple[SavedExperience | None, str]:
    """What a rollout was worth to the trainer, and what is wrong with the file that should say so."""
    try:
        return read_experience(step, order), ""
    except DataError as error:
        return None, str(error)


def _place(root: Path, cache: Path | None) -> Path:
    """Where the index of a run lies; in a temporary folder where its own directory cannot be written."""
    name = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    if cache is not None:
        return cache / f"{name}.db"
    own = root / BELOW
    try:
        own.mkdir(exist_ok=True)
        (own / ".gitignore").write_text("*\n")
    except OSError:
        return Path(tempfile.gettempdir()) / f"rlhf-ray-view-{name}" / "rollouts.db"
    return own / "rollouts.db"


def _kinds_in(path: Path) -> Mapping[str, str]:
    if path.name == KINDS_FILE:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(prompt_id): whole_letters(str(kind)) for prompt_id, kind in content.items()}
    records = (record.value for record in read_jsonl(path))
    return {str(row.get("prompt_id", "")): whole_letters(str(row["kind"])) for row in records if row.get("kind")}
