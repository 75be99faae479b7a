"""From tokens to text with the tokenizer in the run's directory: a file of data, no code of a run is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOKENIZER_FILES = ("model/tokenizer/tokenizer.json", "sft/policy/tokenizer.json", "ppo/policy/tokenizer.json")
BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole letter yet
Ids = npt.NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of the few tokens that make up one letter: those from ``start`` up to ``end``."""

    text: str
    start: int
    end: int
    is_special: bool = False


class Words:
    """The tokenizer of the run in ``root``. Without one, texts are the tokens' numbers."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        for name in TOKENIZER_FILES:
            path = self._root / name
            if path.is_file():
                try:
                    return Tokenizer.from_file(str(path))
                except Exception:  # noqa: BLE001 - the library raises nothing narrower for a file it cannot read
                    continue
        return None

    @property
    def is_there(self) -> bool:
        return self._tokenizer is not None

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder() if self.is_there else {}
        return frozenset(number for number, token in added.items() if token.special)

    def texts(self, sequences: Sequence[Ids]) -> list[str]:
        """The text of each sequence, special tokens left out."""
        if not self.is_there:
            return [" ".join(map(str, ids.tolist())) for ids in sequences]
        decoded: list[str] = self._tokenizer.decode_batch([ids.tolist() for ids in sequences], skip_special_tokens=True)
        return decoded

    def pieces(self, ids: Ids) -> list[Piece]:
        """The tokens one by one; their texts make up the sequence's. Tokens that end inside a letter are joined."""
        if not self.is_there:
            return [Piece(f"{number} ", place, place + 1) for place, number in enumerate(ids.tolist())]
        found: list[Piece] = []
        numbers = np.asarray(ids).tolist()
        before = start = 0  # text is told by what it adds to the tokens before it, as word marks depend on them
        for end in range(1, len(numbers) + 1):
            if numbers[end - 1] in self._special:
                found.append(Piece(self._tokenizer.id_to_token(numbers[end - 1]), end - 1, end, is_special=True))
                before = start = end
                continue
            if end <= start:  # joined to the tokens before it
                continue
            text, end = self._letter(numbers, before, start, end)
            found.append(Piece(text, start, end))
            before, start = start, end
        return found

    def _letter(self, numbers: list[int], before: int, start: int, end: int) -> tuple[str, int]:
        """The text up to ``end``, or up to where a letter that is not whole there is so, and that end."""
        text = self._added(numbers, before, start, end)
        if text.endswith(BROKEN):
            for later in range(end + 1, min(end + 4, len(numbers) + 1)):
                longer = self._added(numbers, before, start, later)
                if BROKEN not in longer and not self._special.intersection(numbers[start:later]):
                    return longer, later
        return text, end

    def _added(self, numbers: list[int], before: int, start: int, end: int) -> str:
        known = self._tokenizer.decode(numbers[before:start], skip_special_tokens=False)
        whole = self._tokenizer.decode(numbers[before:end], skip_special_tokens=False)
        return str(whole[len(known) :])
