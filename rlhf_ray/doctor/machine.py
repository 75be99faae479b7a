"""Is there room: bundles, memory, shared memory, disk, ports?"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.doctor.estimates import RAY, disk_bytes, role_memory
from rlhf_ray.doctor.facts import Facts
from rlhf_ray.doctor.findings import Finding, error, note, ok, warning

GIB = 2**30
TIGHT = 0.85  # of what there is


def cluster(facts: Facts) -> Iterator[Finding]:
    """The cluster answers, and holds every stage's bundles at once."""
    machine = facts.machine
    if machine.cluster_problem:
        yield error("cluster.address", machine.cluster_problem, "start a cluster, or cluster.address=local")
        return
    if facts.config.device == "cuda" and not any(node.gpus for node in machine.nodes):
        yield error("device", "cuda is wanted, and no node of the cluster has a GPU", "device=cpu, or add GPU nodes")
        return
    for stage, problem in machine.placement.items():
        found, _, fix = problem.rpartition(". ")
        yield error(f"placement of {stage}", found or problem, fix or "lower what is asked for")
    if not machine.placement:
        where = "a cluster on this machine" if machine.local else f"{len(machine.nodes)} nodes"
        most = max(machine.wanted.values(), default=(0.0, 0.0))
        yield ok("placement", f"every stage fits on {where}; the largest asks for {most[0]:g} CPUs, {most[1]:g} GPUs")


def turns(facts: Facts) -> Iterator[Finding]:
    """Roles that take turns on too few cores."""
    wanted = max((cpus for cpus, _ in facts.machine.wanted.values()), default=0.0)
    if facts.machine.local and wanted > facts.machine.cpus:
        found = f"a stage asks for {wanted:g} CPUs and this machine has {facts.machine.cpus}: its roles take turns"
        yield note("cluster.num_cpus", found, "fewer engines or ranks are as fast here")


def memory(facts: Facts) -> Iterator[Finding]:
    """What PPO's roles hold in the RAM of a machine that runs them all."""
    machine = facts.machine
    if facts.shape is None or machine.device == "cuda" or not machine.local or "ppo" not in facts.config.methods:
        return
    roles = role_memory(facts.config, facts.shape, device="cpu", gpu_memory=0.0)
    total = sum(each.total * count for each, count in roles) + RAY + facts.config.cluster.object_store_mb * 2**20
    largest = max(roles, key=lambda role: role[0].total * role[1])
    parts = ", ".join(f"{each.role} {count} x {each.total / GIB:.2g}" for each, count in roles)
    found = f"PPO needs about {total / GIB:.1f} GiB ({parts}); {machine.memory_free / GIB:.1f} are free"
    fix = f"the {largest[0].role} takes most: fewer of them, or a smaller training.max_tokens_per_micro_batch"
    if total > machine.memory:
        yield error("memory", f"{found} of {machine.memory / GIB:.1f}", fix)
    elif total > TIGHT * machine.memory_free:
        yield warning("memory", found, f"end other programs; {fix}")
    else:
        yield ok("memory", found)


def gpu_memory(facts: Facts) -> Iterator[Finding]:
    """Each role against the memory of one GPU; roles that share one, together."""
    machine, config = facts.machine, facts.config
    size = max((node.gpu_memory for node in machine.nodes), default=0.0)
    if facts.shape is None or machine.device != "cuda" or size == 0 or "ppo" not in config.methods:
        return
    fields = {"trainer rank": "training", "generator": "generation", "reference": "reference"}
    roles = role_memory(config, facts.shape, device="cuda", gpu_memory=size)
    short = [each for each, _ in roles if each.total > 0.95 * size]
    for each in short:
        parts = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in each.parts.items())
        found = f"one {each.role} needs about {each.total / 1e9:.0f} GB ({parts}) of a GPU's {size / 1e9:.0f}"
        yield error(fields.get(each.role, "reward_server"), found, "see `rlhf-ray plan` for what fits")
    together = sum(each.total for each, _ in roles)
    if config.training.gpus_per_rank < 1 and together > 0.95 * size and not short:
        found = f"the roles that share a GPU need about {together / 1e9:.0f} GB of its {size / 1e9:.0f}"
        fix = "lower generation.gpu_memory_utilization or max_tokens_per_batch of the servers"
        yield error("generation.gpu_memory_utilization", found, fix)
    elif not short:
        yield ok("GPU memory", "; ".join(f"{each.role} {each.total / 1e9:.0f} GB" for each, _ in roles))


def shared_memory(facts: Facts) -> Iterator[Finding]:
    """Ray's object store and, on CPU, the buckets of a weight sync lie in /dev/shm."""
    machine, config = facts.machine, facts.config
    store = config.cluster.object_store_mb * 2**20 if machine.local else 0
    needed = store + (2 * config.weight_sync.bucket_mb * 2**20 if machine.device == "cpu" else 0)
    found = f"{needed / GIB:.2g} GiB are needed in /dev/shm and {machine.shm_free / GIB:.2g} are free"
    if needed > machine.shm_free:
        fix = "a larger one (docker run --shm-size=8g), or lower cluster.object_store_mb and weight_sync.bucket_mb"
        yield error("cluster.object_store_mb", found, fix)
    else:
        yield ok("shared memory", found)


def disk(facts: Facts) -> Iterator[Finding]:
    """Models, states and rollouts fit beside each other, and can be written."""
    if not facts.machine.writable:
        yield error("output_dir", f"{facts.config.output_dir} cannot be written", "choose another output_dir")
        return
    if facts.shape is None:
        return
    parts = disk_bytes(facts.config, facts.shape)
    total, free = sum(parts.values()), facts.machine.disk_free
    words = ", ".join(f"{name} {value / 1e9:.2g}" for name, value in parts.items() if value)
    found = f"about {total / 1e9:.2g} GB will be written ({words}), and {free / 1e9:.3g} are free"
    if total > free:
        yield error("output_dir", found, "choose an output_dir on a larger disk")
    elif total > TIGHT * free:
        yield warning("output_dir", found, "choose a larger disk, or free some of this one")
    else:
        yield ok("disk", found)


def ports(facts: Facts) -> Iterator[Finding]:
    """Ranks and Ray meet on free ports of this machine."""
    if not facts.machine.loopback:
        yield error("ports", "no port of this machine can be listened on", "check the sandbox's or container's network")


CHECKS = (cluster, turns, memory, gpu_memory, shared_memory, disk, ports)
