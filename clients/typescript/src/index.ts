/**
 * The TypeScript client of imagegen: `await new Imagegen().run('a red circle')` is the bytes of a picture.
 *
 * All operations and types of the API are exported beside it, generated from its OpenAPI document.
 */

export { Imagegen, type ImagegenOptions, type Picture, type RunOptions } from './client.js';
export { ImagegenError, TaskEnded } from './errors.js';
export { InvalidSignature, verifyWebhook } from './webhooks.js';
export * from './generated/index.js';
