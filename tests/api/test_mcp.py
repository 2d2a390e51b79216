"""The Model Context Protocol: the SDK's own client against /mcp, in both eras of the protocol."""

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp import Client as McpClient
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from imagegen.core.keys import Scope
from tests.api.conftest import Client, Start
from tests.api.test_generation import picture
from tests.api.test_keys import key

LEGACY, MODERN = "legacy", "auto"


@asynccontextmanager
async def connected(client: Client, mode: str = MODERN, **headers: str) -> AsyncIterator[McpClient]:
    transport = httpx2.ASGITransport(client.app)
    async with (
        httpx2.AsyncClient(transport=transport, headers=headers, timeout=60) as http,
        McpClient(streamable_http_client("http://127.0.0.1/mcp", http_client=http), mode=mode) as session,
    ):
        yield session


def facts(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    text = result.content[0]
    assert isinstance(text, TextContent)
    assert json.loads(text.text) == result.structured_content
    return dict(result.structured_content)


def refusal(result: CallToolResult) -> str:
    assert result.is_error
    text = result.content[0]
    assert isinstance(text, TextContent)
    return text.text


def images(result: CallToolResult) -> list[Image.Image]:
    shown = [it for it in result.content if isinstance(it, ImageContent)]
    return [Image.open(io.BytesIO(base64.b64decode(it.data))) for it in shown]


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
async def test_a_tool_makes_pictures_and_tells_its_progress(client: Client, mode: str) -> None:
    told: list[tuple[float, float | None]] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total))

    async with connected(client, mode) as session:
        asked = {"prompt": "a fox", "width": 96, "height": 64, "seed": 5, "pictures": 2, "steps": 3, "format": "png"}
        result = await session.call_tool("generate_image", asked, progress_callback=tell)
        made = facts(result)
        assert [(image.format, image.size) for image in images(result)] == [("PNG", (96, 64))] * 2
        assert (made["status"], made["model"]) == ("completed", "fake")
        assert [it["seed"] for it in made["pictures"]] == [5, 6]
        assert (await client.get(made["pictures"][0]["url"])).status_code == 200
        assert told[-1] == (6, 6)
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert len(told) >= 6

        seen = await session.call_tool("task_status", {"task_id": made["task_id"]})
        assert facts(seen) == made
        assert len(images(seen)) == 2


async def test_a_picture_is_edited_by_base64_or_by_its_path(client: Client) -> None:
    async with connected(client) as session:
        asked = {"prompt": "a fox", "image": picture((32, 16)), "steps": 2, "strength": 0.5}
        result = await session.call_tool("edit_image", asked)
        first = facts(result)["pictures"][0]
        assert [(image.format, image.size) for image in images(result)] == [("WEBP", (96, 48))]
        for again in (first["path"], first["url"]):
            facts(await session.call_tool("edit_image", asked | {"image": again}))
        wrong = await session.call_tool("edit_image", asked | {"image": "http://example.com/a.png"})
        assert wrong.is_error


async def test_a_task_can_be_looked_at_and_cancelled(start: Start) -> None:
    async with start({"fake": {"step_seconds": 0.02, "steps": 200}}, drain_timeout_s=0) as client:
        async with connected(client) as session:
            accepted = facts(await session.call_tool("generate_image", {"prompt": "x", "wait": False}))
            assert accepted["status"] == "pending"
            cancelled = facts(await session.call_tool("cancel_task", {"task_id": accepted["task_id"]}))
            await client.until(accepted["task_id"])
            again = facts(await session.call_tool("cancel_task", {"task_id": accepted["task_id"]}))
        assert cancelled["task_id"] == accepted["task_id"]
        assert again["status"] == "cancelled"


async def test_tools_and_models_are_described(client: Client) -> None:
    async with connected(client) as session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert set(tools) == {"generate_image", "edit_image", "list_models", "task_status", "cancel_task"}
        assert tools["generate_image"].input_schema["required"] == ["prompt"]
        assert all(tool.description and tool.annotations for tool in tools.values())
        listed = facts(await session.call_tool("list_models"))
        assert listed["default_model"] == "fake"
        assert [model["id"] for model in listed["models"]] == ["fake"]


async def test_errors_are_for_the_language_model_to_mend(start: Start) -> None:
    async with start({"fake": {"fault": "error"}}) as client, connected(client) as session:
        for name, asked, said in (
            ("generate_image", {"prompt": "x"}, "generation_failed"),
            ("generate_image", {"prompt": "x", "model": "none"}, "model_not_found"),
            ("generate_image", {"prompt": "x", "width": 64}, "give width and height together"),
            ("generate_image", {"prompt": "x", "pictures": 5}, "pictures"),
            ("generate_image", {"prompt": "x", "size": 5}, "size"),
            ("task_status", {"task_id": "none"}, "task_not_found"),
        ):
            assert said in refusal(await session.call_tool(name, asked))
        with pytest.raises(MCPError, match="no such tool"):
            await session.call_tool("other", {})


async def test_keys_and_their_scopes_count(client: Client) -> None:
    alice, bob = await key(client, "alice"), await key(client, "bob")
    reader = await key(client, "reader", Scope.READ)
    async with connected(client, **alice) as session:
        made = facts(await session.call_tool("generate_image", {"prompt": "x"}))
        assert (await client.get(made["pictures"][0]["url"])).status_code == 200  # signed
        assert (await client.get(made["pictures"][0]["path"])).status_code == 401
    async with connected(client, **bob) as session:
        assert (await session.call_tool("task_status", {"task_id": made["task_id"]})).is_error
    async with connected(client, **reader) as session:
        assert facts(await session.call_tool("task_status", {"task_id": made["task_id"]}))
        assert "forbidden" in refusal(await session.call_tool("generate_image", {"prompt": "x"}))


async def test_what_is_refused_before_the_protocol(client: Client) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    await key(client, "alice")
    for answer, status, code in (
        (await client.post("/mcp", json=message), 401, "unauthorized"),
        (await client.post("/mcp", json=message, headers={"Host": "evil.example"}), 421, "unknown_host"),
        (await client.get("/mcp"), 405, "method_not_allowed"),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]["data"]["code"] == code
