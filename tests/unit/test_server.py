"""How the HTTP server is set up."""

from fastapi import FastAPI

from imagegen.server import http_config
from imagegen.settings import Settings


def test_idle_connections_stay_open_longer_than_those_of_proxies() -> None:
    assert http_config(FastAPI(), Settings()).timeout_keep_alive == 75
    assert http_config(FastAPI(), Settings(keep_alive_s=9)).timeout_keep_alive == 9
