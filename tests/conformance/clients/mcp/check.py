"""The client of the official MCP SDK: streamable HTTP in both eras of the protocol, and stdio by `imagegen mcp`."""

import asyncio
import base64
import json
import os
import shlex
from pathlib import Path

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

url, key, out = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])
headers = {"Authorization": f"Bearer {key}"} if key else {}
asked = {"prompt": "a red circle on a blue background", "seed": 7, "steps": 8, "format": "png"}


def saved(result, name):
    assert not result.is_error, result.content
    for number, image in enumerate(it for it in result.content if it.type == "image"):
        (out / f"{name}-{number}.png").write_bytes(base64.b64decode(image.data))
    return json.loads(result.content[0].text)


async def check(client, name):
    tools = {tool.name for tool in (await client.list_tools()).tools}
    assert tools == {"generate_image", "edit_image", "list_models", "task_status", "cancel_task"}
    models = saved(await client.call_tool("list_models"), name)["models"]
    assert "tiny" in [model["id"] for model in models]

    # Generate, with progress.
    told = []

    async def tell(progress, total, message):
        told.append((progress, total))

    result = await client.call_tool("generate_image", asked, progress_callback=tell)
    made = saved(result, f"{name}-generated")
    assert told[-1] == (8, 8), told
    assert saved(await client.call_tool("task_status", {"task_id": made["task_id"]}), f"{name}-status") == made

    # Edit: the picture by its path.
    edit = asked | {"prompt": "a yellow star on a blue background", "image": made["pictures"][0]["path"]}
    saved(await client.call_tool("edit_image", edit | {"strength": 0.9}), f"{name}-edited")

    # Errors, which a language model can read.
    wrong = await client.call_tool("generate_image", asked | {"steps": 0})
    assert wrong.is_error
    assert "steps" in wrong.content[0].text

    # Cancel: by the tool, and by giving up the call.
    slow = asked | {"steps": 200, "width": 512, "height": 512}
    task_id = saved(await client.call_tool("generate_image", slow | {"wait": False}), name)["task_id"]
    await client.call_tool("cancel_task", {"task_id": task_id})
    while (await status(client, task_id)) in ("pending", "processing"):
        await asyncio.sleep(0.1)
    assert await status(client, task_id) == "cancelled"
    call = asyncio.create_task(client.call_tool("generate_image", slow, progress_callback=tell))
    told.clear()
    while not told:
        await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def status(client, task_id):
    return json.loads((await client.call_tool("task_status", {"task_id": task_id})).content[0].text)["status"]


async def cancelled_tasks():
    async with httpx2.AsyncClient(headers=headers) as http:
        while True:
            tasks = (await http.get(f"{url}/tasks")).json()["tasks"]
            if all(task["status"] not in ("pending", "processing") for task in tasks):
                return [task["status"] for task in tasks].count("cancelled")
            await asyncio.sleep(0.1)


async def main():
    for mode in ("auto", "legacy"):
        before = await cancelled_tasks()
        async with (
            httpx2.AsyncClient(headers=headers, timeout=120) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
        ):
            await check(client, f"http-{mode}")
        assert await cancelled_tasks() == before + 2
    if key:
        try:
            async with Client(f"{url}/mcp") as client:
                await client.list_tools()
        except* MCPError:
            pass
        else:
            raise AssertionError("no key was needed")

    # A host starts the command: with the service, and with an engine of its own.
    command, *arguments = shlex.split(os.environ["IMAGEGEN_COMMAND"])
    variables = dict(os.environ) | ({"IMAGEGEN_KEY": key} if key else {})
    there = StdioServerParameters(command=command, args=[*arguments, "mcp", "--server", url], env=variables)
    async with Client(there) as client:
        await check(client, "stdio-service")
    if not key:
        own = StdioServerParameters(command=command, args=[*arguments, "mcp"], env=dict(os.environ))
        async with Client(own) as client:
            await check(client, "stdio-own")


asyncio.run(main())
