"""What `make torture` does two hundred times, a few times."""

from pathlib import Path

from tests.torture import torture


def test_kill_9_at_random_moments_loses_nothing_doubles_nothing_and_damages_nothing(tmp_path: Path) -> None:
    ledger = torture(tmp_path, rounds=3, seed=7, accepted=25)
    assert (ledger.lost, ledger.duplicates, ledger.damaged) == ([], [], [])
    assert ledger.accepted
