"""CatalogWriter: file, catalog in force and versions agree after any sequence of changes."""

import asyncio
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.changes import Roots, with_changed_model, with_model, with_settings, without_model
from imagegen.catalog.difference import Difference, difference
from imagegen.catalog.file import ConfigFile
from imagegen.catalog.loading import ConfigError, parse_catalog
from imagegen.catalog.versions import Versions
from imagegen.catalog.writer import CatalogWriter, Edit
from imagegen.catalog.yaml import read
from imagegen.core.errors import (
    ConfigBroken,
    ConfigInvalid,
    ConfigReadOnly,
    ConfigStale,
    Draining,
    ImagegenError,
    ModelExists,
    ModelNotFound,
    StorageFull,
)
from imagegen.core.events import ConfigChanged, ConfigRejected, Event, EventBus
from imagegen.testing import SPECS
from tests.unit.test_yaml_loading import BROKEN

GOOD = """\
# The first line.
global:
  log_level: DEBUG   # loud

models:
  # the first model
  a:
    name: A
    type: fake   # no weights
"""


class Service:
    """A writer with its own file, and the catalog in force."""

    def __init__(self, folder: Path, text: str = GOOD) -> None:
        self.path = folder / "models.yaml"
        self.path.write_text(text)
        self.catalog = parse_catalog(GOOD, SPECS)
        self.events: list[Event] = []
        bus = EventBus(first_id=1)
        bus.publish = self.events.append  # type: ignore[method-assign,assignment]
        self.versions = Versions(folder / "versions")
        self.draining = False
        #: Set while no task runs.
        self.between_tasks = asyncio.Event()
        self.between_tasks.set()
        self.writer = CatalogWriter(ConfigFile(self.path), self.versions, SPECS, self.catalog, self._swap, bus)

    async def _swap(self, catalog: Catalog) -> Difference:
        if self.draining:
            raise Draining
        await self.between_tasks.wait()
        change = difference(self.catalog, catalog)
        self.catalog = catalog
        return change

    async def set(self, model: str, **fields: Any) -> None:
        await self.writer.edit(lambda it: with_changed_model(it, model, fields, SPECS, ANYWHERE))


#: No path is refused.
ANYWHERE = Roots(Path("/"), (Path("/"),))


@pytest.fixture
async def service(tmp_path: Path) -> Service:
    service = Service(tmp_path)
    await service.writer.begin()
    await service.writer.reload("file")
    return service


# -- one way -----------------------------------------------------------------------------------------------------------


async def test_an_edit_is_in_the_file_in_force_and_among_the_versions(service: Service) -> None:
    await service.set("a", steps=3)
    assert service.path.read_text() == GOOD + "    steps: 3\n"
    assert service.catalog.model("a").steps == 3
    assert [version.source for version in await service.writer.versions()] == ["rest", "start"]
    assert (await service.writer.difference(2, None))[1].endswith("\n+    steps: 3\n")
    assert service.events == [
        ConfigChanged(source="rest", etag=service.writer.etag or "", added=(), changed=("a",), removed=(), settings=())
    ]


async def test_an_edit_by_hand_comes_into_force_and_an_edit_over_http_builds_on_it(service: Service) -> None:
    service.path.write_text(GOOD + "    steps: 3\n")
    await service.set("a", base_size=64)  # before anyone noticed
    assert (service.catalog.model("a").steps, service.catalog.model("a").base_size) == (3, 64)
    service.path.write_text(GOOD)
    await service.writer.reload("file")
    assert service.catalog.model("a").steps == 28
    assert [version.source for version in await service.writer.versions()] == ["file", "rest", "file", "start"]


async def test_a_rollback_restores_the_exact_text(service: Service) -> None:
    await service.set("a", steps=3)
    await service.writer.rollback(1)
    assert service.path.read_text() == GOOD
    assert service.catalog == parse_catalog(GOOD, SPECS)
    assert [version.version for version in await service.writer.versions()] == [3, 2, 1]


