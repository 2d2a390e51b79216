"""Secrets in every place that takes one, then failures of every kind: they appear nowhere."""

import base64
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from imagegen.builtin import builtin_model
from tests.conftest import fake_config
from tests.e2e.test_pull import TINY
from tests.hub import Hub
from tests.receiver import Receiver, as_variables, hooks, receiving
from tests.server import PATIENCE_S, Server

#: Bytes that random texts do not have, and that no text of ours has.
WORD = "canary"

KEYS = {name: f"ig_{WORD}{name}{'x' * 40}" for name in ("admin", "alice", "bob")}

#: Not in KEYS: what a caller sends by mistake.
WRONG_KEY = f"ig_{WORD}wrong{'x' * 40}"

FAILURES = 200


def secret_of_webhooks(name: str) -> str:
    return "whsec_" + base64.b64encode(f"{WORD}-{name}-{'x' * 30}".encode()).decode()


class World:
    """The service, what it was told, and what it has said."""

    def __init__(self, folder: Path, hub: Hub, receiver: Receiver) -> None:
        self.folder = folder
        self.keys = folder / "secrets" / "keys.yaml"
        self.receiver = receiver
        self.hub = hub
        self.secrets = {
            "hub": hub.token,
            "bucket": f"{WORD}-bucket",
            "session": f"{WORD}-session",
            "proxy": f"{WORD}-proxy",
            "webhooks": secret_of_webhooks("all"),
            "url": f"{WORD}-url",
            "wrong key": WRONG_KEY,
            **KEYS,
        }
        self.said: list[str] = []
        self.failures = 0

    def start(self) -> Server:
        self.keys.parent.mkdir()
        entries = [{"name": name, "key": text, "scopes": [_SCOPES[name]]} for name, text in KEYS.items()]
        self.keys.write_text(json.dumps({"keys": entries}))
        config = self.folder / "models.yaml"
        models = json.loads(fake_config(broken={"fault": "error"}, deadly={"fault": "segfault"}, fine={}))["models"]
        config.write_text(json.dumps({"global": {"auto_download": True}, "models": {**models, "tiny-hub": TINY}}))
        return Server(
            self.folder / "data",
            config,
            **self.hub.environment(self.folder / "hub", self.hub.token),
            **as_variables(hooks(self.receiver, secrets=[self.secrets["webhooks"]])),
            IMAGEGEN_KEYS_FILE=str(self.keys),
            # Nothing listens there, so that every store of a picture fails.
            IMAGEGEN_STORE="s3://pictures",
            IMAGEGEN_STORE_DOWN="fail",
            AWS_ENDPOINT_URL="http://127.0.0.1:9",
            AWS_REGION="us-east-1",
            AWS_ACCESS_KEY_ID="somebody",
            AWS_SECRET_ACCESS_KEY=self.secrets["bucket"],
            AWS_SESSION_TOKEN=self.secrets["session"],
            HTTPS_PROXY=f"http://user:{self.secrets['proxy']}@127.0.0.1:9",
        )

    def hear(self, answer: httpx.Response) -> httpx.Response:
        self.failures += answer.status_code >= 400
        self.said.append(f"{answer.request.method} {answer.headers} {answer.text}")
        return answer

    def leaks(self, text: str) -> list[str]:
        """The names of the secrets that a text has, as they are or in base64."""
        found = []
        for name, secret in self.secrets.items():
            forms = {secret, base64.b64encode(secret.encode()).decode().rstrip("=")}
            if secret.startswith("whsec_"):
                forms |= {secret[6:], base64.b64decode(secret[6:]).decode("latin-1")}
            if any(form in text for form in forms):
                found.append(name)
        return found


_SCOPES = {"admin": "admin", "alice": "generate", "bob": "read"}


