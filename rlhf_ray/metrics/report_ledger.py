"""The ledger on the page and on the terminal: its accounts by role, what came out a second, and the lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table as RichTable

from rlhf_ray.ledger.accounts import Account
from rlhf_ray.ledger.balance import TOLERANCE, Balance
from rlhf_ray.ledger.lanes import Lanes
from rlhf_ray.ledger.spans import Span, Stretch, merged
from rlhf_ray.metrics.plots import Axes, Draw, Ink, Plot
from rlhf_ray.metrics.report_data import ReportData
from rlhf_ray.metrics.report_tables import Cell, Table, TableBuilder

COLORS: Mapping[Account, str] = {
    Account.GENERATION: "#e07a29",
    Account.DISCARDED: "#a3473a",
    Account.SCORING: "#8f6cc0",
    Account.FORWARDS: "#4f8fb5",
    Account.POLICY: "#2f5d8a",
    Account.CRITIC: "#3d9a8b",
    Account.FITTING: "#5f7d4f",
    Account.SYNC: "#b99a2e",
    Account.CHECKPOINT: "#c25b78",
    Account.EVALUATION: "#9c6b4e",
    Account.FOR_ROLLOUTS: "#f3d3b8",
    Account.FOR_SCORES: "#dccfee",
    Account.FOR_TRAINER: "#bfd4e6",
    Account.START_UP: "#9aa3ab",
    Account.RESTART: "#d63c3c",
    Account.DRIVER: "#33383d",
    Account.AT_REST: "#e3e6e9",
}
MOMENTS = 800  # of a lane in the picture; each shows what took most of it
MAX_LANES = 40
LAST_STEPS = 3
SHOWN_S = 0.05  # less is not told of a role


def verdict_of(found: Balance) -> str:
    """Whether the accounts sum to the time of the workers; one line, loud where they do not."""
    sums = (
        f"{found.booked_s:,.0f} worker-seconds booked of {found.there_s:,.0f} that {len(found.workers)} workers were "
        f"there, a difference of {found.difference:.2%}"
    )
    if found.balances:
        return f"The ledger balances: {sums}."
    worst = max(found.workers, key=lambda worker: abs(worker.difference_s))
    return (
        f"WARNING: THE LEDGER DOES NOT BALANCE: {sums}, above {TOLERANCE:.0%}; most of it is {worst.worker}'s "
        f"({worst.difference_s:+,.0f} s): a worker that did not give its books, or clocks that run apart"
    )


# --------------------------------------------------------------------------------------------------------------- tables
def accounts_of(found: Balance) -> Table:
    """Seconds by account and role, their sums, and what the driver saw of the workers."""
    whole = found.booked_s or 1.0
    counts = {role: sum(worker.role == role for worker in found.workers) for role in found.by_role}
    rows = [
        _row(str(account), [sums.get(account, 0.0) for sums in found.by_role.values()], f"{seconds / whole:.1%}")
        for account, seconds in found.totals.items()
    ]
    there = {role: sum(w.there_s for w in found.workers if w.role == role) for role in counts}
    booked = {role: sum(w.booked_s for w in found.workers if w.role == role) for role in counts}
    rows.append(_row("sum", list(booked.values()), "100%"))
    rows.append(_row("time of the workers", list(there.values()), f"off by {found.difference:.2%}"))
    columns = ("Account", *(f"{role} ({count})" for role, count in counts.items()), "All", "Share")
    note = f"Worker-seconds of {found.wall_s:,.0f} s, each in exactly one account. {verdict_of(found)}"
    return Table("accounts", "The ledger", note, columns, tuple(rows))


def _row(name: str, seconds: Sequence[float], share: str) -> tuple[Cell, ...]:
    told = [Cell(f"{value:,.1f}" if value else "") for value in seconds]
    return Cell(name), *told, Cell(f"{sum(seconds):,.1f}"), Cell(share)


def accounts_table(data: ReportData) -> Table | None:
    return accounts_of(data.ledger) if data.ledger else None


def throughput_table(data: ReportData) -> Table | None:
    return throughput_of(data.ledger) if data.ledger else None


def throughput_of(found: Balance) -> Table | None:
    """Prompts and tokens per second of PPO's steps."""
    if (speed := found.throughput) is None:
        return None
    rates = speed.rates()
    rows = []
    for name, label in (
        ("prompts", "prompts"),
        ("sampled_tokens", "sampled tokens"),
        ("trained_tokens", "trained tokens"),
    ):
        keys = (f"{name}_per_second", f"{name}_per_second_per_worker", f"{name}_per_second_per_gpu")
        rows.append((Cell(label), *(Cell(f"{rates[key]:,.3g}" if key in rates else "") for key in keys)))
    gpus = f" and {speed.gpus:g} GPUs" if speed.gpus else ""
    note = (
        f"PPO: {speed.steps} steps in {speed.seconds:,.1f} s, evaluation and saving left out, with "
        f"{speed.workers:.3g} workers{gpus} beside the driver. Trained tokens are of prompts and responses, epochs "
        "counted once."
    )
    return Table("throughput", "Throughput", note, ("", "per second", "per worker", "per GPU"), tuple(rows))


def work_table(data: ReportData) -> Table | None:
    return work_of(data.ledger) if data.ledger else None


