"""Complete states, copied to any place that fsspec knows: s3://, gs://, abfs://, file://.

A state's files go first and its manifest last, so that a copy without one is not there yet. On the way back every file
is compared with its checksum.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import fsspec

from rlhf_ray.checkpoint import STATE_FILE, SavedState, read_state
from rlhf_ray.directories import NotWholeError, begin, flush
from rlhf_ray.errors import ConfigError


class Mirror:
    """The states below one URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError("checkpoints.mirror", url, f"cannot be opened ({error})", "give another URL") from error
        self._root = PurePosixPath(root)

    def upload(self, state: Path, *, keep: Iterable[str]) -> None:
        """Copy the state directory, then remove copies of states that are not in ``keep``, by name."""
        there = self._root / state.name
        manifest = there / STATE_FILE
        if self._files.exists(str(manifest)):  # of a step that was done again: not whole until it is written anew
            self._files.rm(str(manifest))
        files = [path for path in sorted(state.rglob("*")) if path.is_file() and path != state / STATE_FILE]
        for path in [*files, state / STATE_FILE]:
            target = there / path.relative_to(state).as_posix()
            self._files.makedirs(str(target.parent), exist_ok=True)
            self._files.put_file(str(path), str(target))
        for name in set(self.names()) - {state.name, *keep}:
            self._files.rm(str(self._root / name), recursive=True)

    def names(self) -> list[str]:
        """The names of the states that are there, the newest first."""
        self._files.invalidate_cache()
        found = self._files.glob(str(self._root / "step_*" / STATE_FILE))
        return sorted((PurePosixPath(path).parent.name for path in found), reverse=True)

    def fetch_newest(self, root: Path) -> tuple[SavedState | None, list[str]]:
        """Bring the newest whole state below ``root``; or None. A warning for each newer one that is damaged."""
        warnings: list[str] = []
        for name in self.names():
            aside = begin(root / name)
            try:
                self._download(name, aside)
                read_state(aside)
            except (NotWholeError, OSError) as error:
                shutil.rmtree(aside)
                warnings.append(f"checkpoint {self.url}/{name} is damaged ({error}) and is not used")
                continue
            aside.rename(root / name)
            flush([root])
            return read_state(root / name), warnings
        return None, warnings

    def _download(self, name: str, aside: Path) -> None:
        there = self._root / name
        for path in self._files.find(str(there)):
            target = aside / PurePosixPath(self._files._strip_protocol(path)).relative_to(there)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(path, str(target))
