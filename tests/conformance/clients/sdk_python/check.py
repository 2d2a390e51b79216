"""Our own Python SDK: run, events, upload, cancel, errors, webhooks, and generated operations."""

import contextlib
import http.server
import io
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagegen_client import Client, ImagegenError, InvalidSignature, TaskEnded, verify_webhook
from imagegen_client.generated.api.images import get_image
from imagegen_client.generated.api.models import get_model, list_models
from imagegen_client.generated.api.service import health
from imagegen_client.generated.api.tasks import follow_task, get_bundle, list_tasks
from imagegen_client.generated.models import Lora, TaskCompleted, TaskPreview, TaskStep, Text2ImageBody
from PIL import Image

URL, KEY, OUT = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"] or None, Path(os.environ["OUT"])
PROMPT = "a red circle on a blue background"


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def raised(kind: type[BaseException], call: Callable[[], object]) -> Any:
    """The exception that a call raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def makes_pictures(client: Client) -> None:
    data = client.run(PROMPT, seed=7, width=64, height=64)
    (OUT / "run.png").write_bytes(data)
    image = picture(data)
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert client.run(PROMPT, seed=7, width=64, height=64) == data
    batch = client.run_all(PROMPT, batch_size=2, format_="webp", width=64, height=64)
    assert [picture(it).format for it in batch] == ["WEBP", "WEBP"]
    red, green, blue = image.convert("RGB").getpixel((32, 32))
    assert red > 128 > max(green, blue), (red, green, blue)


def uploads(client: Client) -> None:
    start = OUT / "start.png"
    Image.new("RGB", (64, 64), "blue").save(start)
    for given in (start, str(start), start.read_bytes()):
        edited = client.run("a yellow star", image=given, strength=0.9, seed=1)
        assert picture(edited).size == (128, 128)
    (OUT / "edited.png").write_bytes(edited)


def follows(client: Client) -> None:
    task = client.submit(PROMPT, steps=8, previews=2)
    events = list(client.events(task.task_id))
    steps = [it.step for it in events if isinstance(it, TaskStep)]
    assert steps == list(range(1, 9)), steps
    assert any(isinstance(it, TaskPreview) for it in events)
    last = events[-1]
    assert isinstance(last, TaskCompleted)
    assert last.type_ == "completed"
    assert last.images[0].url == client.task(task.task_id).images[0].url
    # From the middle of the stream, as after a broken connection.
    rest = list(client.events(task.task_id, after=1))
    assert rest[-1] == last


class Cutting:
    """A proxy that breaks each of the first connections after some bytes of its answers."""

    def __init__(self, breaks: int) -> None:
        self.left = breaks
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        host, port = URL.removeprefix("http://").split(":")
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection((host, int(port)))
            threading.Thread(target=self._pass, args=(near, far, None), daemon=True).start()
            most = 2500 if self.left else None
            self.left = max(0, self.left - 1)
            threading.Thread(target=self._pass, args=(far, near, most), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, to: socket.socket, most: int | None) -> None:
        sent = 0
        while (data := source.recv(500)) and (most is None or sent < most):
            to.sendall(data)
            sent += len(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def survives_broken_connections(client: Client) -> None:
    task = client.submit(PROMPT, steps=50)
    with Client(Cutting(3).url, KEY) as shaky:
        steps = [it.step for it in shaky.events(task.task_id) if isinstance(it, TaskStep)]
    assert steps == list(range(1, 51)), steps


def cancels(client: Client) -> None:
    slow = client.submit(PROMPT, steps=200, batch_size=8)
    assert client.cancel(slow.task_id).status in ("processing", "cancelled")
    assert raised(TaskEnded, lambda: client.wait(slow.task_id)).code == "cancelled"


def tells_errors(client: Client) -> None:
    for call, status, code in (
        (lambda: client.submit(PROMPT, model="nope"), 404, "model_not_found"),
        (lambda: client.submit(PROMPT, steps=5000), 422, "invalid_request"),
        (lambda: client.task("nope"), 404, "task_not_found"),
        (lambda: list(client.events("nope")), 404, "task_not_found"),
        (lambda: client.submit(PROMPT, loras=[Lora(path="nope.safetensors", scale=0.5)]), 422, "lora_not_found"),
    ):
        error = raised(ImagegenError, call)
        assert (error.status, error.code) == (status, code), error
    assert "step" in str(raised(TypeError, lambda: client.submit(PROMPT, step=4)))


def repeats_safely(client: Client) -> None:
    key = os.urandom(8).hex()
    first, second = (client.submit(PROMPT, seed=3, idempotency_key=key) for _ in range(2))
    assert first.task_id == second.task_id


def has_all_operations(client: Client) -> None:
    """The generated functions, with answers of every kind: JSON, bytes, errors."""
    assert health.sync(client=client.api).status == "healthy"
    assert list_models.sync(client=client.api).models[0].id == "tiny"
    config = get_model.sync("tiny", client=client.api).config
    assert (config.type_, config.pipeline_class, config.steps) == ("flux", "FluxPipeline", 8)
    task = client.wait(client.submit(Text2ImageBody(prompt=PROMPT, seed=7, width=64, height=64)).task_id)
    folder, file = task.result_files[0].split("/")
    image = get_image.sync(folder, file, client=client.api)
    assert picture(image.payload.read()).size == (64, 64)
    assert get_bundle.sync(task.task_id, client=client.api).payload.read(2) == b"PK"
    assert task.task_id in [it.task_id for it in list_tasks.sync(client=client.api).tasks]
    refusal = get_model.sync("nope", client=client.api)
    assert (refusal.code, refusal.status) == ("model_not_found", 404)
    assert follow_task.sync_detailed  # the events of a stream are read by Client.events


def verifies_webhooks(client: Client) -> None:
    received: list[tuple[bytes, dict[str, str]]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.rfile.read(int(self.headers["Content-Length"])), dict(self.headers)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    port = int(os.environ["WEBHOOK_PORT"])
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        task = client.wait(client.submit(PROMPT, webhook_url=f"http://127.0.0.1:{port}/").task_id)
        deadline = time.monotonic() + 60
        while not received and time.monotonic() < deadline:
            time.sleep(0.05)
        server.shutdown()
    ((body, headers),) = received
    payload = verify_webhook(body, headers, ["whsec_" + "A" * 32, os.environ["WEBHOOK_SECRET"]])
    assert (payload.type_, payload.data.task_id) == ("task.completed", task.task_id)
    for wrong in (body.replace(b"completed", b"cancelled"), body + b" "):
        raised(InvalidSignature, lambda: verify_webhook(wrong, headers, os.environ["WEBHOOK_SECRET"]))  # noqa: B023


def needs_the_key() -> None:
    with Client(URL, "ig_wrong") as stranger:
        error = raised(ImagegenError, lambda: stranger.run(PROMPT))
    assert (error.status, error.code) == (401, "unauthorized")


with Client(URL, KEY) as client:
    for check in (
        makes_pictures,
        uploads,
        follows,
        survives_broken_connections,
        cancels,
        tells_errors,
        repeats_safely,
        has_all_operations,
        verifies_webhooks,
    ):
        check(client)
        print(check.__name__, "passed")
if KEY:
    needs_the_key()
