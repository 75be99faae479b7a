"""JSON Lines: what is written is read, errors say where, a file is whole or absent."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.data.jsonl import JsonObject, read_jsonl, write_jsonl
from rlhf_ray.errors import DataError

ROWS: list[JsonObject] = [{"prompt": "Grüße\n\u2028", "n": 1}, {"prompt": "", "nested": {"a": [1, None]}}]


def fails_at(path: Path, where: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path))
    assert str(caught.value).startswith(f"{path}{where}: ")
    assert what in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_what_is_written_is_read_with_its_line(tmp_path: Path, name: str) -> None:
    assert write_jsonl(tmp_path / name, ROWS) == 2
    records = list(read_jsonl(tmp_path / name))
    assert [record.value for record in records] == ROWS
    assert [record.where for record in records] == [f"{tmp_path / name}:1", f"{tmp_path / name}:2"]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n   \n{"a": 2}')
    assert [record.where.rpartition(":")[2] for record in read_jsonl(path)] == ["2", "4"]


def test_equal_rows_give_equal_compressed_bytes(tmp_path: Path) -> None:
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_jsonl(tmp_path / name, ROWS)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()


def test_a_line_that_is_not_json_is_named_with_its_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": }\n')
    fails_at(path, ":2", "column 7")


def test_a_line_that_is_no_object_is_named_with_its_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n[1]\n')
    fails_at(path, ":3", "found list")


def test_a_line_in_another_encoding_is_named_with_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"\xe4": 1}\n')
    fails_at(path, ":2", "byte 3 is not UTF-8")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    fails_at(tmp_path / "none.jsonl", "", "no such file")


def test_a_truncated_gzip_is_named_with_the_line_it_breaks_at(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-12])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz:\d+: broken gzip"):
        list(read_jsonl(path))


def test_text_named_gz_is_a_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_text('{"a": 1}\n')
    fails_at(path, ":1", "broken gzip")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_jsonl(path, ROWS)

    def breaks_off() -> Iterator[JsonObject]:
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, breaks_off())
    assert [record.value for record in read_jsonl(path)] == ROWS
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_what_json_cannot_hold_is_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2: cannot be written as JSON"):
        write_jsonl(tmp_path / "rows.jsonl", [{"a": 1.0}, {"a": float("nan")}])
    assert list(tmp_path.iterdir()) == []
