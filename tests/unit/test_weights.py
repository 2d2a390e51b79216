"""Where a loader finds its weights, and the advice if they are missing."""

from pathlib import Path

import pytest

from imagegen.catalog.sources import Folders
from imagegen.core.errors import WeightsMissing, WeightsRefused
from imagegen.loaders.base import find_weights
from imagegen.testing.fake import FakeSpec

#: A source that is in nobody's cache.
NOWHERE = "imagegen-tests/in-nobodys-cache"


def spec(**fields: str) -> FakeSpec:
    return FakeSpec.model_validate({"name": "My model", "type": "fake", **fields})


def advice(entry: FakeSpec, models: Path = Path("none")) -> str:
    with pytest.raises(WeightsMissing) as raised:
        find_weights(entry, Folders(models, models))
    return raised.value.detail


def test_the_folder_of_the_entry_is_taken_where_it_exists(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert find_weights(spec(local_path="a", hf_path=NOWHERE), Folders(tmp_path, tmp_path)) == tmp_path / "a"


def test_missing_weights_are_reported_with_the_models_name_and_their_place() -> None:
    told = advice(spec(local_path="flux/dev"))
    assert "'My model'" in told
    assert "put them into 'flux/dev' below the models directory" in told


def test_missing_weights_are_reported_with_their_repository() -> None:
    assert f"fetch them from '{NOWHERE}@v2' on the hub" in advice(spec(hf_path=f"{NOWHERE}@v2"))


def test_an_entry_without_a_source_is_reported() -> None:
    assert "neither local_path nor hf_path" in advice(spec())


def test_a_file_is_no_folder_of_weights(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x")
    with pytest.raises(WeightsRefused, match="local_path names a file: weights"):
        find_weights(spec(local_path="weights"), Folders(tmp_path, tmp_path))


def test_no_path_of_this_machine_reaches_the_caller() -> None:
    assert "/srv/private" not in advice(spec(local_path="/srv/private/flux"))
