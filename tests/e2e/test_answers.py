"""What a caller and an operator are told by a real service, over a real socket."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fake_config
from tests.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("data"), IMAGEGEN_MAX_BODY_BITES="1", IMAGEGEN_MAX_BODY_BYTES="4096") as it:
        yield it


def lines(server: Server, event: str) -> list[dict[str, object]]:
    return [line for line in map(json.loads, server.log) if line["event"] == event]


def test_a_misspelt_variable_is_named_at_the_start(server: Server) -> None:
    (line,) = lines(server, "unknown_setting")
    assert line["message"] == (
        "No setting has the name IMAGEGEN_MAX_BODY_BITES; did you mean 'IMAGEGEN_MAX_BODY_BYTES'?"
    )


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"data": {"prompt": "x"}}, 415, "application/json"),
        ({"content": "{'prompt': 'x'}", "headers": {"content-type": "application/json"}}, 400, "Line 1, column 2"),
        ({"json": {"promt": "x"}}, 422, "did you mean 'prompt'?"),
        ({"json": {"prompt": "x" * 5000}}, 413, "4,096 bytes; IMAGEGEN_MAX_BODY_BYTES"),
    ],
)
def test_a_refused_body_is_explained_and_leads_to_its_page(
    server: Server, request_: dict[str, object], status: int, words: str
) -> None:
    answer = server.http.post("/text2image", **request_)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert words in answer.text
    page = server.http.get(answer.json()["type"])
    assert page.status_code == 200
    assert f"<h1><code>{answer.json()['code']}</code></h1>" in page.text


def test_a_health_check_by_head_is_answered_on_a_connection_that_goes_on(server: Server) -> None:
    """Over HTTP/1.1 a body after a HEAD, or a wrong length, would be read as the next answer."""
    for path in ("/livez", "/readyz", "/health", "/events", "/docs/errors/queue_full", "/livez"):
        answer = server.http.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert server.http.get("/livez").json() == {"status": "ok"}


def test_a_failed_task_is_found_in_the_log_by_its_id(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"fault": "abort"}))  # twice, so that the worker is replaced once
    with Server(tmp_path / "data", config) as server:
        answer = server.http.post("/text2image", json={"prompt": "x"}, headers={"X-Request-ID": "order-7"})
        task = server.until(answer.json()["task_id"])
        assert (task["request_id"], task["error_code"]) == ("order-7", "worker_crashed")
        entries = list(map(json.loads, server.log))
    about = [entry for entry in entries if task["task_id"] in json.dumps(entry)]
    events = [entry["event"] for entry in about]
    assert (events[0], events[-1], events.count("engine_failed")) == ("task_accepted", "task_ended", 2)
    for entry in about:
        assert (entry["request_id"], entry["model"]) == ("order-7", "fake")
    assert about[-1]["code"] == "worker_crashed"