@contextmanager
def core_dumps() -> Iterator[None]:
    """Allow them for processes that are started in this block."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def fail_everywhere(world: World, server: Server) -> None:
    """Call each operation without a key, with the wrong one, with one in the wrong place, and with a broken body."""
    document = world.hear(server.http.get("/openapi.json")).json()
    ways: list[dict[str, Any]] = [
        {},
        {"headers": bearer(WRONG_KEY)},
        {"headers": {"X-API-Key": WRONG_KEY, "Cookie": f"key={KEYS['admin']}"}, "params": {"key": KEYS["admin"]}},
        {"headers": bearer(KEYS["admin"]), "content": f'{{"key": "{KEYS["alice"]}",'},
        {"headers": bearer(KEYS["alice"]), "json": dict.fromkeys(("prompt", "steps", "format", "image"), KEYS["bob"])},
    ]
    for path, operations in document["paths"].items():
        for method in operations:
            for way in ways:
                if way not in ways[3:] or not path.endswith("/events"):  # a stream would begin
                    world.hear(server.http.request(method, path.replace("{", "").replace("}", ""), **way))
    for place in (f"/task/{KEYS['bob']}", f"/images/{KEYS['bob']}/x", f"/{KEYS['bob']}", f"/docs/errors/{KEYS['bob']}"):
        world.hear(server.http.get(place, headers=bearer(KEYS["admin"])))


def fail_tasks(world: World, server: Server) -> None:
    """Tasks that a bug, a crash of the worker, a refusal of the hub and the bucket fail; their webhooks fail, too."""
    place = f"/?token={world.secrets['url']}"
    world.receiver.replies_with(place, 500)
    hook = {"webhook_url": world.receiver.url(place)}
    made = world.hear(
        server.http.post("/keys", headers=bearer(KEYS["admin"]), json={"name": "carol", "webhook_secret": True})
    ).json()
    world.said.pop()  # the one answer that shows them
    world.secrets |= {"carol": made["key"], "carol's webhooks": made["webhook_secret"]}
    for text, model in ((made["key"], "broken"), (KEYS["alice"], "deadly"), (KEYS["alice"], "tiny-hub")):
        body = {"prompt": "x", "model": model, **hook}
        task = world.hear(server.http.post("/text2image", json=body, headers=bearer(text) | {"Prefer": "wait=60"}))
        assert (task.status_code, task.json()["status"]) == (200, "failed"), task.text
    stored = server.http.post(
        "/text2image", json={"prompt": "x", "model": "fine"}, headers=bearer(made["key"]) | {"Prefer": "wait=60"}
    )
    assert world.hear(stored).json()["error_code"] == "storage_failed"
    for path in ("/tasks", "/webhooks/deliveries", "/keys", "/keys/me", "/health", "/models", "/models/tiny-hub"):
        world.hear(server.http.get(path, headers=bearer(KEYS["admin"])))
    for path in ("/config/status", "/config/global", "/config/versions", "/readyz", "/metrics"):
        world.hear(server.http.get(path, headers=bearer(KEYS["admin"])))


def test_no_secret_is_shown_logged_or_written_whatever_fails(tmp_path: Path) -> None:
    with Hub() as hub, receiving() as receiver:
        hub.token = f"hf_{WORD}hub{'x' * 20}"
        hub.add_folder("org/tiny", builtin_model("tiny"), gated=True)
        world = World(tmp_path, hub, receiver)
        with core_dumps():
            server = world.start()
        with server:
            processes = [psutil.Process(server.process.pid)]
            fail_tasks(world, server)
            fail_everywhere(world, server)
            assert world.failures >= FAILURES
            processes += processes[0].children(recursive=True)
            assert [it.rlimit(psutil.RLIMIT_CORE)[0] for it in processes] == [0] * len(processes)
            told = [it.environ() for it in processes[1:]]
            receiver.until("/?token=" + world.secrets["url"])
            (tmp_path / "data" / "imagegen.sqlite3").rename(tmp_path / "secrets" / "journal")  # which ends the service
            with suppress(httpx.TransportError):
                while True:
                    world.hear(server.http.post("/text2image", json={"prompt": "x"}, headers=bearer(KEYS["alice"])))
            assert server.process.wait(PATIENCE_S) == 74
    assert hub.token in {asked.token for asked in hub.asked}  # it was used
    assert world.leaks(" ".join(world.said)) == []
    assert world.leaks("".join(server.log)) == []
    assert world.leaks(json.dumps(told)) == []
    for file in (file for file in tmp_path.rglob("*") if file.is_file()):
        # Of the secrets, the journal has those that are needed again: of webhooks, and of URLs that are called.
        own = file.parent.name == "secrets" or file.name.startswith("imagegen.sqlite3")
        found = world.leaks(file.read_bytes().decode("latin-1"))
        assert set(found) <= ({"url", "carol's webhooks", *KEYS} if own else set()), file
