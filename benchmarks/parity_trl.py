"""Compare our formulas with TRL's own code, number by number, and record the table in benchmarks/results/.

    python benchmarks/parity_trl.py
    python benchmarks/parity_trl.py --environments runs/parity_trl

TRL runs in environments of its own (made with uv where they are missing), because it wants other packages than we do;
1.16.0 for all but PPO, which left TRL after 1.12.0. Both sides get the same tensors from one seed and the same tiny
random models (``parity_trl_inputs.py``). ``parity_trl_probe*.py`` call TRL's trainers and functions there,
``parity_trl_ours*.py`` our formulas here. The exit code is 1 if any difference exceeds the tolerance.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT))

from benchmarks import parity_trl_inputs, parity_trl_ours, parity_trl_ours_policy, parity_trl_ours_ppo  # noqa: E402
from benchmarks.parity_trl_ours import Case, Row  # noqa: E402
from benchmarks.record_runs import RESULTS, machine, machine_line  # noqa: E402

# The libraries under TRL are those we test with, so that what is compared is TRL.
PINNED = ("transformers==5.19.0", "accelerate==1.15.0", "datasets==5.2.0", "safetensors==0.8.0", "tokenizers==0.23.3")
TORCH = "2.13.0"
TOLERANCE = 2e-5  # of the largest number compared: what float32 leaves where one of the sides computes in it

NOT_COMPARED = (
    "`PPOTrainer.train` is one function: GAE, shaping and both losses cannot be called alone. A whole step runs, with "
    "sampled responses of which about half end in EOS, and its variables are read.",
    "PPO in TRL has no clip-higher, dual clip, explained variance or KL in the loss: nothing to compare those with.",
    "Means over accumulation steps and over ranks: TRL averages micro-batches or ranks for some losses, ours sum and "
    "divide once. Compared on one batch and one process (SFT: two unequal micro-batches).",
    "The ratio cut at exp(+-20), ReMax, REINFORCE++, OPO, exact KL and the overlong penalty exist here only.",
    "`chosen_likelihood_loss` (a mean over responses): TRL's `sft` term is a mean over tokens.",
    "vLLM is not started: the weights trainer / engine are those of TRL's code on given log-probabilities.",
    "TRL's fused Triton kernels do not run without a GPU: its plain torch code is what answered.",
)


@dataclass(frozen=True)
class Environment:
    """A TRL version, the probe that asks it, and our answers."""

    trl: str
    part: str
    probe: str
    ours: Sequence[Callable[[Case], Iterator[Row]]]


ENVIRONMENTS = (
    Environment("1.16.0", "preferences", "parity_trl_probe.py", parity_trl_ours.PREFERENCES),
    Environment("1.16.0", "policy", "parity_trl_probe_policy.py", parity_trl_ours_policy.POLICY),
    Environment("1.12.0", "ppo", "parity_trl_probe_ppo.py", parity_trl_ours_ppo.PPO),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=CHECKOUT / "runs" / "parity_trl")
    parser.add_argument("--note", default="", help="a sentence for the record: what else the machine was doing")
    arguments = parser.parse_args()
    folder = arguments.environments.resolve() / "exchange"
    shutil.rmtree(folder, ignore_errors=True)
    given = parity_trl_inputs.write(folder)

    rows, versions = [], {"here": versions_here()}
    for environment in ENVIRONMENTS:
        ask(environment, make(environment, arguments.environments.resolve()), folder)
        said = load_file(folder / f"{environment.part}.safetensors")
        spoken = json.loads((folder / f"{environment.part}.json").read_text())
        versions[f"trl {environment.trl}"] = spoken["versions"]
        case = Case(given=given, said=said, settings=parity_trl_inputs.SETTINGS, folder=folder)
        for answer in environment.ours:
            rows += [line(row, said[row.key], spoken["functions"][row.key], environment.trl) for row in answer(case)]
    record = {
        "name": "parity_trl",
        "command": "python benchmarks/parity_trl.py",  # where the environments lay does not matter to the record
        "note": arguments.note,
        "machine": machine(),
        "versions": versions,
        "tolerance": TOLERANCE,
        "rows": rows,
        "not_compared": NOT_COMPARED,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "parity_trl.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "parity_trl.md").write_text(table(record))
    print(table(record))
    return 1 if failed(rows) else 0


def make(environment: Environment, folder: Path) -> Path:
    """Return the interpreter of the environment; make it first where there is none."""
    home = folder / f"trl-{environment.trl}"
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise SystemExit("parity_trl: needs uv to make the environments; install it: pip install uv")
    subprocess.run([uv, "venv", "--clear", "--quiet", "--python", sys.executable, home], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, f"trl=={environment.trl}", *PINNED]
    # uv reads none of pip's settings; where no local folder has torch for CPUs, PyTorch's own index does
    sources = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    if subprocess.run([*install, f"torch=={TORCH}+cpu"], env={**sources, **os.environ}, check=False).returncode:
        subprocess.run([*install, f"torch=={TORCH}", "--torch-backend", "cpu"], check=True)
    (home / "complete").touch()
    return python


def ask(environment: Environment, python: Path, folder: Path) -> None:
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = CHECKOUT / "benchmarks" / environment.probe
    subprocess.run([python, program, folder], env=inherited | quiet | settings, check=True)


def versions_here() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")}


def line(row: Row, theirs: Tensor, function: str, trl: str) -> dict[str, Any]:
    """One line of the table: how far the two answers are from each other, and how large they are."""
    theirs = theirs if row.taken is None else row.taken(theirs)
    difference, scale, count = compared(row.ours.detach(), theirs, row.where)
    return {
        "quantity": row.quantity,
        "function": function,
        "trl": trl,
        "max_difference": difference,
        "scale": scale,
        "numbers": count,
        "deliberate": row.deliberate,
    }


def compared(ours: Tensor, theirs: Tensor, where: Tensor | None = None) -> tuple[float, float, int]:
    """Return the largest difference, the largest of both sides' numbers and how many numbers were compared.

    In float64, where ``where`` is True. Something that is not finite on either side is a difference of infinity.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"ours {tuple(ours.shape)} must have the shape of TRL's answer {tuple(theirs.shape)}")
    ours, theirs = ours.double(), theirs.double()
    if where is not None:
        ours, theirs = ours[where], theirs[where]
    if not ours.numel():
        raise ValueError("nothing to compare: the mask is empty")
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        return float("inf"), float("nan"), ours.numel()
    scale = max(ours.abs().max().item(), theirs.abs().max().item())
    return (ours - theirs).abs().max().item(), scale, ours.numel()


def failed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if not row["max_difference"] <= TOLERANCE * row["scale"]]


def table(record: Mapping[str, Any]) -> str:
    rows, beyond = record["rows"], failed(record["rows"])
    verdict = f"{len(rows) - len(beyond)} of {len(rows)} quantities agree to {record['tolerance']:g} of their scale."
    head = [
        "# Our formulas and TRL's code",
        "",
        f"Command: `{record['command']}`",
        "",
        machine_line(record),
        "",
        verdict,
    ]
    lines = [*head, "", "| quantity | TRL's function | TRL | max difference | scale | deliberate difference |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        sizes = f"{row['max_difference']:.1e} | {row['scale']:.3g}"
        lines.append(f"| {row['quantity']} | `{row['function']}` | {row['trl']} | {sizes} | {row['deliberate']} |")
    lines += ["", "Not compared:", ""]
    lines += [f"- {reason}" for reason in record["not_compared"]]
    for where, versions in record["versions"].items():
        lines += ["", f"Versions, {where}: " + ", ".join(f"{name} {version}" for name, version in versions.items())]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
