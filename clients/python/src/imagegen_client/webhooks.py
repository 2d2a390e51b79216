"""Webhooks: verifies that the service sent them."""

import json
from collections.abc import Mapping, Sequence

from standardwebhooks import Webhook, WebhookVerificationError

from imagegen_client.generated.models import WebhookPayload

InvalidSignature = WebhookVerificationError


def verify_webhook(body: bytes | str, headers: Mapping[str, str], secrets: str | Sequence[str]) -> WebhookPayload:
    """The payload of a webhook that was signed with one of the secrets (`whsec_...`).

    `body`: as it arrived, not parsed and written again. A receiver can get a delivery twice: `webhook-id` tells.
    Raises InvalidSignature, also for a signature that is older than five minutes.
    """
    text = body.decode() if isinstance(body, bytes) else body
    lower = {name.lower(): value for name, value in headers.items()}
    known = [secrets] if isinstance(secrets, str) else list(secrets)
    failure = InvalidSignature("There is no secret.")
    for secret in known:
        try:
            Webhook(secret).verify(text, lower)
        except InvalidSignature as error:
            failure = error
        else:
            return WebhookPayload.from_dict(json.loads(text))
    raise failure
