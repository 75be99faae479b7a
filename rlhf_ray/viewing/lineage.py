"""What a run's stages were made from, whether it still holds, and how one run differs from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.pipeline.lineage import Change, changes, differences
from rlhf_ray.viewing.run import Run, StageRecord


@dataclass(frozen=True)
class Parent:
    """``is_here``: what the stage was made from is what lies in the directory now, at ``place`` where that is known."""

    name: str
    key: str
    is_here: bool
    place: str


@dataclass(frozen=True)
class Node:
    """A finished stage. ``why`` says why a run of this configuration would do it again; empty where it would not."""

    record: StageRecord
    parents: tuple[Parent, ...]
    why: tuple[str, ...]
    depth: int
    elsewhere: str  # against another run: same, or what differs

    @property
    def headline(self) -> list[tuple[str, str]]:
        numbers = {k: v for k, v in self.record.results.items() if isinstance(v, int | float)}
        return [(name.replace("_", " "), f"{value:.4g}") for name, value in numbers.items()]


def nodes(run: Run, other: Run | None = None) -> list[Node]:
    """The finished stages in the order in which they run."""
    records = run.artefacts()
    config = run.config()
    theirs = {record.place: record for record in other.artefacts()} if other else {}
    made: list[Node] = []
    redone: set[str] = set()
    for record in records:
        parents = tuple(_parent(record, name, key, records) for name, key in record.parents.items())
        why = [f"another {parent.name}" for parent in parents if not parent.is_here]
        why += changes(record.settings, _now(record.settings, config)) if config and "/" not in record.place else []
        why += [f"{parent.name} would be done again" for parent in parents if parent.name in redone]
        if why:
            redone.add(record.name)
        depth = 1 + max((node.depth for node in made if node.record.name in record.parents), default=-1)
        made.append(Node(record, parents, tuple(why), depth, _elsewhere(record, theirs) if other else ""))
    return made


def _parent(record: StageRecord, name: str, key: str, records: list[StageRecord]) -> Parent:
    """A round's parents lie in its own directory, or in the run's."""
    made = [each for each in records if each.name == name or name.startswith("round_") or name in ("start", "earlier")]
    places = [each.place for each in made if each.key == key]
    is_known = any(each.name == name for each in records)
    return Parent(name, key, bool(places) or not is_known, places[0] if places else "")


def _now(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings as the configuration has them now. What lies in files is not read again."""
    now: dict[str, Any] = {}
    for path, value in settings.items():
        found: Any = config
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        now[path] = value if path.startswith("contents of ") or found is None else _like(value, found)
    return now


def _like(value: Any, found: Any) -> Any:
    """Of ``found``, what ``value`` has: settings without effect on the result were left out of it."""
    if not isinstance(value, Mapping) or not isinstance(found, Mapping):
        return found
    return {name: _like(own, found[name]) for name, own in value.items() if name in found}


def _elsewhere(record: StageRecord, theirs: Mapping[str, StageRecord]) -> str:
    other = theirs.get(record.place)
    if other is None:
        return "not there"
    if other.key == record.key:
        return "the same"
    told = changes(record.settings, other.settings) or ["other data, or made from other stages"]
    return "; ".join(told)


def config_changes(run: Run, other: Run) -> list[Change]:
    """From ``run`` to ``other``, by setting."""
    return differences(run.config(), other.config())
