"""What each role of a run needs from the cluster, read off the configuration."""

from __future__ import annotations

from actors.placement import Bundle, bundles
from rlhf_ray.config.run import RunConfig


def trainer(config: RunConfig, device: str) -> tuple[Bundle, ...]:
    t = config.training
    return bundles(
        "trainer",
        count=t.num_ranks,
        cpus=t.cpus_per_rank,
        gpus=t.gpus_per_rank,
        device=device,
        field="training.num_ranks",
    )


def generators(config: RunConfig, device: str) -> tuple[Bundle, ...]:
    g = config.generation
    return bundles(
        "generator",
        count=g.num_engines,
        cpus=g.cpus_per_engine,
        gpus=g.gpus_per_engine if g.gpus_per_engine is not None else float(g.tensor_parallel_size),
        device=device,
        field="generation.num_engines",
    )


def reference(config: RunConfig, device: str) -> tuple[Bundle, ...]:
    """None with LoRA: the reference is then the policy without its adapters."""
    return () if config.training.lora.enabled else reference_servers(config, device)


def reference_servers(config: RunConfig, device: str) -> tuple[Bundle, ...]:
    r = config.reference
    return bundles(
        "reference",
        count=r.num_replicas,
        cpus=r.cpus_per_replica,
        gpus=r.gpus_per_replica,
        device=device,
        field="reference.num_replicas",
    )


def reward_model(config: RunConfig, device: str, role: str = "reward_model") -> tuple[Bundle, ...]:
    r = config.reward_server
    return bundles(
        role,
        count=r.num_replicas,
        cpus=r.cpus_per_replica,
        gpus=r.gpus_per_replica,
        device=device,
        field="reward_server.num_replicas",
    )


def reward_source(config: RunConfig, device: str, name: str) -> tuple[Bundle, ...]:
    """A model is served like the run's own; a function or a service mostly waits."""
    source = config.rewards.used[name]
    if source.kind == "model":
        several = sum(each.kind == "model" for each in config.rewards.used.values()) > 1
        return reward_model(config, device, f"reward_model {name}" if several else "reward_model")
    field = f"rewards.sources.{name}.num_workers"
    return bundles(f"reward {name}", count=source.num_workers, cpus=0.1, gpus=0.0, device=device, field=field)


def rewards(config: RunConfig, device: str) -> tuple[Bundle, ...]:
    """All sources of PPO's rewards."""
    return tuple(bundle for name in config.rewards.used for bundle in reward_source(config, device, name))


def stages(config: RunConfig, device: str) -> dict[str, tuple[Bundle, ...]]:
    """Bundles that must exist at the same time, by stage."""
    train, generate = trainer(config, device), generators(config, device)
    wanted = {"sft": train}
    if config.collects_comparisons:
        wanted["comparison"] = generate
    if config.trains_reward_model:
        wanted["reward_model"] = train
    if "ppo" in config.methods:
        wanted["ppo"] = (*train, *generate, *reference(config, device), *rewards(config, device))
    if config.dpo_is_online:
        wanted["dpo"] = (*train, *generate, *reference_servers(config, device), *rewards(config, device))
    elif "dpo" in config.methods:
        wanted["dpo"] = reference_servers(config, device)  # before its ranks, which are those of SFT
    scoring = rewards(config, device) if config.scores_responses else ()
    if "raft" in config.methods:
        wanted["raft"] = (*generate, *scoring)  # likewise
    return wanted | {"evaluation": (*generate, *reference_servers(config, device), *scoring)}
