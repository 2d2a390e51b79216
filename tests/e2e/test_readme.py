"""The commands of the README: each `bash` block runs unchanged, in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.server import PATIENCE_S, Server

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:5050"


def test_the_readmes_commands_work_unchanged(tiny: Server, tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 6
    script = "set -euo pipefail\n" + "\n".join(blocks)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script.replace(ADDRESS, str(tiny.http.base_url).rstrip("/"))],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"status":"pending"' in done.stdout
    assert "event: completed" in done.stdout
    assert "'tiny' was unloaded." in done.stdout
    for name in ("picture.png", "moon.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (128, 128)
