/** Imagegen: makes pictures with an imagegen service. */

import { ImagegenError, TaskEnded } from './errors.js';
import { type Client, createClient, createConfig } from './generated/client/index.js';
import {
  cancelTask,
  followTask,
  getImage,
  getTask,
  image2Image,
  text2Image,
  type Image2ImageBody,
  type TaskAccepted,
  type TaskStreamEvent,
  type TaskView,
  type Text2ImageBody,
} from './generated/index.js';

/** A picture: its bytes, or an object that has them, such as a `File`. */
export type Picture = Uint8Array | ArrayBuffer | Blob;

/** What a request may have beside its prompt. With `image` the task is image2image. */
export type RunOptions = Omit<Text2ImageBody, 'prompt' | 'aspect_ratio'> & {
  aspect_ratio?: Image2ImageBody['aspect_ratio'];
  strength?: number;
  image?: Picture;
  mask?: Picture;
};

export type ImagegenOptions = {
  /** Default: http://127.0.0.1:5050 */
  url?: string;
  key?: string;
  fetch?: typeof fetch;
  /** How often a request is tried again that did not arrive, or that the service refused for now. Default: 4 */
  retries?: number;
};

type Answer<Body> = { data?: Body; error?: unknown; response?: Response };

/** Milliseconds between two tries, unless the service says how many seconds. They double with each try. */
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 60_000;

/** Answers that say: try again later. */
const LATER = [429, 503];

/**
 * A client of one service.
 *
 * `api` is the generated client, for the operations that have no method here:
 *
 *     import { listModels } from 'imagegen-client';
 *     const { data } = await listModels({ client: imagegen.api });
 */
export class Imagegen {
  readonly api: Client;
  readonly #retries: number;

  constructor({ url = 'http://127.0.0.1:5050', key, fetch, retries = 4 }: ImagegenOptions = {}) {
    this.#retries = retries;
    this.api = createClient(createConfig({ baseUrl: url, auth: () => key, ...(fetch && { fetch }) }));
  }

  /**
   * Make one picture and return its file.
   *
   * Throws ImagegenError if the request is refused, TaskEnded if the task fails or is cancelled.
   */
  async run(prompt: string, options: RunOptions = {}): Promise<Uint8Array> {
    const [picture] = await this.runAll(prompt, options);
    return picture!;
  }

  /** Like `run`, for all pictures of a batch (`batch_size`). */
  async runAll(prompt: string, options: RunOptions = {}): Promise<Uint8Array[]> {
    const { task_id } = await this.submit(prompt, options);
    return this.images(await this.wait(task_id));
  }

  /**
   * Submit a task; it is on disk when this returns. A request that is tried again makes no second task.
   *
   * Throws ImagegenError.
   */
  async submit(prompt: string, { image, mask, ...fields }: RunOptions = {}, idempotencyKey?: string): Promise<TaskAccepted> {
    const options = { client: this.api, headers: { 'Idempotency-Key': idempotencyKey ?? crypto.randomUUID() } };
    if (image === undefined) {
      if (mask !== undefined) throw new TypeError('mask needs image');
      const body = { prompt, ...fields } as Text2ImageBody;
      return (await this.#send(() => text2Image({ ...options, body }))) as TaskAccepted;
    }
    const body: Image2ImageBody = { prompt, ...fields, image: await base64(image) };
    if (mask !== undefined) body.mask = await base64(mask);
    return (await this.#send(() => image2Image({ ...options, body }))) as TaskAccepted;
  }

  /** The task as it is now. Throws ImagegenError. */
  async task(taskId: string): Promise<TaskView> {
    return this.#send(() => getTask({ client: this.api, path: { task_id: taskId } }));
  }

  /** The completed task, once it is. Throws TaskEnded if it fails or is cancelled. */
  async wait(taskId: string): Promise<TaskView> {
    for await (const _ of this.events(taskId));
    const task = await this.task(taskId);
    if (task.status !== 'completed') throw new TaskEnded(task);
    return task;
  }

  /** Cancel a task: at once while it waits, after the present step while it runs. Throws ImagegenError. */
  async cancel(taskId: string): Promise<TaskView> {
    return this.#send(() => cancelTask({ client: this.api, path: { task_id: taskId } }), 0);
  }

  /** The files of a task's pictures. Throws ImagegenError. */
  async images(task: TaskView): Promise<Uint8Array[]> {
    const files = [];
    for (const { url } of task.images) {
      const [folder, file] = url.split('/').slice(-2) as [string, string];
      const picture = await this.#send(() => getImage({ client: this.api, path: { folder, file } }));
      files.push(new Uint8Array(await picture.arrayBuffer()));
    }
    return files;
  }

  /**
   * The events of a task until it has ended, from the first one or those with an id above `after`.
   *
   * A stream that breaks off is continued where it was. Throws ImagegenError.
   */
  async *events(taskId: string, after = 0): AsyncGenerator<TaskStreamEvent> {
    let last = after;
    for (let tries = 0; ; tries += 1) {
      await this.task(taskId); // throws for what the stream would only end for
      const { stream } = await followTask({
        client: this.api,
        path: { task_id: taskId },
        headers: { 'Last-Event-ID': last },
        sseMaxRetryAttempts: 1,
        onSseEvent: ({ id }) => {
          last = Number(id ?? last);
        },
      });
      for await (const event of stream as AsyncIterable<TaskStreamEvent>) {
        if (event.type === 'closed') break;
        tries = 0;
        yield event;
        if (event.type === 'completed' || event.type === 'failed' || event.type === 'cancelled') return;
      }
      if (tries >= this.#retries) throw new Error('the stream of events breaks off again and again');
      await pause(tries);
    }
  }

  async #send<Body>(request: () => Promise<Answer<Body>>, retries = this.#retries): Promise<Body> {
    for (let tries = 0; ; tries += 1) {
      const { data, error, response } = await request();
      if (response === undefined) {
        if (tries >= retries) throw error; // the service was not reached
        await pause(tries);
        continue;
      }
      if (response.ok) return data as Body;
      const refusal = ImagegenError.of(response, error);
      const seconds = refusal.retryAfter;
      if (tries >= retries || !LATER.includes(refusal.status) || (seconds ?? 0) * 1000 > LONGEST_PAUSE_MS) throw refusal;
      await pause(tries, seconds);
    }
  }
}

async function base64(picture: Picture): Promise<string> {
  const bytes = new Uint8Array(picture instanceof Blob ? await picture.arrayBuffer() : picture);
  let text = '';
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

function pause(tries: number, seconds?: number): Promise<void> {
  const milliseconds = Math.min(seconds === undefined ? FIRST_PAUSE_MS * 2 ** tries : seconds * 1000, LONGEST_PAUSE_MS);
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