def work_of(found: Balance) -> Table | None:
    """Operations a second of those who compute, and bytes a second of the weight sync."""
    speed = found.throughput
    if speed is None or not (speed.flops_per_second or speed.sync_bytes):
        return None
    rows = [
        (
            Cell(str(account)),
            Cell(f"{speed.computing_s[account]:,.1f}"),
            Cell(f"{rate / 1e9:,.3g} GFLOP/s"),
            Cell(f"{speed.mfu[account]:.1%}" if account in speed.mfu else ""),
        )
        for account, rate in speed.flops_per_second.items()
    ]
    if speed.sync_bytes and speed.sync_s:
        moved = Cell(f"{speed.sync_bytes / speed.sync_s / 1e6:,.3g} MB/s")
        rows.append((Cell(str(Account.SYNC)), Cell(f"{speed.sync_s:,.1f}"), moved, Cell("")))
    note = (
        "Operations that the models need, recomputation left out, over the worker-seconds of their account; bytes of "
        "weights to one generator over the seconds of the sync. MFU: the share of what the device could do in bfloat16."
    )
    return Table("work", "Work", note, ("", "seconds", "a second", "MFU"), tuple(rows))


LEDGER_TABLES: tuple[TableBuilder, ...] = (accounts_table, throughput_table, work_table)


def terminal_accounts(found: Balance) -> RichTable:
    """The accounts for the end of a run, in at most 100 columns; what came out a second stands below."""
    shown = RichTable(title="The ledger: worker-seconds", title_justify="left", caption_justify="left")
    shown.add_column("Account", no_wrap=True)
    shown.add_column("All", justify="right")
    shown.add_column("Share", justify="right")
    shown.add_column("Of which")
    for account, seconds in found.totals.items():
        of_which = sorted(((sums.get(account, 0.0), role) for role, sums in found.by_role.items()), reverse=True)
        told = ", ".join(f"{role} {value:,.1f}" for value, role in of_which if value >= SHOWN_S)
        shown.add_row(str(account), f"{seconds:,.1f}", f"{seconds / (found.booked_s or 1.0):.1%}", told)
    shown.add_section()
    shown.add_row("sum", f"{found.booked_s:,.1f}", "100%", "")
    shown.add_row("time of the workers", f"{found.there_s:,.1f}", "", f"off by {found.difference:.2%}")
    if found.throughput is not None:
        rates = found.throughput.rates()
        names = ("prompts", "sampled_tokens", "trained_tokens")
        told = ", ".join(f"{rates[f'{name}_per_second']:,.3g} {name.replace('_', ' ')}" for name in names)
        shown.caption = f"PPO, per second of its {found.throughput.steps} steps: {told}"
        if (work := work_of(found)) is not None:
            shown.caption += "\n" + ", ".join(f"{row[0].text} {row[2].text}" for row in work.rows)
    return shown


# ---------------------------------------------------------------------------------------------------------------- lanes
def ledger_plots(data: ReportData) -> list[Plot]:
    """One lane a worker: of the whole run, and of PPO's last steps."""
    shown = dict(list(data.lanes.items())[:MAX_LANES])
    every = [span for spans in shown.values() for span in spans]
    if not every:
        return []
    whole = min(span.begun for span in every), max(span.ended for span in every)
    left = len(data.lanes) - len(shown)
    caption = "What each worker did and waited for" + (f"; {left} more are in ledger_trace.json." if left else ".")
    plots = [_lanes_plot("lanes", "Where each worker's time went", caption, shown, whole)]
    if steps := data.steps[-LAST_STEPS:]:
        window = steps[0].begun, steps[-1].ended
        title = f"The same in PPO's last {len(steps)} steps"
        plots.append(_lanes_plot("lanes_ppo", title, "With what lies between them.", shown, window))
    return plots


def _lanes_plot(key: str, title: str, caption: str, shown: Lanes, window: Stretch) -> Plot:
    cells = {worker: coarse(spans, *window) for worker, spans in shown.items()}
    used = [each for each in Account if any(span.account == each for spans in cells.values() for span in spans)]
    height = 1.3 + 0.22 * len(cells) + 0.1 * len(used)
    return Plot(key, title, caption, "s", "", draw_lanes(cells, used, window), height=height)


def draw_lanes(cells: Lanes, used: Sequence[Account], window: Stretch) -> Draw:
    start, end = window

    def draw(axes: Axes, ink: Ink) -> None:
        for lane, spans in enumerate(cells.values()):
            for account in {span.account for span in spans}:
                bars = [(span.begun - start, span.seconds) for span in spans if span.account == account]
                axes.broken_barh(bars, (lane - 0.4, 0.8), facecolors=COLORS[account], linewidth=0)
        axes.set_yticks(range(len(cells)), list(cells))
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        for account in used:
            axes.bar(0, 0, color=COLORS[account], label=str(account))
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False, fontsize=7.5, labelcolor=ink.text
        )
        axes.set_xlim(0, end - start)

    return draw


def coarse(spans: Sequence[Span], start: float, end: float, moments: int = MOMENTS) -> list[Span]:
    """The lane in ``moments`` equal parts: of each, what took most of it; neighbours as one."""
    width = (end - start) / moments or 1.0
    parts: list[dict[Account, float]] = [{} for _ in range(moments)]
    for span in spans:
        first, last = int((span.begun - start) / width), int((span.ended - start) / width)
        for place in range(max(0, first), min(last, moments - 1) + 1):
            low, high = start + place * width, start + (place + 1) * width
            shared = min(high, span.ended) - max(low, span.begun)
            parts[place][span.account] = parts[place].get(span.account, 0.0) + shared
    found: list[Span] = []
    for place, part in enumerate(parts):
        if part and sum(part.values()) > width / 2:
            account = max(part, key=lambda each: part[each])
            found.append(Span(account, start + place * width, start + (place + 1) * width))
    return merged(found, width / 1000)
