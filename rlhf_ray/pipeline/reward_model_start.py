"""Where a reward model starts from, of whatever kind it is."""

from __future__ import annotations

from rlhf_ray.pipeline.context import Context
from rlhf_ray.pipeline.door import checkpoint_directory
from rlhf_ray.pipeline.sft import policy_path


def initial_weights(context: Context) -> str:
    """The checkpoint that ``reward_model.initialise_from`` names."""
    source = context.config.reward_model.initialise_from
    if source == "sft":
        return str(policy_path(context))
    if source == "base":
        return str(context.results("model")["weights"])
    return str(checkpoint_directory(source, field="reward_model.initialise_from"))
