"""The models over HTTP: what is configured, what is resident, and when it is unloaded."""

import asyncio
import json
import os
import re
from pathlib import Path

import httpx
import pytest

from imagegen.gpu import executor
from imagegen.gpu.memory import measure
from imagegen.gpu.protocol import DeviceMemory
from imagegen.testing.engine import ScriptedEngine
from tests.api.conftest import Client, Start
from tests.conftest import fake_config


async def test_models_are_listed_in_the_briefs_shape(start: Start) -> None:
    async with start(models={"a": {"description": "first", "supports_img2img": False}, "b": {}}) as client:
        listed = (await client.get("/models")).json()
        assert listed["total"] == 2
        assert listed["models"][0] == {
            "id": "a",
            "name": "a",
            "type": "fake",
            "pipeline_class": "FakePipeline",
            "memory_usage": "medium",
            "is_loaded": False,
            "state": "cold",
            "error_code": None,
            "error_message": None,
            "last_used": None,
            "unloads_at": None,
            "load_seconds": None,
            "warm_load_seconds": None,
            "device_bytes": None,
            "host_bytes": None,
            "supports_text2img": True,
            "supports_img2img": False,
            "supports_inpaint": False,
            "supports_negative_prompt": False,
            "supports_lora": False,
            "supports_strength": False,
            "description": "first",
        }
        one = (await client.get("/models/b")).json()
        assert one["config"]["base_size"] == 64
        assert (await client.get("/models/c")).json()["code"] == "model_not_found"


