"""How the HTTP server is set up."""

from fastapi import FastAPI

from imagegen.api.connections import Bounds, Connections
from imagegen.server import http_config
from imagegen.settings import Settings

CONNECTIONS = Connections(Bounds(100, 50, 2**20), lambda: 0)


def test_idle_connections_stay_open_longer_than_those_of_proxies() -> None:
    assert http_config(FastAPI(), Settings(), CONNECTIONS).timeout_keep_alive == 75
    assert http_config(FastAPI(), Settings(keep_alive_s=9), CONNECTIONS).timeout_keep_alive == 9
