"""A few rounds of `make torture`, which makes two hundred."""

from pathlib import Path

from tests.chaos import chaos
from tests.torture import torture


def test_kill_9_at_random_moments_loses_nothing_doubles_nothing_and_damages_nothing(tmp_path: Path) -> None:
    ledger = torture(tmp_path, rounds=3, seed=7, accepted=25)
    assert (ledger.lost, ledger.duplicates, ledger.damaged) == ([], [], [])
    assert ledger.accepted


def test_faults_of_every_kind_lose_no_task_unless_the_service_reports_it(tmp_path: Path) -> None:
    faults = ["journal_removed", "disk_full", "bucket_away", "journal_replaced", "kill_worker"]
    world = chaos(tmp_path, rounds=5, seed=3, faults=faults)
    assert (world.lost, world.duplicates, world.damaged) == ([], [], [])
    assert world.accepted.keys() - world.excused
