"""``rlhf-ray doctor``: everything that can be known before a run starts, in seconds."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from launch.command import Config, Overrides, guard
from rlhf_ray.config.load import load_config, to_yaml
from rlhf_ray.doctor.examine import examine
from rlhf_ray.doctor.findings import Finding, Severity, of_exception, worst
from rlhf_ray.errors import RlhfError

STYLES = {Severity.OK: "green", Severity.NOTE: "blue", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}


def doctor(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the configuration and stop.")] = False,
) -> None:
    """Check versions, room, data, tokenizer and settings of a run without starting it; status 1 on an error."""
    try:
        settings = load_config(config, overrides or [])
    except RlhfError as error:
        finish((of_exception(error, field=str(config)),), as_json)
        return
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return

    def run() -> tuple[Finding, ...]:
        from launch.doctor_facts import gather

        return examine(gather(settings))

    finish(guard(run), as_json)


def finish(findings: tuple[Finding, ...], as_json: bool) -> None:
    """Print the findings and end with the status that they deserve."""
    if as_json:
        json.dump([finding.as_dict() for finding in findings], sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        Console().print(findings_table(findings))
    raise typer.Exit(1 if worst(findings) is Severity.ERROR else 0)


def findings_table(findings: tuple[Finding, ...]) -> Table:
    """One row a finding, the worst first."""
    counts = {each: sum(f.severity is each for f in findings) for each in reversed(Severity)}
    title = ", ".join(f"{count} {each.name.lower()}" for each, count in counts.items() if count)
    table = Table(title=title, show_lines=True)
    for name in ("", "field", "found", "fix"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        severity = f"[{STYLES[finding.severity]}]{finding.severity.name.lower()}[/]"
        table.add_row(severity, finding.field, finding.found.replace("[", r"\["), finding.fix.replace("[", r"\["))
    return table
