"""imagegen.testing, and the snippets of docs/debugging.md."""

import ast
import asyncio
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from imagegen import lifecycle
from imagegen.core.errors import FailureCode, ImagegenError
from imagegen.core.task import TaskStatus
from imagegen.testing.engine import OUT_OF_MEMORY, ScriptedEngine
from imagegen.testing.fake import colour_of
from imagegen.testing.service import draw, make_service

PAGE = (Path(__file__).parents[2] / "docs" / "debugging.md").read_text()
FIRST, SECOND = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(TOLD,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)


async def run(snippet: str) -> None:
    """Run code like `python -m asyncio`."""
    code = compile(snippet, "debugging.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    work: Awaitable[Any] = eval(code, {"__name__": "__console__"})
    await work


async def test_the_page_on_debugging_makes_a_service_at_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    await run(FIRST)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("completed", "failed", "<"))]
    assert re.fullmatch(r"completed \d{8}/[0-9a-f-]{36}-0\.png", said[0])
    assert said[1] == "failed generation_failed"
    assert said[2].startswith("<Device [None, <TaskQueue [")


async def test_the_page_on_debugging_shows_a_fault_at_the_right_moment(capsys: pytest.CaptureFixture[str]) -> None:
    await run(SECOND)
    assert capsys.readouterr().out.endswith(TOLD)


async def test_a_service_with_fake_models_draws_the_colour_of_the_seed_and_leaves_no_folder() -> None:
    async with make_service({"a": {}, "b": {"steps": 2}}) as made:
        folder = made.services.settings.data_dir
        task = await draw(made, "x", model="b", seed=3)
        assert (task.status, task.request.steps) == (TaskStatus.COMPLETED, 2)
        pieces = [piece async for piece in made.services.images.pieces(task.images[0], 0, task.images[0].bytes)]
        assert b"".join(pieces).startswith(b"\x89PNG")
    assert not folder.exists()
    assert colour_of(3) != colour_of(4)


async def test_a_request_that_is_refused_raises(tmp_path: Path) -> None:
    async with make_service(folder=tmp_path) as made:
        with pytest.raises(ImagegenError):
            await draw(made, model="unknown")
    assert (tmp_path / "data").is_dir()


async def test_a_scripted_engine_answers_at_once_or_when_the_test_calls_answer(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with asyncio.timeout(60), make_service({"a": {}}, folder=tmp_path, engine=engine) as made:
        engine.always["generate"] = OUT_OF_MEMORY
        task = await draw(made)
        assert task.failure is not None
        assert task.failure.code is FailureCode.OUT_OF_MEMORY
        engine.always.clear()
        engine.waits = True
        drawing = asyncio.create_task(draw(made, seed=5))
        assert (await engine.until_generating()).request.seed == 5
        engine.step(1, 4)
        assert not drawing.done()
        engine.answer(None)
        assert (await drawing).status is TaskStatus.COMPLETED
    assert engine.asked == ["load a", "generate a", "generate a"]


async def test_a_service_ends_although_the_engine_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "STOP_GRACE_S", 0)
    engine = ScriptedEngine(waits=True)
    async with asyncio.timeout(60), make_service(folder=tmp_path, engine=engine, drain_timeout_s=0) as made:
        drawing = asyncio.create_task(draw(made))
        await engine.until_generating()
    assert not (await drawing).status.finished
    assert engine.aborted_calls == 1
