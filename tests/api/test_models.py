"""What is configured, what is resident, and when it leaves."""

import asyncio

from tests.api.conftest import Client, Start


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
            "last_used": None,
            "supports_text2img": True,
            "supports_img2img": False,
            "supports_inpaint": False,
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


async def test_unload_waits_for_the_running_task_and_goes_before_waiting_ones(start: Start) -> None:
    async with start(models={"fake": {"step_seconds": 0.02}}) as client:
        first, second = await client.submit(), await client.submit()
        await client.until(first, "processing")
        answer = await client.post("/models/unload")
        assert answer.json() == {"message": "'fake' was unloaded."}
        assert (await client.task(first))["status"] in ("processing", "completed")
        assert (await client.until(second))["status"] == "completed"
        await client.post("/models/unload")
        assert (await client.post("/models/unload")).json() == {"message": "No model was loaded."}


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


async def test_waiting_tasks_of_a_model_that_is_gone_after_a_restart_fail(start: Start) -> None:
    async with start(models={"old": {"step_seconds": 0.05, "steps": 100}}, drain_timeout_s=0) as client:
        ids = [await client.submit(model="old") for _ in range(2)]
        await client.until(ids[0], "processing")
    async with start(models={"new": {}}) as client:
        for task_id in ids:
            assert (await client.until(task_id))["error_code"] == "model_removed"
        assert (await client.until(await client.submit()))["status"] == "completed"


async def test_health_tells_queue_model_and_device(client: Client) -> None:
    await client.until(await client.submit())
    health = (await client.get("/health")).json()
    assert health["status"] == "healthy"
    assert (health["queue_size"], health["total_tasks"], health["current_model"]) == (0, 1, "fake")
    assert health["gpu_info"]["gpu_available"] is False
    assert health["gpu_info"]["host_memory"] > 0
    assert (await client.get("/livez")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).status_code == 200
