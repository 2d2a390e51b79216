"""The commands of the README and of docs/clients.md: each `bash` block runs unchanged, in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.server import PATIENCE_S, Server

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:5050"


def run_blocks(page: str, server: Server, folder: Path) -> str:
    """Run the blocks of a page in a folder; returns what they write to standard output."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    script = "set -euo pipefail\n" + "\n".join(blocks)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, str(server.http.base_url).rstrip("/"))],
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
    said = run_blocks("README.md", tiny, tmp_path)
    assert '"status":"pending"' in said
    assert "event: completed" in said
    assert "'tiny' was unloaded." in said
    for name in ("picture.png", "moon.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (128, 128)


def test_the_commands_of_the_page_about_clients_work_unchanged(tiny: Server, tmp_path: Path) -> None:
    run_blocks("docs/clients.md", tiny, tmp_path)
    with Image.open(tmp_path / "circle.png") as image:
        assert image.size == (128, 128)