async def test_an_equal_text_is_no_change(service: Service) -> None:
    service.between_tasks.clear()  # a task runs, and is not waited for
    service.path.write_text(GOOD + "# more words\n")
    await service.writer.reload("file")
    assert (await service.writer.status()).etag == service.writer.etag
    before, told = service.path.stat(), len(service.events)
    await service.set("a", name="A")
    assert service.path.stat() == before
    assert len(service.events) == told


async def test_a_written_change_waits_for_the_running_task(service: Service) -> None:
    service.between_tasks.clear()
    editing = asyncio.create_task(service.set("a", steps=3))
    while "steps: 3" not in service.path.read_text():
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not editing.done()
    while not (await service.writer.status()).waiting:
        await asyncio.sleep(0)
    assert service.catalog.model("a").steps == 28
    service.between_tasks.set()
    await editing
    assert service.catalog.model("a").steps == 3
    assert not (await service.writer.status()).waiting


async def test_a_caller_that_disconnects_does_not_change_the_task(service: Service) -> None:
    service.between_tasks.clear()
    editing = asyncio.create_task(service.set("a", steps=3))
    await asyncio.sleep(0)
    editing.cancel()
    await asyncio.wait([editing])
    service.between_tasks.set()
    await service.set("a", base_size=64)
    assert (service.catalog.model("a").steps, service.catalog.model("a").base_size) == (3, 64)


async def test_an_edit_while_the_service_stops_is_for_the_next_start(service: Service) -> None:
    service.draining = True
    await service.set("a", steps=3)
    assert "steps: 3" in service.path.read_text()
    assert service.catalog.model("a").steps == 28


# -- who comes first ---------------------------------------------------------------------------------------------------


async def test_one_of_twenty_writers_with_the_same_etag_wins(service: Service) -> None:
    etag = {service.writer.etag or ""}
    edits = [
        service.writer.edit(lambda it, n=n: with_changed_model(it, "a", {"steps": n + 1}, SPECS, ANYWHERE), etag)  # type: ignore[misc]
        for n in range(20)
    ]
    outcomes = await asyncio.gather(*edits, return_exceptions=True)
    assert sum(isinstance(outcome, ConfigStale) for outcome in outcomes) == 19
    assert f"steps: {service.catalog.model('a').steps}\n" in service.path.read_text()


async def test_no_edit_of_twenty_writers_without_an_etag_is_lost(service: Service) -> None:
    fields = {"name": "N", "type": "fake"}
    edits = [
        service.writer.edit(lambda it, n=n: with_model(it, f"m{n}", fields, SPECS, ANYWHERE))  # type: ignore[misc]
        for n in range(20)
    ]
    await asyncio.gather(*edits)
    assert len(service.catalog.models) == 21
    assert parse_catalog(service.path.read_text(), SPECS) == service.catalog


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": 0}, "models.a.steps: 'steps': input should be greater than or equal to 1"),
        ({"stps": 3}, "models.a.stps: unknown key 'stps'; did you mean 'steps'?"),
        ({"type": "flx"}, "models.a.type: unknown type 'flx'; did you mean 'flux'?"),
        ({"name": None}, "models.a.name: 'name' is missing"),
        ({"type": ["fake"]}, "models.a.type: unknown type '['fake']'"),
        ({"<<": {}}, "models.a.<<: unknown key '<<'"),
        ({"hf_path": "https://h/x"}, "models.a.hf_path"),
        ({"description": "\ud800"}, "description: a text has characters that no file can hold"),
        ({"description": "x" * 10_001}, "longer than 10000 characters"),
    ],
)
async def test_an_invalid_edit_is_refused_and_nothing_changes(
    service: Service, fields: dict[str, Any], words: str
) -> None:
    before = service.path.stat()
    with pytest.raises(ConfigInvalid) as raised:
        await service.set("a", **fields)
    assert words in raised.value.detail
    assert service.path.stat() == before
    assert service.catalog == parse_catalog(GOOD, SPECS)


