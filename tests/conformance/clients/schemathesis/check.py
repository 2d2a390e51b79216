"""All checks of schemathesis on all operations. schemathesis.toml has the exceptions, and their reasons.

The suite runs it, too, with `--max-examples` and `--phases` as arguments.
"""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

URL, KEY = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_ADMIN_KEY"]
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}

#: Cases of each operation that are generated beside the examples and the edges of each field.
MAX_EXAMPLES = 10

#: A service without keys answers without one, as documented. The first key that is made would close it: all other
#: operations would be answered with 401.
WITHOUT_KEYS = ["--exclude-checks", "ignored_auth", "--exclude-operation-id", "create_key"]

#: Seconds between two tasks that this check submits, so that there are events to read.
TASK_EVERY_S = 1


def submit_tasks(over: threading.Event) -> None:
    body = json.dumps({"prompt": "a red circle", "width": 64, "height": 64, "steps": 1}).encode()
    request = urllib.request.Request(f"{URL}/text2image", body, {"Content-Type": "application/json", **HEADERS})
    while not over.wait(TASK_EVERY_S):
        try:
            urllib.request.urlopen(request, timeout=60).close()
        except OSError:  # the checks may have changed the settings so that it is refused
            continue


def main() -> int:
    config = Path(__file__).parent / "schemathesis.toml"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{URL}/openapi.json"]
    command += ["--max-examples", str(MAX_EXAMPLES), "--seed", "1"]
    command += sys.argv[1:]
    for name, value in HEADERS.items():
        command += ["--header", f"{name}: {value}"]
    command += [] if KEY else WITHOUT_KEYS
    over = threading.Event()
    tasks = threading.Thread(target=submit_tasks, args=(over,))
    tasks.start()
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        over.set()
        tasks.join()


if __name__ == "__main__":
    sys.exit(main())
