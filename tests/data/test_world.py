"""The microworld as a task."""

from __future__ import annotations

import subprocess
import sys

from rlhf_ray.config.world import DemonstrationMix, WorldConfig
from rlhf_ray.data.task import Task
from rlhf_ray.data.world import WorldTask

SMALL = WorldConfig(num_train_prompts=50, num_heldout_prompts=20)


def test_the_world_is_a_task_whose_people_rank_what_the_model_samples() -> None:
    task = WorldTask(SMALL)
    assert isinstance(task, Task)
    assert task.has_annotators
    assert task.rankings("train") == []
    assert [len(task.prompts("train")), len(task.prompts("heldout"))] == [50, 20]
    assert len(task.demonstrations("train")) > 2 * 1152  # the lessons, and what is not among them
    assert len(task.demonstrations("heldout")) == 40


def test_two_worlds_of_one_configuration_are_equal_in_everything() -> None:
    first, second = WorldTask(SMALL), WorldTask(SMALL)
    prompt = first.prompts("heldout")[0]
    assert first.demonstrations("train") == second.demonstrations("train")
    assert first.rank(prompt, ["a", "b", "c", "d"], 1) == second.rank(prompt, ["a", "b", "c", "d"], 1)
    assert first.fingerprint() == second.fingerprint()


def test_the_fingerprint_follows_every_setting() -> None:
    configs = [
        SMALL,
        WorldConfig(seed=1, num_train_prompts=50, num_heldout_prompts=20),
        WorldConfig(num_train_prompts=51, num_heldout_prompts=20),
        WorldConfig(num_train_prompts=50, num_heldout_prompts=20, mix=DemonstrationMix(wrong=0.01)),
    ]
    prints = {WorldTask(config).fingerprint() for config in configs}
    assert len(prints) == 4
    assert all(len(value) == 64 for value in prints)


def test_changing_a_returned_list_leaves_the_world_as_it_was() -> None:
    task = WorldTask(SMALL)
    task.prompts("train").clear()
    assert len(task.prompts("train")) == 50


def test_a_prompt_is_one_question() -> None:
    for prompt in WorldTask(SMALL).prompts("train"):
        assert [message.role for message in prompt.messages] == ["user"]


def test_the_world_needs_no_torch() -> None:
    program = "import sys, rlhf_ray.data.world; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
