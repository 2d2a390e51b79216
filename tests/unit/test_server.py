"""How the HTTP server is set up."""

import resource

import pytest
from fastapi import FastAPI

from imagegen.api.connections import Bounds, Connections
from imagegen.server import KEPT_FILES, bounds_of, http_config
from imagegen.settings import Settings

CONNECTIONS = Connections(Bounds(100, 50, 2**20), lambda: 0)


def test_idle_connections_stay_open_longer_than_those_of_proxies() -> None:
    assert http_config(FastAPI(), Settings(), CONNECTIONS).timeout_keep_alive == 75
    assert http_config(FastAPI(), Settings(keep_alive_s=9), CONNECTIONS).timeout_keep_alive == 9


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised"),
    [
        (1024, 1024, 1024 - KEPT_FILES, None),
        (1024, 2000, 2000 - KEPT_FILES, (2000, 2000)),
        (1024, resource.RLIM_INFINITY, 4096, (65_536, resource.RLIM_INFINITY)),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, None),
        (64, 64, 16, None),
    ],
)
def test_connections_leave_descriptors_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, connections: int, raised: tuple[int, int] | None
) -> None:
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: limits.append(to))
    bounds = bounds_of(Settings())
    assert bounds.connections == connections
    assert bounds.per_address < connections  # one address leaves some for the others
    assert limits == ([raised] if raised else [])
