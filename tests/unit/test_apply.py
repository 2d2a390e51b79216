"""Putting a catalog in force: which models are unloaded, which records are deleted, and what stays."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from imagegen.catalog.catalog import Catalog, GlobalSettings
from imagegen.catalog.difference import Difference
from imagegen.catalog.sources import Folders
from imagegen.core.errors import DoesNotFit
from imagegen.core.events import ModelCooled, ModelUnloaded
from imagegen.gpu.protocol import Generated
from imagegen.models.residency import ModelState
from imagegen.settings import Settings
from imagegen.testing.engine import CRASHED, MISSING, OUT_OF_MEMORY
from tests.unit.test_models_manager import House, spec, told


def catalog(settings: dict[str, Any] | None = None, **models: Any) -> Catalog:
    return Catalog(settings=GlobalSettings(**(settings or {})), models=models)


WARM = {"host_cache_gb": 10}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(catalog(WARM, a=spec(), b=spec(), c=spec()), Folders(tmp_path, tmp_path))


async def test_the_resident_model_stays_where_its_entry_did(house: House) -> None:
    await house.work("a")
    change = await house.models.apply(catalog(WARM, a=spec(steps=9, max_batch=8), b=spec(memory_mb=1), d=spec()))
    assert (change.added, change.changed, change.removed, change.outdated) == (("d",), ("a", "b"), ("c",), ("c", "b"))
    assert house.current == "a"
    assert house.models.catalog.model("a").steps == 9
    assert house.engine.asked == ["load a", "generate a"]


@pytest.mark.parametrize("entries", [{"a": spec(memory_mb=1), "b": spec()}, {"b": spec()}])
async def test_a_resident_model_leaves_for_good_if_its_entry_changed_or_went(
    house: House, entries: dict[str, Any]
) -> None:
    await house.work("a")
    (*_, gone) = await told(house, house.models.apply(catalog(WARM, **entries)))
    assert gone == ModelUnloaded(model="a", reason="config", warm=False)
    assert house.current is None
    assert house.models.status("a").load_seconds is None


async def test_a_warm_model_leaves_host_memory_for_the_same_reasons(house: House) -> None:
    await house.work("a")
    await house.work("b")
    assert house.models.status("a").state is ModelState.WARM
    assert await told(house, house.models.apply(catalog(WARM, a=spec(memory_mb=1), b=spec()))) == [
        ModelCooled(model="a", reason="config")
    ]
    assert house.current == "b"


async def test_a_smaller_host_cache_is_kept_to_at_once(house: House) -> None:
    for model in "abc":
        await house.work(model)
    assert [house.models.status(model).state for model in "ab"] == [ModelState.WARM] * 2
    await house.models.apply(catalog({"host_cache_gb": 45 / 2**30}, a=spec(), b=spec(), c=spec()))
    assert [house.models.status(model).state for model in "ab"] == [ModelState.COLD, ModelState.WARM]


async def test_records_of_a_changed_entry_are_deleted(house: House) -> None:
    house.engine.instead["load"] = OUT_OF_MEMORY.evolve(need_bytes=1)
    await house.work("a")
    for _ in range(2):
        house.engine.instead["load"] = CRASHED
        await house.work("b")
    assert house.models.status("a").error
    assert house.models.quarantined("b")
    await house.models.apply(catalog(WARM, a=spec(load_seconds=1), b=spec(load_seconds=1), c=spec()))
    assert house.models.status("a").error is None
    assert not house.models.quarantined("b")
    assert isinstance(await house.work("b"), Generated)


async def test_records_of_another_entry_are_kept(house: House) -> None:
    for _ in range(2):
        house.engine.instead["load"] = CRASHED
        await house.work("b")
    await house.models.apply(catalog(WARM, a=spec(memory_mb=1), b=spec(), c=spec()))
    assert house.models.quarantined("b")


async def test_a_model_that_did_not_fit_is_tried_again_after_a_change_of_its_entry(tmp_path: Path) -> None:
    large = spec(memory_mb=2**16)
    house = House(catalog(a=large), Folders(tmp_path, tmp_path))
    await house.models.warm_up()
    with pytest.raises(DoesNotFit):
        await house.models.check_fits("a")
    await house.models.apply(catalog(a=spec()))
    await house.models.check_fits("a")


async def test_a_catalog_for_which_no_model_has_to_leave_is_applied_during_a_load(house: House) -> None:
    changes: list[Difference | None] = []
    new = catalog({**WARM, "ageing_minutes": 1}, a=spec(steps=9, description="x"), b=spec(), c=spec(), d=spec())

    def apply(call: str) -> None:
        if call == "load a":
            changes.append(house.models.apply_at_once(new))

    house.engine.on_call = apply
    await house.work("a")
    assert changes == [Difference(added=("d",), changed=("a",), settings=("ageing_minutes",))]
    assert house.current == "a"
    assert house.models.catalog is new
    assert house.engine.asked == ["load a", "generate a"]


@pytest.mark.parametrize(
    "new",
    [
        catalog(WARM, a=spec(memory_mb=1), b=spec(), c=spec()),
        catalog(WARM, a=spec(), b=spec()),
        catalog({**WARM, "max_resident": 2}, a=spec(), b=spec(), c=spec()),
        catalog({}, a=spec(), b=spec(), c=spec()),
        catalog({**WARM, "gpu_memory_fraction": 0.5}, a=spec(), b=spec(), c=spec()),
    ],
)
async def test_a_catalog_for_which_a_model_may_have_to_leave_is_not_applied_at_once(house: House, new: Catalog) -> None:
    before = house.models.catalog
    assert house.models.apply_at_once(new) is None
    assert house.models.catalog is before


@pytest.mark.parametrize("changed", [{"description": "x"}, {"steps": 9}])
async def test_sizes_read_from_files_stay_known_if_only_descriptions_change_meanwhile(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    house = House(catalog(a=spec(memory_mb=2**16)), Folders(tmp_path, tmp_path))
    await house.models.warm_up()
    checking = asyncio.create_task(house.models.check_fits("a"))
    await asyncio.sleep(0)  # a thread reads the files now
    assert house.models.apply_at_once(catalog(a=spec(memory_mb=2**16, **changed)))
    with pytest.raises(DoesNotFit):
        await checking


async def test_missing_weights_are_no_state_to_forget(house: House) -> None:
    house.engine.instead["load"] = MISSING
    await house.work("a")
    assert (await house.models.apply(house.models.catalog)).empty


def test_models_yaml_overrides_the_environment() -> None:
    process = Settings(max_queue=7, retention_days=3)
    assert GlobalSettings().over(process) == process
    assert GlobalSettings(max_queue=9, retention_days=0).over(process) == Settings(max_queue=9, retention_days=0)
