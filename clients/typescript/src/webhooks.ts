/** Webhooks: verifies that the service sent them. */

import { Webhook, WebhookVerificationError } from 'standardwebhooks';

import type { WebhookPayload } from './generated/index.js';

export { WebhookVerificationError as InvalidSignature };

/**
 * The payload of a webhook that was signed with one of the secrets (`whsec_...`).
 *
 * `body`: as it arrived, not parsed and written again. A receiver can get a delivery twice: `webhook-id` tells.
 * Throws InvalidSignature, also for a signature that is older than five minutes.
 */
export function verifyWebhook(
  body: string | Uint8Array,
  headers: Headers | Record<string, string | string[] | undefined>,
  secrets: string | readonly string[],
): WebhookPayload {
  const text = typeof body === 'string' ? body : new TextDecoder().decode(body);
  const pairs = headers instanceof Headers ? [...headers] : Object.entries(headers);
  const lower = Object.fromEntries(pairs.map(([name, value]) => [name.toLowerCase(), String(value)]));
  let failure: unknown = new WebhookVerificationError('There is no secret.');
  for (const secret of typeof secrets === 'string' ? [secrets] : secrets) {
    try {
      return new Webhook(secret).verify(text, lower) as WebhookPayload;
    } catch (error) {
      failure = error;
    }
  }
  throw failure;
}
