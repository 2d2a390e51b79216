"""The examples of deploy/: nginx and Caddy, as Debian has them, in front of a service below /imagegen/."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pytest
from PIL import Image
from playwright.sync_api import expect

from imagegen.testing.config import fake_config
from tests.browser import MISSING, Watched, browsing, chromium
from tests.proxies import CADDY, NGINX, NO_CADDY, NO_NGINX, caddy, free_port, nginx, trusting
from tests.server import PATIENCE_S, Server

needs_nginx = pytest.mark.skipif(NGINX is None, reason=NO_NGINX)
needs_caddy = pytest.mark.skipif(CADDY is None, reason=NO_CADDY)

#: `gate` takes so many steps that a test never waits for its end.
MODELS: dict[str, Any] = {"quick": {"supports_img2img": True}, "gate": {"step_seconds": 0.25, "steps": 200}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "models.yaml").write_text(fake_config(**MODELS))
    variables = {"IMAGEGEN_ROOT_PATH": "/imagegen", "IMAGEGEN_TRUSTED_PROXIES": "127.0.0.1"}
    with Server(folder / "data", folder / "models.yaml", **variables) as running:
        yield running


@dataclass
class Front:
    """A proxy in front of the service."""

    port: int
    folder: Path

    @property
    def origin(self) -> str:
        return f"https://localhost:{self.port}"

    @contextmanager
    def client(self, **headers: str) -> Iterator[httpx.Client]:
        base, trust = f"{self.origin}/imagegen", trusting(self.folder)
        with httpx.Client(base_url=base, verify=trust, headers=headers, timeout=PATIENCE_S) as http:
            yield http


def port_of(server: Server) -> int:
    assert server.http.base_url.port is not None
    return server.http.base_url.port


@pytest.fixture(
    scope="module",
    params=[pytest.param("nginx", marks=needs_nginx), pytest.param("caddy", marks=needs_caddy)],
)
def front(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    made = Front(free_port(), tmp_path_factory.mktemp(request.param))
    if request.param == "nginx":
        running = nginx(made.folder, "imagegen.conf", made.port, port_of(server))
    else:
        running = caddy(made.folder, made.port, port_of(server))
    with running:
        yield made


def test_a_task_is_followed_by_what_answers_say(front: Front) -> None:
    with front.client() as http:
        accepted = http.post("/text2image", json={"prompt": "x", "model": "quick"})
        assert accepted.status_code == 202
        # As RFC 3986 resolves them, against the URL of the request.
        here = accepted.url.join(accepted.headers["location"])
        assert str(here).startswith(f"{front.origin}/imagegen/task/")
        events = http.get(accepted.url.join(accepted.json()["links"]["events"])).text
        assert "event: completed" in events
        url = http.get(here).json()["images"][0]["url"]
        assert http.get(here.join(url)).headers["content-type"] == "image/png"
        refused = http.get("/task/unknown")
        assert http.get(refused.url.join(refused.json()["type"])).status_code == 200


def test_other_apis_give_whole_urls_with_the_proxys_scheme_host_and_port(front: Front) -> None:
    with front.client() as http:
        asked = {"model": "quick", "prompt": "x", "response_format": "url"}
        url = http.post("/v1/images/generations", json=asked).json()["data"][0]["url"]
        assert url.startswith(f"{front.origin}/imagegen/images/")
        assert http.get(url).status_code == 200
        assert http.get("/openapi.json").json()["servers"] == [{"url": "/imagegen"}]


def test_what_callers_say_about_themselves_does_not_pass(front: Front) -> None:
    spoofed = {"X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/evil", "X-Forwarded-Proto": "http"}
    with front.client(**spoofed) as http:
        asked = {"model": "quick", "prompt": "x", "response_format": "url"}
        url = http.post("/v1/images/generations", json=asked).json()["data"][0]["url"]
        assert url.startswith(f"{front.origin}/imagegen/images/")


def test_a_picture_of_some_megabytes_is_uploaded(front: Front) -> None:
    Image.frombytes("RGB", (1000, 800), os.urandom(2_400_000)).save(file := io.BytesIO(), "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    assert len(image) > 3_000_000
    with front.client() as http:
        accepted = http.post("/image2image", json={"prompt": "x", "model": "quick", "image": image})
        assert accepted.status_code == 202, accepted.text


def test_events_arrive_while_the_task_runs(front: Front) -> None:
    with front.client() as http:
        task_id = http.post("/text2image", json={"prompt": "x", "model": "gate"}).json()["task_id"]
        with http.stream("GET", f"/task/{task_id}/events") as events:
            lines = events.iter_lines()
            seen = [next(line for line in lines if line.startswith("event: step")) for _ in range(2)]
            assert len(seen) == 2
            # The stream goes on, so these steps have not waited for its end.
            assert http.post(f"/task/{task_id}/cancel").json()["status"] == "processing"
            assert [line for line in lines if line.startswith("event: ")][-1] == "event: cancelled"


def test_connections_to_the_service_are_used_again(front: Front, server: Server) -> None:
    process, used = psutil.Process(server.process.pid), set()
    with front.client() as http:
        for _ in range(8):
            assert http.get("/livez").status_code == 200
            used |= {it.raddr.port for it in process.net_connections() if it.raddr and it.status == "ESTABLISHED"}
    ours = server.http.get("/livez").extensions["network_stream"].get_extra_info("client_addr")[1]
    # One for all of them, and those that earlier tests have left open.
    assert len(used - {ours}) <= 4


def test_the_prefix_without_a_slash_leads_to_the_page(front: Front) -> None:
    with front.client() as http:
        moved = http.get(f"{front.origin}/imagegen")
        assert moved.status_code in (301, 307)
        assert str(moved.url.join(moved.headers["location"])) == f"{front.origin}/imagegen/"


@pytest.mark.skipif(chromium() is None, reason=MISSING)
def test_the_page_and_the_reference_work_in_a_browser(front: Front, tmp_path: Path) -> None:
    with browsing() as browser:
        watched = Watched(browser, front.origin, ignore_https_errors=True)
        page = watched.page
        page.goto(f"{front.origin}/imagegen")
        page.get_by_role("button", name=re.compile("^Model: [^…]")).click()
        page.locator(".model-list label", has=page.get_by_text("quick", exact=True)).click()
        page.get_by_label("Prompt", exact=True).fill("below a prefix")
        page.get_by_role("button", name="Generate").click()
        made = page.get_by_role("region", name="Picture").get_by_alt_text("below a prefix")
        expect(made).to_be_visible()
        assert made.evaluate("image => image.naturalWidth") == 64
        page.get_by_label("Copy as code").click()
        page.get_by_role("tab", name="curl").click()
        code = page.locator("#snippet").inner_text()
        page.keyboard.press("Escape")
        page.get_by_role("link", name="API", exact=True).click()
        expect(page.locator("#operations-tasks-text2image")).to_be_visible()
        assert page.url == f"{front.origin}/imagegen/docs"
        watched.close()
        assert watched.wrongs == []
    trust = os.environ | {"CURL_CA_BUNDLE": str(front.folder / "localhost.pem")}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", code], cwd=tmp_path, env=trust, check=True)
    assert len(list(tmp_path.glob("*.png"))) == 1


# -- who may come in: a key is made here, so these come last -----------------------------------------------------------


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    """The key of alice. From now on the service is closed."""
    made = server.http.post("/keys", json={"name": "alice"})
    server.http.headers["X-API-Key"] = made.json()["key"]
    return str(made.json()["key"])


@needs_nginx
def test_basic_authentication_is_nginxs_and_the_key_has_its_own_header(
    server: Server, key: str, tmp_path: Path
) -> None:
    (tmp_path / "people").write_text("bob:{PLAIN}secret\n")
    front, file = Front(free_port(), tmp_path), {"/etc/nginx/imagegen.htpasswd": str(tmp_path / "people")}
    with nginx(tmp_path, "basic-auth.conf", front.port, port_of(server), **file), front.client() as http:
        refused = http.get("/tasks", headers={"X-API-Key": key})
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="imagegen"')
        assert http.get("/livez", auth=("bob", "secret")).status_code == 200
        # nginx does not pass the password on, so the service asks for a key and not for another password.
        assert http.get("/tasks", auth=("bob", "secret")).json()["code"] == "unauthorized"
        assert http.get("/tasks", auth=("bob", "secret"), headers={"X-API-Key": key}).status_code == 200


class _Authorizer(BaseHTTPRequestHandler):
    """Lets in who has the cookie, as oauth2-proxy does, and notes the paths that it was asked about."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers["X-Original-URI"])
        self.send_response(200 if self.headers["Cookie"] == "session=bob" else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@needs_nginx
def test_another_service_decides_and_the_key_has_its_own_header(server: Server, key: str, tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Authorizer) as authorizer:
        threading.Thread(target=authorizer.serve_forever).start()
        try:
            front, there = Front(free_port(), tmp_path), {"127.0.0.1:4180": f"127.0.0.1:{authorizer.server_port}"}
            with nginx(tmp_path, "forward-auth.conf", front.port, port_of(server), **there), front.client() as http:
                assert http.get("/tasks", headers={"X-API-Key": key}).status_code == 401
                http.headers["Cookie"] = "session=bob"
                assert http.get("/tasks").json()["code"] == "unauthorized"
                assert http.get("/tasks", headers={"X-API-Key": key}).status_code == 200
                asked = {"prompt": "x", "model": "quick"}
                assert http.post("/text2image", json=asked, headers={"X-API-Key": key}).status_code == 202
                assert set(_Authorizer.asked) == {"/imagegen/tasks", "/imagegen/text2image"}
        finally:
            authorizer.shutdown()


@needs_nginx
def test_the_command_line_works_through_a_proxy_below_a_prefix(server: Server, key: str, tmp_path: Path) -> None:
    front = Front(free_port(), tmp_path)
    with nginx(tmp_path, "imagegen.conf", front.port, port_of(server)):
        trust = os.environ | {"SSL_CERT_FILE": str(tmp_path / "localhost.pem"), "IMAGEGEN_KEY": key}
        command = ["run", "x", "--model", "quick", "--server", f"{front.origin}/imagegen", "-o", "x.png", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "imagegen", *command],
            cwd=tmp_path,
            env=trust,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["model"] == "quick"
        assert (tmp_path / "x.png").is_file()