@pytest.mark.parametrize("text", [text for text, _ in BROKEN.values()], ids=BROKEN)
async def test_an_invalid_file_keeps_the_old_catalog_has_a_reason_and_can_be_rolled_back(
    service: Service, text: str
) -> None:
    service.path.write_text(text)
    for _ in range(2):
        await service.writer.reload("file")
    status = await service.writer.status()
    assert not status.ok
    assert all(line.startswith("models.yaml:") for line in status.errors)
    assert service.events == [ConfigRejected(source="file", errors=status.errors)]
    with pytest.raises(ConfigBroken) as raised:
        await service.set("a", steps=3)
    assert status.errors[0] in raised.value.detail
    assert service.path.read_text() == text
    assert service.catalog == parse_catalog(GOOD, SPECS)
    await service.writer.rollback(1)
    assert service.path.read_text() == GOOD
    assert (await service.writer.status()).ok


async def test_a_rollback_makes_a_file_again_that_was_deleted(service: Service) -> None:
    service.path.unlink()
    await service.writer.reload("signal")
    assert not service.writer.ok
    with pytest.raises(ConfigBroken):
        await service.set("a", steps=3)
    await service.writer.rollback(1)
    assert service.path.read_text() == GOOD
    assert service.path.stat().st_mode & 0o400
    assert (service.writer.ok, (await service.writer.status()).read_only) == (True, None)
    assert [version.source for version in await service.writer.versions()] == ["start"]
    await service.set("a", steps=3)
    assert "steps: 3" in service.path.read_text()


async def test_a_version_that_cannot_be_read_does_not_end_the_reload(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        service.path.write_text(GOOD.replace("DEBUG", "INFO"))
        await service.writer.reload("file")
    assert service.writer.ok
    assert service.catalog.settings.log_level == "INFO"


async def test_a_rollback_keeps_the_replaced_text_even_if_it_is_invalid(service: Service) -> None:
    service.path.write_text("models: [half an hour's work")
    await service.writer.rollback(1)
    assert [version.source for version in await service.writer.versions()] == ["rollback", "broken", "start"]
    assert service.versions.text(2) == "models: [half an hour's work"
    with pytest.raises(ConfigInvalid):
        await service.writer.rollback(2)


async def test_a_file_that_is_no_text_can_be_rolled_back_and_not_edited(service: Service) -> None:
    service.path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigBroken):
        await service.set("a", steps=3)
    with pytest.raises(ConfigStale):
        await service.writer.rollback(1, {"some"})
    await service.writer.rollback(1)
    assert service.path.read_text() == GOOD


async def test_a_noticed_change_counts_only_while_the_file_still_has_it(service: Service) -> None:
    noticed = GOOD + "    steps: 3\n"
    service.path.write_text(noticed + "    base_size: 64\n")
    await service.writer.reload("file", noticed)
    assert service.catalog.model("a").steps == 28
    await service.writer.reload("file", service.path.read_text())
    assert service.catalog.model("a").base_size == 64


async def test_a_missing_file_keeps_the_old_catalog(service: Service) -> None:
    service.path.unlink()
    await service.writer.reload("file")
    assert (await service.writer.status()).errors == ("models.yaml: cannot be read: No such file or directory",)
    with pytest.raises(ConfigBroken, match="No such file"):
        await service.set("a", steps=3)


async def test_a_read_only_file_is_reported_and_still_followed(service: Service) -> None:
    service.path.write_text(GOOD + "    steps: 3\n")
    service.path.chmod(0o444)
    with pytest.raises(ConfigReadOnly, match="read-only"):
        await service.set("a", steps=4)
    assert (await service.writer.status()).read_only == "The file is read-only."
    await service.writer.reload("file")
    assert service.catalog.model("a").steps == 3


async def test_a_full_disk_changes_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageFull

    monkeypatch.setattr(ConfigFile, "replace", full)
    with pytest.raises(StorageFull):
        await service.set("a", steps=3)
    assert service.catalog.model("a").steps == 28
    monkeypatch.undo()
    await service.set("a", steps=3)
    assert service.catalog.model("a").steps == 3


