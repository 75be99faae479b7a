"""From the configuration to the task: each section gives its task, and bad data never gets further than this."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.world import WorldConfig
from rlhf_ray.data.files import FilesConfig, FilesTask
from rlhf_ray.data.hh_rlhf import HhRlhfConfig
from rlhf_ray.data.movie_sentiment import MovieSentimentConfig
from rlhf_ray.data.task import Task
from rlhf_ray.data.tasks import build_task
from rlhf_ray.data.world import WorldTask
from rlhf_ray.errors import ConfigError, DataError


def files(tmp_path: Path, *lines: str, kind: str = "prompts") -> DataConfig:
    path = tmp_path / f"{kind}.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    return DataConfig(task="files", files=FilesConfig(**{kind: str(path)}))


def test_the_world_is_the_task_unless_another_is_named() -> None:
    task = build_task(DataConfig())
    assert isinstance(task, WorldTask)
    assert task.config == WorldConfig()
    assert isinstance(task, Task)


def test_files_are_the_task_where_they_are_named(tmp_path: Path) -> None:
    task = build_task(files(tmp_path, *(json.dumps({"prompt": f"question {n}"}) for n in range(40))))
    assert isinstance(task, FilesTask)
    assert len(task.prompts("train")) + len(task.prompts("heldout")) == 40


def test_a_section_that_is_not_the_task_is_not_read() -> None:
    config = DataConfig(task="world", files=FilesConfig(prompts="no/such/file.jsonl"))
    assert isinstance(build_task(config), WorldTask)


@pytest.mark.parametrize("task", ["movie_sentiment", "hh_rlhf", "files"])
def test_a_task_without_its_section_is_refused(task: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.task \('{task}'\) needs the section data\.{task}; add data\.{task}"):
        DataConfig(task=task)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (DataConfig(task="files", files=FilesConfig(prompts="missing.jsonl")), "data.files.prompts"),
        (
            DataConfig(task="hh_rlhf", hh_rlhf=HhRlhfConfig(path="missing", files=("a.jsonl.gz",))),
            "data.hh_rlhf.path",
        ),
        (
            DataConfig(task="movie_sentiment", movie_sentiment=MovieSentimentConfig(path="missing")),
            "data.movie_sentiment.path",
        ),
    ],
)
def test_a_missing_file_names_its_setting(config: DataConfig, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} \('missing.*must be a file that exists"):
        build_task(config)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.jsonl: no usable record \(it is empty\)"):
        build_task(files(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "two"', r"prompts\.jsonl:2: not JSON"),
        ('["two"]', r"prompts\.jsonl:2: must be an object"),
        ('{"question": "two"}', r'prompts\.jsonl:2: "prompt" is missing among \[\'question\'\]'),
        ('{"prompt": 2}', r'prompts\.jsonl:2: "prompt" must be text, found int'),
    ],
)
def test_a_malformed_record_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_task(files(tmp_path, '{"prompt": "one"}', line))


def test_other_settings_and_other_data_have_other_fingerprints(tmp_path: Path) -> None:
    prompts = [json.dumps({"prompt": f"question {n}"}) for n in range(40)]
    tasks = [
        build_task(DataConfig()),
        build_task(DataConfig(world=WorldConfig(seed=1))),
        build_task(files(tmp_path, *prompts)),
        build_task(files(tmp_path, *prompts, '{"prompt": "one more"}')),
    ]
    assert len({task.fingerprint() for task in tasks}) == 4
    assert build_task(DataConfig()).fingerprint() == tasks[0].fingerprint()
