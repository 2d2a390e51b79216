"""The proxies of deploy/, started in front of a service, with their addresses and files replaced."""

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.server import PATIENCE_S

DEPLOY = Path(__file__).parents[1] / "deploy"

#: Debian keeps it out of the path of ordinary users.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CADDY = shutil.which("caddy")

#: Why their tests are skipped.
NO_NGINX = "there is no nginx: apt install nginx-light"
NO_CADDY = "there is no Caddy: apt install caddy"

_MAIN = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/imagegen.conf;
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for `localhost` that is signed by itself, and its key."""
    crt, key = folder / "localhost.pem", folder / "localhost.key"
    asked = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(crt)]
    subprocess.run([*asked, *names], check=True, capture_output=True)
    return crt, key


def example(name: str, replaced: Mapping[str, str]) -> str:
    """A file of deploy/ with texts replaced, each of which must be in it."""
    text = (DEPLOY / name).read_text()
    for old, new in replaced.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(folder: Path, name: str, port: int, upstream: int, **more: str) -> Iterator[None]:
    """nginx with an example of deploy/nginx on a port, in front of the port of a service. `more`: texts to replace."""
    assert NGINX is not None, NO_NGINX
    crt, key = certificate(folder)
    replaced = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "127.0.0.1:5050": f"127.0.0.1:{upstream}",
        "/etc/ssl/certs/img.example.com.pem": str(crt),
        "/etc/ssl/private/img.example.com.key": str(key),
    }
    (folder / "imagegen.conf").write_text(example(f"nginx/{name}", replaced | more))
    (folder / "nginx.conf").write_text(_MAIN.format(folder=folder))
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with _running(command, port):
        yield


@contextmanager
def caddy(folder: Path, port: int, upstream: int) -> Iterator[None]:
    """Caddy with the example of deploy/caddy on a port, in front of the port of a service."""
    assert CADDY is not None, NO_CADDY
    crt, key = certificate(folder)
    replaced = {
        "img.example.com {\n": f"https://localhost:{port} {{\n\ttls {crt} {key}\n",
        "127.0.0.1:5050": f"127.0.0.1:{upstream}",
    }
    options = "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n"
    (folder / "Caddyfile").write_text(options + example("caddy/Caddyfile", replaced))
    environment = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    command = [CADDY, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    with _running(command, port, environment):
        yield


@contextmanager
def _running(command: list[str], port: int, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    log = Path(command[-1]).parent / "proxy.log" if command[-1] != "stderr" else Path(command[2]) / "proxy.log"
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment) as process:
        try:
            _until_open(port, process, log)
            yield
        finally:
            process.terminate()


def _until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(log.read_text())


def trusting(folder: Path) -> ssl.SSLContext:
    """What a client trusts that knows the certificate in a folder."""
    return ssl.create_default_context(cafile=str(folder / "localhost.pem"))
