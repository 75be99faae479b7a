"""Who may import whom. The same rules stand in words in the architecture notes; here they hold."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
OURS = ("rlhf_ray", "actors", "launch")
MODULES = sorted(path for package in OURS for path in (CHECKOUT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yield every name that a file imports, wherever in the file it does: `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def belongs_to(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def importers_of(package: str, among: list[Path] = MODULES) -> set[str]:
    return {
        str(path.relative_to(CHECKOUT)) for path in among if any(belongs_to(name, package) for name in imports(path))
    }


def inside(folder: str) -> list[Path]:
    return [path for path in MODULES if path.is_relative_to(CHECKOUT / folder)]


def loaded_after(statements: str, packages: tuple[str, ...]) -> set[str]:
    """Return which of the packages a fresh Python has loaded after these statements."""
    report = f"import sys; {statements}; print(' '.join(p for p in {packages!r} if p in sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")


def test_the_walk_sees_imports_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "sample.py"
    source.write_text("import a.b\ndef f():\n    from c import d\nif 0:\n    import e as g\n")
    assert set(imports(source)) == {"a.b", "c", "c.d", "e"}


def test_what_holds_without_a_cluster_imports_neither_actors_nor_launch() -> None:
    assert not importers_of("actors", inside("rlhf_ray"))
    assert not importers_of("launch", inside("rlhf_ray") + inside("actors"))


def test_ray_is_imported_only_under_actors_and_launch() -> None:
    assert not importers_of("ray", inside("rlhf_ray"))


@pytest.mark.parametrize(("vendor", "home"), [("vllm", "generation"), ("deepspeed", "training")])
def test_an_engine_library_is_imported_only_in_its_engine(vendor: str, home: str) -> None:
    strangers = [name for name in importers_of(vendor) if not name.startswith(f"rlhf_ray/engines/{home}")]
    assert not strangers


def test_formulas_import_torch_and_nothing_else_of_ours() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    for path in inside("rlhf_ray/algo"):
        names = set(imports(path))
        strangers = {n for n in names if n.split(".")[0] not in allowed and not belongs_to(n, "rlhf_ray.algo")}
        assert not strangers, f"{path}: {strangers}"


def test_rewards_know_records_errors_and_settings_and_nothing_else_of_ours() -> None:
    allowed = ("rlhf_ray.rewards", "rlhf_ray.records", "rlhf_ray.errors", "rlhf_ray.config", "rlhf_ray.data")
    for path in inside("rlhf_ray/rewards"):
        ours = {name for name in imports(path) if name.split(".")[0] in OURS}
        assert all(any(belongs_to(name, room) for room in allowed) for name in ours), f"{path}: {ours}"


def test_the_process_of_a_reward_function_starts_light() -> None:
    assert not loaded_after("import rlhf_ray.rewards.worker", ("torch", "transformers", "ray", "omegaconf", "httpx"))


def test_the_labelling_desk_needs_no_web_server() -> None:
    assert not loaded_after("import rlhf_ray.labelling.desk", ("starlette", "uvicorn", "limits", "torch"))


def test_the_pages_on_runs_need_no_model_library() -> None:
    names = ", ".join(module_name(path) for path in inside("rlhf_ray/viewing"))
    assert not loaded_after(f"import {names}", ("torch", "transformers", "ray", "vllm", "deepspeed", "matplotlib"))


def test_what_a_judge_says_is_read_without_a_model_library() -> None:
    names = ", ".join(module_name(path) for path in inside("rlhf_ray/judging"))
    assert not loaded_after(f"import {names}", ("torch", "transformers", "ray", "vllm", "deepspeed"))


def test_a_chat_starts_without_a_cluster() -> None:
    assert not loaded_after("import launch.chat, rlhf_ray.pipeline.find_model", ("ray", "vllm", "deepspeed", "torch"))


def test_importing_the_driver_loads_no_cluster_and_no_engine() -> None:
    assert not loaded_after("import rlhf_ray.driver", ("ray", "vllm", "deepspeed"))


def test_importing_the_actors_loads_no_engine() -> None:
    names = ", ".join(module_name(path) for path in inside("actors"))
    assert not loaded_after(f"import {names}", ("vllm", "deepspeed"))


def test_package_files_hold_a_docstring_and_nothing_else() -> None:
    for path in MODULES:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path
            assert isinstance(body[0].value, ast.Constant), path


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["cpu"], *extras["gpu"]]
    declared = {normalised(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}
    providers = importlib.metadata.packages_distributions()
    for path in MODULES:
        for top in {name.split(".")[0] for name in imports(path)}:
            if top in OURS or top in sys.stdlib_module_names:
                continue
            assert declared & {normalised(name) for name in providers.get(top, [top])}, f"{path} imports {top}"


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
