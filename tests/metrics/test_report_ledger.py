"""The ledger as people see it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_ray.ledger.accounts import DEFINITIONS, Account
from rlhf_ray.ledger.balance import Balance, balance
from rlhf_ray.ledger.lanes import lanes
from rlhf_ray.ledger.spans import Span
from rlhf_ray.metrics.report import write_report
from rlhf_ray.metrics.report_ledger import (
    COLORS,
    accounts_of,
    coarse,
    terminal_accounts,
    throughput_of,
    verdict_of,
    work_of,
)
from tests.ledger.made_up import begins, books, during, ends, run, step
from tests.metrics.made_up_report import made_up_report

STORY = run(
    begins("generator 0", 0.0),
    begins("trainer 0", 0.0, gpus=1.0),
    books("generator 0", 0.0, 100.0, (Account.GENERATION, 0.0, 60.0)),
    books("trainer 0", 0.0, 100.0, (Account.START_UP, 0.0, 5.0), (Account.POLICY, 60.0, 100.0)),
    ends("generator 0", 100.0),
    ends("trainer 0", 100.0),
    step(0.0, 100.0, sampled=600, discarded=200),
)


def rows(found: Balance) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in accounts_of(found).rows}


def test_the_table_has_a_column_a_role_and_sums_that_meet_the_time_of_the_workers() -> None:
    found = rows(balance(STORY))
    assert accounts_of(balance(STORY)).columns == (
        "Account",
        "driver (1)",
        "generator (1)",
        "trainer (1)",
        "All",
        "Share",
    )
    assert found["useful generation"] == ["", "40.0", "", "40.0", "13.3%"]
    assert found["waiting for rollouts"] == ["60.0", "", "55.0", "115.0", "38.3%"]
    assert found["sum"][:4] == found["time of the workers"][:4] == ["100.0", "100.0", "100.0", "300.0"]


def test_a_ledger_that_does_not_balance_says_so_and_whose_it_is() -> None:
    assert verdict_of(balance(STORY)).startswith("The ledger balances: 300 worker-seconds booked of 300")
    broken = run(begins("trainer 0", 0.0), books("trainer 0", 0.0, 70.0), ends("trainer 0", 100.0, "silent"))
    assert verdict_of(balance(broken)).startswith("WARNING: THE LEDGER DOES NOT BALANCE")
    assert "most of it is trainer 0's (-30 s)" in verdict_of(balance(broken))


def test_throughput_is_told_per_second_per_worker_and_per_gpu() -> None:
    table = throughput_of(balance(STORY))
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["prompts", "0.1", "0.05", "0.1"],
        ["sampled tokens", "6", "3", "6"],
        ["trained tokens", "8", "4", "8"],
    ]


def worked(**changes: object) -> Balance:
    """A trainer that computes 80 operations in 40 s, and a sync of 10 s in which 500 bytes move."""
    moved = {**step(0.0, 100.0), "sync_bytes": 500.0, "flops": {str(Account.POLICY): 80e9}, **changes}
    return balance(
        run(
            begins("trainer 0", 0.0),
            books("trainer 0", 0.0, 100.0, (Account.POLICY, 20.0, 60.0)),
            during(Account.SYNC, 90.0, 100.0),
            ends("trainer 0", 100.0),
            moved,
        )
    )


def test_operations_are_told_by_second_of_their_account_and_bytes_by_second_of_the_sync() -> None:
    table = work_of(worked())
    assert table is not None
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["policy update", "40.0", "2 GFLOP/s", ""],
        ["weight sync", "10.0", "5e-05 MB/s", ""],
    ]
    rates = worked().as_json()["throughput"]
    assert (rates["policy_update_flops_per_second"], rates["sync_bytes_per_second"]) == (2e9, 50.0)
    assert "policy_update_mfu" not in rates


def test_on_a_known_device_they_are_a_share_of_its_rate() -> None:
    found = worked(device="h100", flops={str(Account.POLICY): 40 * 98.94e12, str(Account.SCORING): 1.0})
    assert found.as_json()["throughput"]["policy_update_mfu"] == pytest.approx(0.1)


def test_a_ledger_without_counted_work_has_no_table_of_it() -> None:
    assert work_of(balance(STORY)) is None


def test_the_terminals_table_fits_100_columns() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(terminal_accounts(balance(STORY)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 100
    assert "waiting for rollouts" in shown
    assert "driver 60.0, trainer 55.0" in shown


def test_the_page_has_the_tables_and_the_lanes(tmp_path: Path) -> None:
    data = replace(made_up_report(), ledger=balance(STORY), lanes=lanes(STORY), steps=tuple(STORY.steps))
    page = write_report(data, tmp_path).read_text()
    for place in ("plot-lanes", "plot-lanes_ppo", "accounts", "throughput"):
        assert f'id="{place}"' in page or f'id="table-{place}"' in page, place
    assert "discarded generation" in page


def test_every_account_has_a_definition_and_a_colour_of_its_own() -> None:
    assert list(DEFINITIONS) == list(Account)
    assert len({COLORS[account] for account in Account}) == len(Account)


@pytest.mark.parametrize("moments", [4, 7])
def test_the_picture_shows_what_took_most_of_each_moment(moments: int) -> None:
    spans = [Span(Account.POLICY, 0.0, 10.0), Span(Account.CRITIC, 10.0, 10.1), Span(Account.FOR_ROLLOUTS, 10.1, 20.0)]
    found = coarse(spans, 0.0, 28.0, moments)
    assert [span.account for span in found] == [Account.POLICY, Account.FOR_ROLLOUTS]
    assert found[0].ended == pytest.approx(found[1].begun)
    assert abs(found[1].ended - 20.0) <= 28.0 / moments
