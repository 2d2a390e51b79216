"""The configuration over HTTP and by hand: changes are live, and an invalid file never gets in force."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from imagegen import loaders
from imagegen.app import create_app
from imagegen.builtin import default_config
from imagegen.catalog.loading import load_catalog
from imagegen.settings import Settings
from imagegen.testing import SPECS
from tests.api.conftest import Client, Start

TEXT = """\
# Mine.
global:
  default_model: a  # the first

models:
  a:
    name: A
    type: fake
    base_size: 64
    steps: 4
  b: {name: B, type: fake, base_size: 64, steps: 4}
"""


JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """`log_level` is live."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "models.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, str(answer.json().get("code"))


async def until(found: Callable[[], Any]) -> None:
    """Wait until a condition holds that depends on the file watcher."""
    while not found():
        await asyncio.sleep(0.01)


async def settled(client: Client) -> None:
    """Wait until the service has read the file for the first time."""
    while not (await client.get("/config/versions")).json()["total"]:
        await asyncio.sleep(0.01)


# -- models ------------------------------------------------------------------------------------------------------------


async def test_a_model_is_added_changed_used_and_removed(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        added = await client.post(
            "/models",
            json={"model_id": "c", "name": "C", "type": "fake", "pipeline_class": "FakePipeline", "base_size": 64},
        )
        assert added.status_code == 201, added.text
        assert added.json() == {"message": "'c' was added.", "model_id": "c"}
        assert added.headers["Location"] == "/models/c"
        shown = await client.get("/models/c")
        assert shown.headers["ETag"] == added.headers["ETag"] == (await client.get("/models")).headers["ETag"]
        changed = await client.put("/models/c", json={"steps": 3, "description": "Ours."})
        assert changed.json() == {"message": "'c' was changed.", "model_id": "c"}
        assert (await client.until(await client.submit(model="c")))["steps"] == 3
        merge: dict[str, Any] = {
            "content": '{"steps": null, "model_id": "c"}',
            "headers": {"Content-Type": "application/merge-patch+json"},
        }
        assert (await client.patch("/models/c", **merge)).status_code == 200
        assert (await client.get("/models/c")).json()["config"]["steps"] == 28
        assert path.read_text().startswith(TEXT)
        assert (await client.delete("/models/c")).json() == {"message": "'c' was removed.", "model_id": "c"}
        assert path.read_text() == TEXT
        assert code(await client.get("/models/c")) == (404, "model_not_found")


async def test_aliases_are_live_and_keep_the_rest_of_the_file(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        assert (await client.get("/config/aliases")).json() == {"aliases": {}}
        put = await client.put("/config/aliases", json={"*": "a", "dall-e-3": "b", "org/name:tag": "b"})
        assert put.json() == {"aliases": {"*": "a", "dall-e-3": "b", "org/name:tag": "b"}}
        assert put.headers["ETag"] == (await client.get("/config/aliases")).headers["ETag"]
        made = await client.post("/v1/images/generations", json={"prompt": "x", "model": "dall-e-3"})
        assert made.headers["x-imagegen-model"] == "b"
        assert code(await client.patch("/config/aliases", json={"x": "c"})) == (422, "config_invalid")
        assert code(await client.patch("/config/aliases", json={"a": "b"})) == (422, "config_invalid")
        assert code(await client.patch("/config/aliases", json={"x y": "b"})) == (422, "invalid_request")
        assert code(await client.delete("/models/b")) == (422, "config_invalid")  # an alias names it
        patched = await client.patch("/config/aliases", json={"dall-e-3": None, "org/name:tag": None})
        assert patched.json() == {"aliases": {"*": "a"}}
        assert path.read_text().startswith(TEXT)
        path.write_text(TEXT + "aliases: {gpt-image-1: b}\n")
        while (await client.get("/config/aliases")).json()["aliases"] != {"gpt-image-1": "b"}:
            await asyncio.sleep(0.01)


async def test_the_fake_family_is_an_unknown_type_of_the_product(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(default_config().read_text())
    settings = Settings(config=config, data_dir=tmp_path / "data", isolation="thread", device="cpu")
    app = create_app(settings, load_catalog(config, loaders.SPECS))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            refused = await client.post("/models", json={"model_id": "c", "name": "C", "type": "fake"})
    assert code(refused) == (422, "config_invalid")
    assert "unknown type 'fake'" in refused.text
    assert "known: diffusers, flux, flux_nunchaku, gguf, nunchaku, stable_diffusion" in refused.text


REFUSED: list[tuple[str, str, Any, tuple[int, str]]] = [
    ("POST", "/models", {"model_id": "a", "name": "A", "type": "fake"}, (409, "model_exists")),
    ("POST", "/models", {"model_id": "current", "name": "A", "type": "fake"}, (422, "config_invalid")),
    ("POST", "/models", {"model_id": "unload", "name": "A", "type": "fake"}, (422, "config_invalid")),
    ("POST", "/models", {"model_id": "../a", "name": "A", "type": "fake"}, (422, "config_invalid")),
    ("POST", "/models", {"model_id": "c", "name": "A", "type": "fake", "stps": 3}, (422, "config_invalid")),
    ("POST", "/models", {"model_id": "c"}, (422, "config_invalid")),
    ("POST", "/models", {"name": "A", "type": "fake"}, (422, "invalid_request")),
    (
        "POST",
        "/models",
        {"model_id": "c", "name": "A", "type": "flux", "local_path": "/etc"},
        (422, "path_not_allowed"),
    ),
    (
        "POST",
        "/models",
        {"model_id": "c", "name": "A", "type": "flux", "hf_path": "http://h/x"},
        (422, "config_invalid"),
    ),
    ("PUT", "/models/a", {"local_path": "../x"}, (422, "path_not_allowed")),
    ("PUT", "/models/a", {"model_id": "b"}, (422, "config_invalid")),
    ("PUT", "/models/a", {"steps": 0}, (422, "config_invalid")),
    ("PUT", "/models/a", [], (422, "invalid_request")),
    ("PUT", "/models/c", {"steps": 3}, (404, "model_not_found")),
    ("PATCH", "/models/c", {"steps": 3}, (404, "model_not_found")),
    ("DELETE", "/models/c", None, (404, "model_not_found")),
    ("DELETE", "/models/a", None, (422, "config_invalid")),
    ("PUT", "/config/global", {"max_queu": 3}, (422, "config_invalid")),
    ("PUT", "/config/global", {"default_model": "c"}, (422, "config_invalid")),
    ("POST", "/config/rollback", {"version": 77}, (404, "version_not_found")),
    ("POST", "/config/rollback", {"version": "1"}, (422, "invalid_request")),
    ("GET", "/config/versions/77/diff", None, (404, "version_not_found")),
]


async def test_an_impossible_edit_is_refused_and_changes_nothing(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        for method, url, body, expected in REFUSED:
            assert code(await client.request(method, url, json=body)) == expected, (method, url, body)
        assert path.read_text() == TEXT


@pytest.mark.parametrize(
    "fields",
    [
        '"description": "\\ud800"',
        '"name": "a\\udfffb"',
        '"\\ud800": 1',
        '"parts": {"vae": "\\ud800"}',
        '"parts": {"\\ud800": "a"}',
        '"loras": [{"path": "\\ud800"}]',
        '"type": "\\ud800"',
        '"local_path": "\\ud800"',
        '"default_model": "\\ud800"',
    ],
)
async def test_half_a_pair_of_surrogates_is_no_text(start: Start, path: Path, fields: str) -> None:
    async with start(config=path) as client:
        for method, url in (("PUT", "/models/a"), ("PATCH", "/models/a"), ("PUT", "/config/global")):
            answer = await client.request(method, url, content=f"{{{fields}}}", headers=JSON)
            assert answer.status_code == 422, answer.text
        new = f'{{"model_id": "new", "name": "x", "type": "fake", {fields}}}'
        assert (await client.post("/models", content=new, headers=JSON)).status_code == 422
        assert path.read_text() == TEXT


@pytest.mark.parametrize("steps", [True, False, "4", "4.0", [4]])
async def test_no_word_is_a_number(start: Start, path: Path, steps: object) -> None:
    async with start(config=path) as client:
        for method, url in (("PUT", "/models/a"), ("PATCH", "/models/a")):
            assert code(await client.request(method, url, json={"steps": steps})) == (422, "config_invalid")
        new = {"model_id": "new", "name": "x", "type": "fake", "steps": steps}
        assert code(await client.post("/models", json=new)) == (422, "config_invalid")
        assert code(await client.put("/config/global", json={"max_queue": steps})) == (422, "config_invalid")
        assert path.read_text() == TEXT


async def test_every_problem_of_an_edit_has_its_place_and_the_fix(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        answer = await client.put("/models/b", json={"stps": 3, "base_size": 1})
        assert answer.json()["errors"] == [
            {"loc": "models.b.base_size", "message": "'base_size': input should be greater than or equal to 64"},
            {"loc": "models.b.stps", "message": "unknown key 'stps'; did you mean 'steps'?"},
        ]


async def test_a_path_below_the_roots_is_allowed(start: Start, path: Path, tmp_path: Path) -> None:
    async with start(config=path, model_roots=f"{tmp_path / 'weights'}:{tmp_path / 'more'}") as client:
        fields = {"name": "C", "type": "flux", "pipeline_class": "FluxPipeline"}
        for number, place in enumerate(("weights/x", "more")):
            body = {"model_id": f"c{number}", **fields, "local_path": str(tmp_path / place)}
            assert (await client.post("/models", json=body)).status_code == 201
        body = {"model_id": "d", **fields, "local_path": str(tmp_path / "data" / "models")}
        assert code(await client.post("/models", json=body)) == (422, "path_not_allowed")


async def test_the_original_apis_own_example_names_a_folder_below_the_models_directory(
    start: Start, path: Path
) -> None:
    async with start(config=path) as client:
        body = {"model_id": "c", "name": "C", "type": "flux", "hf_path": "path/to/model"}
        assert (await client.post("/models", json=body)).status_code == 201
        config = (await client.get("/models/c")).json()["config"]
        assert (config["hf_path"], config["local_path"]) == (None, "path/to/model")
        outside = body | {"model_id": "d", "hf_path": "a/../../../outside"}
        assert code(await client.post("/models", json=outside)) == (422, "path_not_allowed")


# -- who comes first ---------------------------------------------------------------------------------------------------


async def test_a_stale_etag_is_refused_and_a_missing_one_is_not(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        etag = (await client.get("/models/a")).headers["ETag"]
        answers = await asyncio.gather(
            *(client.put("/models/a", json={"steps": n + 5}, headers={"If-Match": etag}) for n in range(20))
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19
        assert {answer.json()["code"] for answer in answers if answer.status_code == 412} == {"config_stale"}
        path.write_text(path.read_text() + "# by hand\n")
        now = next(answer.headers["ETag"] for answer in answers if answer.status_code == 200)
        stale = await client.put("/config/global", json={"max_queue": 9}, headers={"If-Match": now})
        assert code(stale) == (412, "config_stale")
        assert (await client.put("/models/a", json={"steps": 7}, headers={"If-Match": "*"})).status_code == 200
        assert path.read_text().endswith("# by hand\n")


# -- what a change does ------------------------------------------------------------------------------------------------


async def test_a_running_task_ends_on_the_old_entry_and_waiting_ones_of_a_removed_model_fail(
    start: Start, path: Path
) -> None:
    path.write_text(TEXT.replace("b: {name: B,", "b: {name: B, step_seconds: 0.05,"))
    async with start(config=path) as client:
        running, waiting = await client.submit(model="b", steps=100), await client.submit(model="b")
        other = await client.submit(model="a")
        await client.until(running, "processing")
        assert (await client.delete("/models/b")).status_code == 200
        assert (await client.until(waiting))["error_code"] == "model_removed"
        assert (await client.until(running))["status"] == "completed"
        assert (await client.until(other))["status"] == "completed"
        assert code(await client.post("/text2image", json={"prompt": "x", "model": "b"})) == (404, "model_not_found")
        assert (await client.get("/models/current")).json()["current_model"] == "a"


async def test_only_models_with_changed_load_fields_are_unloaded(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        await client.until(await client.submit(model="a"))
        for url, body, stays in (
            ("/models/b", {"memory_mb": 1}, True),
            ("/models/a", {"description": "words", "steps": 5}, True),
            ("/config/global", {"auto_unload_minutes": 5, "enable_vae_slicing": True}, True),  # fake has no VAE
            ("/models/a", {"memory_mb": 1}, False),
        ):
            assert (await client.put(url, json=body)).status_code == 200
            assert (await client.get("/models/a")).json()["is_loaded"] == stays, body
        await client.until(await client.submit(model="a"))
        assert (await client.put("/config/global", json={"gpu_memory_fraction": 0.5})).status_code == 200
        assert not (await client.get("/models/a")).json()["is_loaded"]


@pytest.fixture
def slow(path: Path) -> Path:
    """`b` takes 20 s for a picture of 200 steps, and can be cancelled after each of them."""
    path.write_text(TEXT.replace("b: {name: B,", "b: {name: B, step_seconds: 0.1,"))
    return path


async def running(client: Client) -> str:
    """A task of `b` whose first step has begun."""
    task_id = await client.submit(model="b", steps=200)
    while not (await client.get("/models/b")).json()["is_loaded"]:
        await asyncio.sleep(0.01)
    return task_id


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/models/b", {"description": "Ours."}),
        ("/models/b", {"steps": 7, "max_batch": 4}),
        ("/config/global", {"max_queue": 7, "auto_unload_minutes": 1, "auto_download": False}),
        ("/models", {"model_id": "c", "name": "C", "type": "fake"}),
    ],
)
async def test_a_change_that_moves_no_model_does_not_wait_for_the_running_task(
    start: Start, slow: Path, url: str, body: dict[str, Any]
) -> None:
    async with start(config=slow) as client:
        task_id = await running(client)
        changed = await client.request("POST" if url == "/models" else "PUT", url, json=body)
        assert changed.is_success
        assert client.app.state.services.tasks.is_running("b")
        assert (await client.get("/config/status")).headers["ETag"] == changed.headers["ETag"]
        if url == "/models/b":
            config = (await client.get(url)).json()["config"]
            assert {name: config[name] for name in body} == body
        assert (await client.get("/models/b")).json()["is_loaded"]
        await client.post(f"/task/{task_id}/cancel")


async def waits(client: Client, request: asyncio.Task[httpx.Response]) -> bool:
    """Whether the change is on disk, and not in force before the running task ends."""
    while not (await client.get("/config/status")).json()["waiting"]:
        assert not request.done()
        await asyncio.sleep(0.01)
    return not request.done()


@pytest.mark.parametrize(
    ("url", "body"),
    [
        ("/models/b", {"memory_mb": 1}),
        ("/config/global", {"max_resident": 2}),
        ("/config/global", {"host_cache_gb": 1}),
        ("/config/global", {"gpu_memory_fraction": 0.5}),
    ],
)
async def test_a_change_that_may_move_a_model_waits_for_the_running_task(
    start: Start, slow: Path, url: str, body: dict[str, Any]
) -> None:
    async with start(config=slow) as client:
        task_id = await running(client)
        before = (await client.get("/config/status")).headers["ETag"]
        change = asyncio.create_task(client.put(url, json=body))
        assert await waits(client, change)
        assert (await client.get("/config/status")).headers["ETag"] == before
        assert (await client.get("/models/b")).json()["is_loaded"]
        await client.post(f"/task/{task_id}/cancel")
        assert (await change).status_code == 200
        assert (await client.task(task_id))["status"] == "cancelled"


async def test_no_change_overtakes_an_earlier_one_that_waits(start: Start, slow: Path) -> None:
    async with start(config=slow) as client:
        task_id = await running(client)
        first = asyncio.create_task(client.put("/models/b", json={"memory_mb": 1, "description": "First."}))
        assert await waits(client, first)
        # Compared with what is in force, this one changes nothing that is loaded: it takes the first one back.
        second = asyncio.create_task(client.put("/models/b", json={"memory_mb": None, "description": "Second."}))
        while "Second." not in slow.read_text():
            await asyncio.sleep(0.01)
        assert await waits(client, second)
        await client.post(f"/task/{task_id}/cancel")
        assert [(await change).status_code for change in (first, second)] == [200, 200]
        config = (await client.get("/models/b")).json()["config"]
        assert (config["memory_mb"], config["description"]) == (0, "Second.")
        assert (await client.get("/config/status")).headers["ETag"] == (await second).headers["ETag"]
        assert not (await client.get("/config/status")).json()["waiting"]


async def test_an_entry_that_is_mended_forgets_its_errors(start: Start, path: Path) -> None:
    path.write_text(TEXT.replace("b: {name: B,", "b: {name: B, fault: error, fault_at: load,"))
    async with start(config=path) as client:
        assert (await client.until(await client.submit(model="b")))["status"] == "failed"
        assert (await client.get("/models/b")).json()["state"] == "error"
        await client.put("/models/b", json={"fault": None})
        assert (await client.get("/models/b")).json()["state"] == "cold"
        assert (await client.until(await client.submit(model="b")))["status"] == "completed"


async def test_global_settings_are_live(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        settings = await client.get("/config/global")
        assert (settings.json()["default_model"], settings.json()["auto_unload_minutes"]) == ("a", 30)
        assert (await client.get("/models/a")).json()["unloads_at"] is None
        changed = await client.put(
            "/config/global",
            json={"default_model": "b", "auto_unload_minutes": 0, "log_level": "WARNING"},
            headers={"If-Match": settings.headers["ETag"]},
        )
        assert (changed.json()["default_model"], changed.json()["log_level"]) == ("b", "WARNING")
        assert "  default_model: b  # the first\n" in path.read_text()
        assert (await client.until(await client.submit()))["model"] == "b"
        assert (await client.get("/models/b")).json()["unloads_at"] is None
        await client.patch("/config/global", json={"auto_unload_minutes": None, "log_level": None})
        assert (await client.get("/models/b")).json()["unloads_at"] is not None


async def test_limits_are_live(start: Start, path: Path) -> None:
    path.write_text(TEXT.replace("b: {name: B,", "b: {name: B, step_seconds: 0.05,"))
    async with start(config=path, housekeeping_s=0.05) as client:
        await client.put("/config/global", json={"max_queue": 1})
        running = await client.submit(model="b", steps=50)
        await client.until(running, "processing")
        waiting = await client.submit(model="b")
        assert code(await client.post("/text2image", json={"prompt": "x", "model": "b"})) == (503, "queue_full")
        await client.post(f"/task/{running}/cancel")
        await client.until(waiting)
        await client.put("/config/global", json={"retention_days": 1e-9})
        while (await client.get("/tasks")).json()["total"]:
            await asyncio.sleep(0.01)


# -- by hand -----------------------------------------------------------------------------------------------------------


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def renamed_over(path: Path, text: str) -> None:
    """Write like vim and many other editors."""
    backup, new = path.with_name("models.yaml~"), path.with_name("4913")
    new.write_text(text)
    path.rename(backup)
    new.rename(path)
    backup.unlink()


def swapped(path: Path, text: str) -> None:
    """Update like kubelet's ConfigMap: the file is a link through a folder that is a link."""
    new = path.parent / f"..{os.urandom(4).hex()}"
    new.mkdir()
    (new / path.name).write_text(text)
    (path.parent / "..tmp").symlink_to(new.name)
    (path.parent / "..tmp").rename(path.parent / "..data")


@pytest.mark.parametrize("write", [in_place, renamed_over, swapped])
async def test_an_edit_by_hand_is_noticed_however_it_is_written(
    start: Start, path: Path, write: Callable[[Path, str], None]
) -> None:
    if write is swapped:
        path.unlink()
        swapped(path, TEXT)
        path.symlink_to("..data/models.yaml")
    async with start(config=path) as client:
        models = client.app.state.services.models
        await settled(client)
        for steps in (7, 8):
            write(path, TEXT.replace("steps: 4", f"steps: {steps}"))
            await until(lambda steps=steps: models.catalog.model("a").steps == steps)  # type: ignore[misc]
        status = (await client.get("/config/status")).json()
        assert (status["ok"], status["source"], status["waiting"]) == (True, "file", False)
        assert [v["source"] for v in (await client.get("/config/versions")).json()["versions"]] == [
            "file",
            "file",
            "start",
        ]


async def test_a_file_that_is_still_being_written_is_waited_for(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        models = client.app.state.services.models
        await settled(client)
        with path.open("w") as file:  # empty now
            for line in TEXT.replace("steps: 4", "steps: 9").splitlines(keepends=True):
                file.write(line)
                file.flush()
                await asyncio.sleep(0.03)
                assert set(models.catalog.models) == {"a", "b"}  # its beginning is valid YAML, too
        await until(lambda: models.catalog.model("a").steps == 9)
        assert [v["source"] for v in (await client.get("/config/versions")).json()["versions"]] == ["file", "start"]


async def test_a_broken_file_keeps_the_old_configuration_and_the_service_ready(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        events = asyncio.create_task(client.get("/events", params={"name": ["config_rejected", "config_changed"]}))
        await until(lambda: client.app.state.services.bus.subscribers)
        await settled(client)
        path.write_text(TEXT.replace("steps: 4", "stps: 4", 1))
        while (status := (await client.get("/config/status")).json())["ok"]:
            await asyncio.sleep(0.02)
        assert status["errors"] == ["models.yaml:10:5: unknown key 'stps'; did you mean 'steps'?"]
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.until(await client.submit(model="a")))["status"] == "completed"
        refused = await client.put("/models/a", json={"steps": 3})
        assert code(refused) == (409, "config_broken")
        assert status["errors"][0] in refused.json()["detail"]
        assert str(path.parent) not in refused.text + str(status)
        assert (await client.post("/config/rollback", json={"version": 1})).status_code == 200
        assert path.read_text() == TEXT
        assert (await client.get("/config/status")).json()["ok"]
        client.app.state.lifecycle.begin_drain()
        assert "event: config_rejected" in (await events).text


async def test_a_change_of_the_file_before_the_service_listens_counts(start: Start, path: Path) -> None:
    """The file may change between the read at the start and the begin of the watch."""
    catalog = load_catalog(path, SPECS)
    path.write_text(TEXT.replace("steps: 4", "steps: 6"))
    async with start(config=path, catalog=catalog) as client:
        await until(lambda: client.app.state.services.models.catalog.model("a").steps == 6)


# -- versions, and files that cannot be written ------------------------------------------------------------------------


async def test_versions_show_changes_and_can_be_restored(start: Start, path: Path) -> None:
    async with start(config=path) as client:
        for steps in (5, 6):
            await client.put("/models/a", json={"steps": steps})
        listed = (await client.get("/config/versions")).json()
        assert [(v["version"], v["source"]) for v in listed["versions"]] == [(3, "rest"), (2, "rest"), (1, "start")]
        assert (await client.get("/config/versions/2/diff")).json() == {
            "version": 2,
            "against": 1,
            "diff": "--- version 1\n+++ version 2\n@@ -7,5 +7,5 @@\n     name: A\n     type: fake\n     base_size: 64\n"
            "-    steps: 4\n+    steps: 5\n   b: {name: B, type: fake, base_size: 64, steps: 4}\n",
        }
        diff = (await client.get("/config/versions/1/diff", params={"against": 3})).json()["diff"]
        assert "-    steps: 6\n+    steps: 4\n" in diff
        back = await client.post("/config/rollback", json={"version": 1})
        assert back.json() == {"message": "Version 1 is in force.", "etag": listed["versions"][2]["etag"]}
        assert path.read_text() == TEXT
        assert (await client.get("/models/a")).json()["config"]["steps"] == 4


@pytest.mark.parametrize("kind", ["mode", "shipped"])
async def test_a_file_that_cannot_be_edited_is_a_clear_conflict_and_all_else_works(
    start: Start, path: Path, kind: str
) -> None:
    if kind == "mode":
        path.chmod(0o444)
    config = path if kind == "mode" else default_config()
    before = config.read_bytes()
    async with start(config=config) as client:
        why = (await client.get("/config/status")).json()["read_only"]
        first = (await client.get("/models")).json()["models"][0]["id"]
        for method, url, body in (
            ("POST", "/models", {"model_id": "c", "name": "C", "type": "fake"}),
            ("PUT", f"/models/{first}", {"steps": 3}),
            ("DELETE", f"/models/{first}", None),
            ("PUT", "/config/global", {"max_queue": 3}),
            ("POST", "/config/rollback", {"version": 1}),
        ):
            await settled(client)
            answer = await client.request(method, url, json=body)
            assert code(answer) == (409, "config_read_only")
            assert answer.json()["detail"] == why
        assert config.read_bytes() == before
        if kind == "mode":
            path.chmod(0o644)
            in_place(path, TEXT.replace("steps: 4", "steps: 3"))  # by hand, that is
            path.chmod(0o444)
            await until(lambda: client.app.state.services.models.catalog.model("a").steps == 3)
            assert (await client.until(await client.submit()))["steps"] == 3


async def test_every_answer_of_a_write_names_the_configuration_it_led_to(client: Client) -> None:
    for method, url, body in (
        ("POST", "/models", {"model_id": "c", "name": "C", "type": "fake"}),
        ("PUT", "/models/c", {"steps": 3}),
        ("PUT", "/config/global", {"max_queue": 3}),
        ("DELETE", "/models/c", None),
        ("POST", "/config/rollback", {"version": 2}),
    ):
        answer = await client.request(method, url, json=body)
        assert answer.is_success
        assert answer.headers["ETag"] == (await client.get("/config/status")).headers["ETag"]
