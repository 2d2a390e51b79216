"""`imagegen mcp` as hosts start it: over standard input and output."""

import os
import subprocess
import sys
from pathlib import Path

from mcp import Client, StdioServerParameters

from imagegen.testing.config import fake_config
from tests.api.test_mcp import images
from tests.server import Server


def command(*arguments: str, **variables: str) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=["-m", *arguments], env=os.environ | variables)


async def test_a_host_gets_pictures_from_an_engine_of_the_command(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config())
    host = command("imagegen.testing", "mcp", "--config", str(config), IMAGEGEN_ISOLATION="thread")
    async with Client(host, mode="legacy") as session:
        result = await session.call_tool("generate_image", {"prompt": "a red circle"})
        assert [image.size for image in images(result)] == [(64, 64)]


async def test_a_host_gets_pictures_from_a_service(tiny: Server) -> None:
    told: list[float] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with Client(command("imagegen", "mcp", "--server", str(tiny.http.base_url))) as session:
        asked = {"prompt": "a red circle", "steps": 4}
        result = await session.call_tool("generate_image", asked, progress_callback=tell)
        assert [image.size for image in images(result)] == [(128, 128)]
        assert told[-1] == 4


def test_the_sdk_is_imported_where_it_is_used_only() -> None:
    script = "import sys, imagegen.app, imagegen.cli; print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