async def test_one_model_is_resident_and_a_request_for_another_switches(start: Start) -> None:
    async with start(models={"a": {}, "b": {}}) as client:
        assert (await client.get("/models/current")).json()["current_model"] is None
        for model in "ab":
            await client.until(await client.submit(model=model))
            current = (await client.get("/models/current")).json()
            assert (current["current_model"], current["model_name"], current["is_loaded"]) == (model, model, True)
            assert current["last_used"] is not None
            assert set(current["gpu_memory"]) == {"allocated", "cached", "total"}
            loaded = [m["id"] for m in (await client.get("/models")).json()["models"] if m["is_loaded"]]
            assert loaded == [model]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A models.yaml of three models, of which two may be resident."""
    file = tmp_path / "models.yaml"
    file.write_text(
        json.dumps({"global": {"max_resident": 2}} | json.loads(fake_config(a={}, b={"memory_mb": 8}, c={})))
    )
    return file


async def test_where_two_models_may_be_resident_tasks_alternate_and_each_is_loaded_once(
    start: Start, three: Path
) -> None:
    async with start(config=three) as client:
        wanted = ["loading", "model_loaded", "model_unloaded"]
        loads = asyncio.create_task(client.get("/events", params={"name": wanted}))
        while not client.app.state.services.bus.subscribers:
            await asyncio.sleep(0.01)
        for models in ("a", "b", "ababab"):
            tasks = [await client.submit(model=model) for model in models]
            ended = [await client.until(task_id) for task_id in tasks]
            assert {task["status"] for task in ended} == {"completed"}
        begun = [task["started_at"] for task in ended]
        assert begun == sorted(begun)
        client.app.state.lifecycle.begin_drain()
        told = re.findall(r"^event: (\w+)$", (await loads).text, re.MULTILINE)
        assert told == [*["loading", "model_loaded"] * 2, "closed"]


async def test_all_resident_models_are_listed_most_recently_used_first(start: Start, three: Path) -> None:
    async with start(config=three) as client:
        for model in "ab":
            await client.until(await client.submit(model=model))
        current = (await client.get("/models/current")).json()
        assert (current["current_model"], current["model_name"], current["is_loaded"]) == ("b", "b", True)
        assert [(it["model"], it["name"], it["device_bytes"]) for it in current["models"]] == [
            ("b", "b", 8 * 2**20),
            ("a", "a", 0),
        ]
        assert current["models"][0]["last_used"] == current["last_used"] > current["models"][1]["last_used"]
        assert all(it["unloads_at"] > it["last_used"] for it in current["models"])
        states = {it["id"]: (it["state"], it["is_loaded"]) for it in (await client.get("/models")).json()["models"]}
        assert states == {"a": ("resident", True), "b": ("resident", True), "c": ("cold", False)}
        await client.until(await client.submit(model="a"))
        assert (await client.get("/health")).json()["current_model"] == "a"
        assert (await client.post("/models/unload")).json()["message"] == "'b', 'a' were unloaded."


async def test_the_planned_evictions_for_a_third_model_are_made(start: Start, three: Path) -> None:
    async with start(config=three) as client:
        for model in "aba":
            await client.until(await client.submit(model=model))
        plans = [(await client.post("/plan", json={"prompt": "x", "model": model})).json() for model in "abc"]
        assert [plan["evicts"] for plan in plans] == [[], [], ["b"]]
        assert [plan["load_seconds"] for plan in plans] == [0, 0, None]
        assert plans[1]["estimated_start_at"] is not None
        await client.until(await client.submit(model="c"))
        assert await resident(client) == ["c", "a"]
        assert (await client.put("/config/global", json={"max_resident": 1})).status_code == 200
        assert await resident(client) == ["c"]
        assert (await client.put("/config/global", json={"max_resident": 0})).json()["code"] == "config_invalid"


async def resident(client: Client) -> list[str]:
    return [it["model"] for it in (await client.get("/models/current")).json()["models"]]


async def test_an_unload_waits_for_the_running_task_and_runs_before_waiting_ones(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.02}}) as client:
        first, second = await client.submit(), await client.submit()
        await client.until(first, "processing")
        answer = await client.post("/models/unload")
        assert answer.json()["message"] == "'fake' was unloaded."
        assert (await client.task(first))["status"] in ("processing", "completed")
        assert (await client.until(second))["status"] == "completed"
        await client.post("/models/unload")
        nothing = (await client.post("/models/unload")).json()
        assert (nothing["message"], nothing["freed_bytes"]) == ("No model was loaded.", 0)


async def test_unload_without_waiting_is_accepted_at_once_and_done_after_the_running_task(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.1}}) as client:
        task_id = await client.submit(steps=200)
        while not await resident(client):
            await asyncio.sleep(0.01)
        answer = await client.post("/models/unload", params={"wait": "false"})
        assert (answer.status_code, answer.json()) == (
            202,
            {"message": "All models are unloaded once the running task has ended."},
        )
        assert client.app.state.services.tasks.is_running("fake")
        assert await resident(client) == ["fake"]
        await client.post(f"/task/{task_id}/cancel")
        while await resident(client):
            await asyncio.sleep(0.01)
        assert (await client.task(task_id))["status"] == "cancelled"
        documented = (await client.get("/openapi.json")).json()["paths"]["/models/unload"]["post"]["responses"]
        assert documented["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/UnloadAccepted")
        client.app.state.lifecycle.begin_drain()
        assert (await client.post("/models/unload", params={"wait": "false"})).json()["code"] == "draining"


async def test_a_model_is_loaded_and_unloaded_on_request_and_the_freed_memory_is_reported(start: Start) -> None:
    async with start(models={"a": {"memory_mb": 64}, "b": {}}) as client:
        loaded = (await client.post("/models/a/load")).json()
        assert (loaded["state"], loaded["is_loaded"], loaded["device_bytes"]) == ("resident", True, 64 * 2**20)
        assert loaded["unloads_at"] > loaded["last_used"] if loaded["last_used"] else loaded["unloads_at"]
        assert (await client.post("/models/b/unload")).json()["message"] == "No model was loaded."
        gone = (await client.post("/models/a/unload")).json()
        assert gone["message"] == "'a' was unloaded."
        assert gone["freed_bytes"] > 32 * 2**20
        assert gone["left_bytes"] > 0
        assert (await client.get("/models/a")).json()["state"] == "cold"
        for call in ("load", "unload"):
            assert (await client.post(f"/models/c/{call}")).json()["code"] == "model_not_found"


async def test_unloading_a_busy_model_waits_or_is_a_conflict_as_requested(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.02, "steps": 20}}) as client:
        task_id = await client.submit()
        await client.until(task_id, "processing")
        answer = await client.post("/models/fake/unload", params={"wait": "false"})
        assert (answer.status_code, answer.json()["code"]) == (409, "model_busy")
        assert (await client.post("/models/fake/unload")).json()["message"] == "'fake' was unloaded."
        assert (await client.until(task_id))["status"] == "completed"


async def test_a_model_that_kills_its_worker_is_quarantined_until_it_is_loaded_by_hand(start: Start) -> None:
    models = {"bad": {"fault": "abort", "fault_at": "load"}, "good": {}}
    async with start(models=models, isolation="process") as client:
        failed = await client.until(await client.submit(model="bad"))
        assert (failed["error_code"], failed["attempt"]) == ("worker_crashed", 2)
        answer = await client.post("/text2image", json={"prompt": "x", "model": "bad"})
        assert (answer.status_code, answer.json()["code"]) == (503, "model_quarantined")
        shown = (await client.get("/models/bad")).json()
        assert (shown["state"], shown["error_code"]) == ("error", "model_quarantined")
        assert (await client.until(await client.submit(model="good")))["status"] == "completed"
        answer = await client.post("/models/bad/load")
        assert (answer.status_code, answer.json()["code"]) == (422, "load_failed")
        assert "worker_crashed" in answer.json()["detail"]


async def test_everything_that_happens_can_be_followed_and_filtered(start: Start) -> None:
    async with start(models={"a": {}, "b": {}}) as client:
        everything = asyncio.create_task(client.get("/events"))
        some = asyncio.create_task(client.get("/events", params={"name": ["model_loaded", "completed"]}))
        one = asyncio.create_task(client.get("/events", params={"model": "b"}))
        while client.app.state.services.bus.subscribers < 3:
            await asyncio.sleep(0.01)
        for model in "ab":
            task_id = await client.submit(model=model)
            await client.get(f"/task/{task_id}/events")  # until its last one
        client.app.state.lifecycle.begin_drain()

        def names(answer: httpx.Response) -> list[str]:
            return re.findall(r"^event: (\w+)$", answer.text, re.MULTILINE)

        assert names(await some) == ["model_loaded", "completed"] * 2 + ["closed"]
        assert names(await one) == ["loading", "model_loading", "model_loaded", "loaded", "closed"]
        assert {"queued", "started", "step", "completed", "model_unloaded"} <= set(names(await everything))


async def test_who_follows_everything_can_come_back_and_is_told_of_a_gap_and_of_the_end(start: Start) -> None:
    async with start(models={"a": {}}) as client:
        task_id = await client.submit(model="a")
        own = (await client.get(f"/task/{task_id}/events")).text
        ids = [int(found) for found in re.findall(r"^id: (\d+)$", own, re.MULTILINE)]
        client.app.state.lifecycle.begin_drain()

        async def after(event_id: int) -> str:
            answer = await client.get("/events", params={"name": "step"}, headers={"last-event-id": str(event_id)})
            return answer.text

        again, early = await after(ids[0]), await after(1)
        assert re.findall(r"^event: (\w+)$", again, re.MULTILINE) == ["step"] * 4 + ["closed"]
        assert '"reason":"stopping"' in again
        assert re.findall(r"^event: (\w+)$", early, re.MULTILINE) == ["gap", *["step"] * 4, "closed"]


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_the_progress_of_a_load_can_be_read_and_followed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    monkeypatch.setattr(executor, "LOOK_EVERY_S", 0.02)
    size = 8 * 2**20
    (tmp_path / "weights").write_bytes(bytes(size))
    models = {"slow": {"local_path": str(tmp_path / "weights"), "read_seconds_per_mib": 0.05}}
    async with start(models=models, isolation=isolation) as client:
        assert (await client.get("/models/slow")).json()["load_progress"] is None
        everything = asyncio.create_task(client.get("/events", params={"name": "model_loading"}))
        while not client.app.state.services.bus.subscribers:
            await asyncio.sleep(0.01)
        task_id = await client.submit()
        its_own = asyncio.create_task(client.get(f"/task/{task_id}/events"))
        shown: list[dict[str, int]] = []
        while (model := (await client.get("/models/slow")).json())["state"] != "resident":
            shown.extend(filter(None, [model["load_progress"]]))
            await asyncio.sleep(0.02)
        await its_own
        client.app.state.lifecycle.begin_drain()
        assert model["load_progress"] is None
        assert {progress["bytes_total"] for progress in shown} == {size}
        assert any(0 < progress["bytes_done"] < size for progress in shown)
        for answer, name in ((its_own, "loading"), (everything, "model_loading")):
            read = [
                int(done) for done in re.findall(rf"event: {name}\ndata: .*\"bytes_done\":(\d+)", (await answer).text)
            ]
            assert read == sorted(set(read))
            assert len(read) > 3


async def test_an_idle_model_leaves_and_comes_back_when_it_is_named(start: Start) -> None:
    models = {"fake": {"auto_unload_minutes": 0.001}}
    async with start(models=models, housekeeping_s=0.02) as client:
        await client.until(await client.submit())
        while (await client.get("/models/current")).json()["is_loaded"]:
            await asyncio.sleep(0.01)
        task = await client.until(await client.submit())
        assert task["status"] == "completed"


async def test_a_model_whose_time_is_zero_stays(start: Start) -> None:
    async with start(models={"fake": {"auto_unload_minutes": 0}}, housekeeping_s=0.01) as client:
        await client.until(await client.submit())
        await asyncio.sleep(0.1)
        assert (await client.get("/models/current")).json()["is_loaded"]


async def test_a_model_that_cannot_be_loaded_fails_its_task_and_the_others_serve(start: Start) -> None:
    async with start(models={"bad": {"fault": "error", "fault_at": "load"}, "good": {}}) as client:
        failed = await client.until(await client.submit(model="bad"))
        assert (failed["status"], failed["error_code"]) == ("failed", "load_failed")
        assert (await client.until(await client.submit(model="good")))["status"] == "completed"


async def test_waiting_tasks_of_a_removed_model_fail_after_a_restart(start: Start) -> None:
    async with start(models={"old": {"step_seconds": 0.05, "steps": 100}}, drain_timeout_s=0) as client:
        ids = [await client.submit(model="old") for _ in range(2)]
        await client.until(ids[0], "processing")
    async with start(models={"new": {}}) as client:
        for task_id in ids:
            assert (await client.until(task_id))["error_code"] == "model_removed"
        assert (await client.until(await client.submit()))["status"] == "completed"


async def test_health_shows_queue_model_and_device(client: Client) -> None:
    await client.until(await client.submit())
    health = (await client.get("/health")).json()
    assert health["status"] == "healthy"
    assert (health["queue_size"], health["total_tasks"], health["current_model"]) == (0, 1, "fake")
    assert health["gpu_info"]["gpu_available"] is False
    assert health["gpu_info"]["host_memory"] > 0
    assert health["gpu_info"]["cuda_problem"] is None
    assert (await client.get("/livez")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).status_code == 200


async def test_health_shows_the_memory_of_other_processes_and_why_there_is_no_card(start: Start) -> None:
    gib = 2**30
    engine = ScriptedEngine(
        full=DeviceMemory(
            gpu_available=True, gpu_name="G", allocated=3 * gib, cached=4 * gib, free=7 * gib, total=24 * gib
        ),
        empty=DeviceMemory(cuda_problem="The driver is too old."),
    )
    async with start(engine=engine) as client:
        await client.until(await client.submit())
        info = (await client.get("/health")).json()["gpu_info"]
        assert {name: size for name, size in info.items() if name.startswith("gpu_memory_")} == {
            "gpu_memory_allocated": 3,
            "gpu_memory_cached": 4,
            "gpu_memory_free": 7,
            "gpu_memory_foreign": 12.5,
            "gpu_memory_total": 24,
        }
        await client.post("/models/unload")
        info = (await client.get("/health")).json()["gpu_info"]
        assert (info["gpu_available"], info["cuda_problem"]) == (False, "The driver is too old.")


async def test_a_request_that_can_never_fit_is_refused_before_it_is_queued(start: Start) -> None:
    too_much = measure("cpu").host_total // 2**20 + 1
    async with start({"small": {}, "large": {"memory_mb": too_much}}) as client:
        await client.until(await client.submit(model="small"))  # the engine has been measured
        for answer in (
            await client.post("/text2image", json={"prompt": "x", "model": "large"}),
            await client.post("/models/large/load"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (422, "does_not_fit")
            assert "GiB" in answer.json()["detail"]
        assert (await client.get("/tasks")).json()["total"] == 1
        assert (await client.get("/models/current")).json()["current_model"] == "small"


async def test_a_size_that_the_model_cannot_draw_is_refused_with_the_number(start: Start, tmp_path: Path) -> None:
    """The size is known from the files, before any load."""
    entry = {"name": "SD3", "type": "stable_diffusion", "local_path": "sd3", "base_size": 1024}
    config, transformer = tmp_path / "sd3.yaml", tmp_path / "models" / "sd3" / "transformer"
    config.write_text(json.dumps({"models": {"sd3": entry}}))
    async with start(config=config, models_dir=tmp_path / "models") as client:
        assert (await client.get("/models/sd3")).json()["longest_side"] is None
        transformer.mkdir(parents=True)
        (transformer / "config.json").write_text('{"pos_embed_max_size": 64}')
        assert (await client.get("/models/sd3")).json()["longest_side"] == 1024
        for path in ("/text2image", "/plan"):
            refused = await client.post(path, json={"prompt": "x", "aspect_ratio": "16:9"})
            assert (refused.status_code, refused.json()["code"]) == (422, "size_too_large"), path
            assert "at most 1024 pixels a side" in refused.json()["detail"]


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        pytest.param("[" * 9000, id="deep"),
        '{"pos_embed_max_size": "many"}',
        '{"pos_embed_max_size": null}',
        "a pipe",
    ],
)
async def test_broken_files_are_the_business_of_the_load(start: Start, tmp_path: Path, broken: str) -> None:
    entry = {"name": "SD3", "type": "stable_diffusion", "local_path": "sd3", "base_size": 64}
    config, transformer = tmp_path / "sd3.yaml", tmp_path / "models" / "sd3" / "transformer"
    transformer.mkdir(parents=True)
    if broken == "a pipe":  # to read it would wait for a writer
        os.mkfifo(transformer / "config.json")
    else:
        (transformer / "config.json").write_text(broken)
    config.write_text(json.dumps({"models": {"sd3": entry}}))
    async with start(config=config, models_dir=tmp_path / "models") as client:
        assert (await client.post("/plan", json={"prompt": "x"})).status_code == 200


async def test_a_plan_warns_that_the_end_of_a_prompt_would_be_ignored(start: Start, tmp_path: Path) -> None:
    entry = {
        "name": "XL",
        "type": "stable_diffusion",
        "pipeline_class": "StableDiffusionXLPipeline",
        "local_path": "xl",
    }
    config = tmp_path / "xl.yaml"
    config.write_text(json.dumps({"models": {"xl": entry}}))
    async with start(config=config, models_dir=tmp_path / "models") as client:
        for words, warned in (
            (77, []),
            (78, ["The end of the prompt will be ignored: the model reads 77 tokens, and "]),
        ):
            plan = (await client.post("/plan", json={"prompt": "cat " * words})).json()
            assert [warning[: len(warned[0])] for warning in plan["warnings"]] == warned
