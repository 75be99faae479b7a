"""Overrides that make the quickstart as small as its stages allow: for tests of how it runs, not of what it learns."""

from __future__ import annotations

SMALL = (
    "data.world.num_train_prompts=300",
    "data.world.num_heldout_prompts=40",
    "data.world.demonstrations_per_prompt=1",
    "sft.num_epochs=0.2",
    "comparison.num_prompts=24",
    "comparison.num_heldout_prompts=12",
    "reward_model.num_epochs=1",
    "raft.num_prompts=16",
    "raft.responses_per_prompt=4",
    "ppo.num_steps=2",
    "ppo.rollouts_per_step=16",
    "ppo.eval_every=1",
    "ppo.eval_prompts=10",
    "ppo.checkpoint_every=1",
    "evaluation.num_prompts=20",
    "generation.num_engines=2",
)
