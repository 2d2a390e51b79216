"""A few cases of what schemathesis checks in `make conformance`, with fake models."""

import json
import os
import subprocess
import sys
from pathlib import Path

from imagegen.core.keys import new_key_text
from tests.conftest import fake_config
from tests.server import Server

CHECK = Path(__file__).parents[1] / "conformance" / "clients" / "schemathesis" / "check.py"


def test_every_operation_keeps_to_the_openapi_document(tmp_path: Path) -> None:
    key, keys, config = new_key_text(), tmp_path / "keys.json", tmp_path / "models.yaml"
    keys.write_text(json.dumps({"keys": [{"name": "operator", "key": key, "scopes": ["admin"]}]}))
    config.write_text(fake_config())
    with Server(tmp_path / "data", config, IMAGEGEN_KEYS_FILE=str(keys)) as server:
        told = {"IMAGEGEN_URL": str(server.http.base_url).rstrip("/"), "IMAGEGEN_ADMIN_KEY": key}
        command = [sys.executable, str(CHECK), "--phases", "examples,fuzzing", "--max-examples", "3"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | told, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not [line for line in server.log if "request_failed" in line]