# -- any sequence ------------------------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c.1", "35"])
FIELDS = st.dictionaries(
    st.sampled_from(["name", "steps", "description", "auto_unload_minutes", "stps"]),
    st.none() | st.integers(0, 9) | st.sampled_from(["x", "a: b", "no", "", "#"]),
    max_size=3,
)
STEPS = st.lists(
    st.tuples(st.just("add"), IDS, FIELDS)
    | st.tuples(st.just("change"), IDS, FIELDS)
    | st.tuples(st.just("remove"), IDS, st.just({}))
    | st.tuples(
        st.just("settings"),
        st.just(""),
        st.dictionaries(
            st.sampled_from(["max_queue", "default_model"]), st.none() | st.integers(1, 3) | IDS, max_size=2
        ),
    )
    | st.tuples(st.just("rollback"), st.integers(1, 4).map(str), st.just({}))
    | st.tuples(st.just("by hand"), IDS, st.just({})),
    max_size=8,
)

Data = dict[str, dict[str, Any]]


def in_the_model(data: Data, kind: str, name: str, fields: dict[str, Any]) -> Data:
    """The effect of a step on plain data. Raises the error that the service must raise."""
    data = json.loads(json.dumps(data))
    models = data["models"]
    if kind == "add" and name in models:
        raise ModelExists
    if kind in ("change", "remove") and name not in models:
        raise ModelNotFound
    if kind == "remove":
        del models[name]
        return data
    section = data.setdefault("global", {}) if kind == "settings" else models.setdefault(name, {})
    section.update(fields)
    for field, value in fields.items():
        if value is None:
            del section[field]
    return data


def as_edit(kind: str, name: str, fields: dict[str, Any]) -> Edit:
    """The same effect on the document."""
    match kind:
        case "add":
            return lambda it: with_model(it, name, fields, SPECS, ANYWHERE)
        case "change":
            return lambda it: with_changed_model(it, name, fields, SPECS, ANYWHERE)
        case "remove":
            return lambda it: without_model(it, name)
        case _:
            return lambda it: with_settings(it, fields)


async def follow(steps: list[tuple[str, str, dict[str, Any]]], folder: Path) -> None:
    service = Service(folder)
    await service.writer.begin()
    await service.writer.reload("file")
    model: Data = {"global": {"log_level": "DEBUG"}, "models": {"a": {"name": "A", "type": "fake"}}}
    models = {1: model}
    for kind, name, fields in steps:
        if kind == "add":
            fields = {"name": "N", "type": "fake"} | fields
        versions = await service.writer.versions()
        try:
            if kind == "rollback":
                expected = models.get(int(name), model)
            elif kind == "by hand":
                expected = in_the_model(model, "settings", "", {"host_cache_gb": len(versions)})
            else:
                expected = in_the_model(model, kind, name, fields)
            in_force = parse_catalog(json.dumps(expected), SPECS)
        except (ImagegenError, ConfigError) as refusal:
            assert kind not in ("rollback", "by hand")
            kinds = type(refusal) if isinstance(refusal, ImagegenError) else ConfigInvalid
            with pytest.raises(kinds):
                await service.writer.edit(as_edit(kind, name, fields))
            expected, in_force = model, service.catalog
        else:
            if kind == "rollback" and int(name) in models:
                await service.writer.rollback(int(name))
            elif kind == "by hand":
                before = read(service.path.read_text())
                service.path.write_text(with_settings(before, {"host_cache_gb": len(versions)}).text)
                await service.writer.reload("file")
            elif kind != "rollback":
                await service.writer.edit(as_edit(kind, name, fields))
        model = expected
        text = service.path.read_text()
        assert service.catalog == in_force == parse_catalog(text, SPECS)
        assert text.startswith("# The first line.\nglobal:\n")
        assert "  # the first model\n" in text
        models.setdefault((await service.writer.versions())[0].version, model)
        assert service.versions.text((await service.writer.versions())[0].version) == text


@settings(deadline=None, max_examples=25)
@given(STEPS)
def test_file_catalog_and_versions_agree_after_any_sequence_of_edits(
    steps: list[tuple[str, str, dict[str, Any]]],
) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(follow(steps, Path(folder)))
