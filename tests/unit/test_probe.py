"""`imagegen health`: the question, the address it goes to, and its exit codes."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from imagegen import probe
from tests.commands import command


class Service(http.server.BaseHTTPRequestHandler):
    """Answers as the probes of the service do; below /stopping as one that drains."""

    def do_GET(self) -> None:
        draining, told = self.path == "/stopping/readyz", b'{"status": "ok"}'
        if draining:
            told = json.dumps({"code": "draining", "detail": "The service is stopping."}).encode()
        odd = {
            "/nested/readyz": b"[" * 60_000,
            "/odd/readyz": json.dumps({"code": "a\x1b[2J", "detail": "b\nc"}).encode(),
        }
        told = odd.get(self.path, told)
        known = self.path in ("/readyz", "/livez", "/stopping/livez")
        self.send_response(503 if draining else 200 if known else 404)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_service_that_accepts_tasks_is_0_and_one_that_does_not_is_1(url: str) -> None:
    well = command("health", "--server", url)
    assert (well.exit_code, well.stdout, well.stderr) == (0, "ready\n", "")
    draining = command("health", "--server", f"{url}/stopping")
    assert (draining.exit_code, draining.stdout) == (1, "")
    assert draining.stderr == "draining: The service is stopping.\n"
    assert command("health", "--server", f"{url}/stopping", "--live").stdout == "alive\n"
    assert command("health", "--server", f"{url}/elsewhere").stderr == "the service answered 404\n"


def test_an_odd_answer_is_one_line_without_anything_that_a_terminal_obeys(url: str) -> None:
    assert command("health", "--server", f"{url}/odd").stderr == "a [2J: b c\n"
    assert command("health", "--server", f"{url}/nested").stderr == "the service answered 404\n"


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("http://127.0.0.1:1", "cannot reach the service at http://127.0.0.1:1"),
        ("http://127.0.0.1:0", "the port is 0"),
        ("127.0.0.1:5050", "not an http or https URL"),
        ("http://127.0.0.1:x", "not an http or https URL"),
        ("http://[::1", "not an http or https URL"),
        ("http://a b/", "not an http or https URL"),
        (f"http://{'a' * 64}.example/", "cannot reach the service at http://aaa"),
        ("http://user:pass@127.0.0.1:1", "cannot reach the service at http://127.0.0.1:1"),
        ("https//user:pass@host", "https//host is not an http or https URL"),
    ],
)
def test_what_cannot_be_asked_is_1_with_a_reason(server: str, words: str) -> None:
    answer = command("health", "--server", server)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert words in answer.stderr
    assert "pass" not in answer.stderr


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:5050"),
        ({"IMAGEGEN_PORT": "8080", "IMAGEGEN_HOST": "0.0.0.0"}, "http://127.0.0.1:8080"),
        ({"IMAGEGEN_HOST": "::", "imagegen_port": "8080"}, "http://[::1]:8080"),
        ({"IMAGEGEN_HOST": "10.0.0.7", "IMAGEGEN_PORT": "8080", "IMAGEGEN_PROBE_PORT": "9090"}, "http://10.0.0.7:9090"),
        ({"IMAGEGEN_PORT": "tcp://10.0.0.1:5050"}, "http://127.0.0.1:5050"),
        (
            {"IMAGEGEN_SERVER": "https://gpu.example.com/imagegen", "IMAGEGEN_PORT": "1"},
            "https://gpu.example.com/imagegen",
        ),
    ],
)
def test_the_address_is_the_one_of_the_services_settings(variables: dict[str, str], url: str) -> None:
    assert probe.address(variables) == url


def test_a_health_check_imports_none_of_the_other_commands(url: str) -> None:
    code = (
        "import sys; from imagegen.__main__ import main; sys.argv[1:] = ['health']\n"
        "try: main()\n"
        "finally: print(*sorted({'typer', 'httpx', 'pydantic', 'fastapi'} & sys.modules.keys()))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={"IMAGEGEN_SERVER": url, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (asked.returncode, asked.stdout) == (0, "ready\n\n"), asked.stderr
