"""Asks a running service how it is, for health checks of containers.

It imports the standard library alone: a container does this every few seconds, and the imports of the whole command
take twenty times the processor time of the question.
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import NamedTuple
from urllib.parse import urlsplit

#: What is asked: whether the service accepts tasks, or only whether it answers.
READY, LIVE = "/readyz", "/livez"

#: Seconds without a byte after which the service counts as unreachable.
TIMEOUT_S = 5.0

#: The exit code of a service that is not well. Docker reserves 2 and the others.
NOT_WELL = 1

#: Addresses to listen on that mean all addresses, and the one to ask there.
_ALL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}

_MOST_BYTES = 65_536

#: Characters of a reason.
_MOST_SAID = 500

#: The user and password of a URL, which the log of a container must not have.
_USER = re.compile(r"[^\s/]*@")


class Answer(NamedTuple):
    """What a service says about itself."""

    well: bool
    says: str


def address(environment: Mapping[str, str]) -> str:
    """The URL of the service that these variables configure, or that IMAGEGEN_SERVER names.

    A port for probes is preferred, because it answers however many connections the other one has.
    """
    given = {name.upper(): value for name, value in environment.items() if value}
    if server := given.get("IMAGEGEN_SERVER"):
        return server
    host = given.get("IMAGEGEN_HOST", "127.0.0.1")
    host = _ALL_ADDRESSES.get(host, host)
    ports = (given.get(name, "") for name in ("IMAGEGEN_PROBE_PORT", "IMAGEGEN_PORT"))
    # Not a number: what Kubernetes sets for a Service of this name, which settings.py ignores as well.
    port = next((it for it in ports if it.isdecimal()), "5050")
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ask(url: str, path: str = READY, timeout_s: float = TIMEOUT_S) -> Answer:
    """Ask the service at `url`. Redirects are not followed."""
    shown = _USER.sub("", url)
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return Answer(False, f"{shown} is not an http or https URL")
    if host is None or scheme not in ("http", "https"):
        return Answer(False, f"{shown} is not an http or https URL")
    if port == 0:
        return Answer(False, "the port is 0: the system has chosen one that is not known here; name it in --server")
    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    try:
        connection = kind(host, port, timeout=timeout_s)
    except HTTPException:  # a space in the name
        return Answer(False, f"{shown} is not an http or https URL")
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}{path}")
        response = connection.getresponse()
        body = response.read(_MOST_BYTES)
    except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: no name of a host is like this
        return Answer(False, f"cannot reach the service at {shown}: {str(error) or type(error).__name__}")
    finally:
        connection.close()
    if response.status == 200:
        return Answer(True, "ready" if path == READY else "alive")
    return Answer(False, _refusal(response.status, body))


def _refusal(status: int, body: bytes) -> str:
    try:
        told = json.loads(body)
        text = f"{told['code']}: {told['detail']}"[:_MOST_SAID]
        return "".join(it if it.isprintable() else " " for it in text)  # one line, and nothing that a terminal obeys
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"the service answered {status}"


def main(url: str | None = None, path: str = READY, timeout_s: float = TIMEOUT_S) -> int:
    """Ask, print the answer in one line, and return the exit code. `url`: None: the one of the environment."""
    answer = ask(url or address(os.environ), path, timeout_s)
    (sys.stdout if answer.well else sys.stderr).write(f"{answer.says}\n")
    return 0 if answer.well else NOT_WELL
