"""``rlhf-ray drift``: an endpoint's log by day, on the terminal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlhf_ray.config.checks import require_positive
from rlhf_ray.data.jsonl import write_jsonl
from rlhf_ray.data.sources import check_source, read_source
from rlhf_ray.suites.drift_table import drift_rows, drift_table
from rlhf_ray.suites.log import drifts, parse_logged


def show_drift(log: str, *, baseline_days: int, output: Path | None) -> bool:
    """Print the days and the alarms of ``log``; whether there is any alarm. Raises ConfigError and DataError."""
    require_positive(baseline_days=baseline_days)
    check_source(log, field="LOG")
    logged = [parse_logged(record) for record in read_source(log)]
    found = drifts(logged, baseline_days=baseline_days)
    console = Console(highlight=False)
    console.print(drift_table(found, Counter(each.day for each in logged)))
    alarms = sorted((alarm for each in found for alarm in each.alarms), key=lambda alarm: alarm.day)
    for alarm in alarms:
        console.print(Text(f"alarm  {alarm}", "red"), soft_wrap=True)
    if not any(each.baseline == each.baseline for each in found):
        console.print(f"No day after the first {baseline_days} (--baseline-days): nothing is compared yet.")
    elif not alarms:
        console.print("No alarm.")
    if output is not None:
        write_jsonl(output, drift_rows(found))
    return bool(alarms)
