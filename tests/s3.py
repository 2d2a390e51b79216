"""A local S3 server. The services under test see it as another machine, which can stop and return."""

import logging
import re
import uuid
from typing import Self

import httpx
from moto.server import ThreadedMotoServer

#: What must appear nowhere.
SECRET = "canarysecretcanarysecretcanary"


class Bucket:
    """A server with its own bucket, whose content is kept while the server is stopped."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._port = 0
        self.name = f"pictures-{uuid.uuid4().hex[:12]}"
        self.start()
        httpx.put(f"{self.url}/{self.name}").raise_for_status()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def address(self) -> str:
        """The value for IMAGEGEN_STORE."""
        return f"s3://{self.name}/some/prefix"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        """Stop the server: connections are refused."""
        self._server.stop()

    def names(self) -> list[str]:
        """The names of the pictures in it; the server must be running."""
        listed = httpx.get(f"{self.url}/{self.name}?list-type=2&prefix=some/prefix/").raise_for_status().text
        return re.findall(r"<Key>some/prefix/([^<]+)</Key>", listed)
