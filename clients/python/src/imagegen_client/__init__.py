"""The Python client of imagegen: `Client("http://127.0.0.1:5050").run("a red circle")` returns the bytes of a picture.

`imagegen_client.generated` has all operations and models of the API, generated from its OpenAPI document.
"""

from imagegen_client.client import Client
from imagegen_client.errors import ImagegenError, TaskEnded
from imagegen_client.events import TaskEvent
from imagegen_client.pictures import Picture
from imagegen_client.webhooks import InvalidSignature, verify_webhook

__all__ = [
    "Client",
    "ImagegenError",
    "InvalidSignature",
    "Picture",
    "TaskEnded",
    "TaskEvent",
    "verify_webhook",
]
