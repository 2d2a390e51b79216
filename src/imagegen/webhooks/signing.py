"""Signer: the three headers that authenticate a delivery (Standard Webhooks 1.0)."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import SecretStr
from standardwebhooks import Webhook


class Signer:
    """Signs with every secret, so that receivers can rotate secrets when they like."""

    def __init__(self, secrets: Sequence[SecretStr]) -> None:
        self._keys = [Webhook(secret.get_secret_value()) for secret in secrets]

    def headers(self, delivery_id: str, at: datetime, body: str) -> dict[str, str]:
        """The headers of an attempt. `at` is its time, because receivers refuse signatures that are minutes old."""
        return {
            "webhook-id": delivery_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(key.sign(delivery_id, at, body) for key in self._keys),
        }
