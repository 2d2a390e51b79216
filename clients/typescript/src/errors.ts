/** What can go wrong: a refused request, and a task that ends without pictures. */

import type { Problem, TaskView } from './generated/index.js';

/** The service refused a request. Each `code` has a page: `/docs/errors/CODE` of the service. */
export class ImagegenError extends Error {
  override readonly name = 'ImagegenError';

  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
    /** Seconds after which the same request may be accepted. */
    readonly retryAfter: number | undefined,
    /** The whole answer, if it was a problem. */
    readonly problem: Partial<Problem>,
  ) {
    super(`${code}: ${detail}`);
  }

  /** The error that an answer with a status of 400 or more is. */
  static of(response: Response, body: unknown): ImagegenError {
    const problem: Partial<Problem> = typeof body === 'object' && body !== null ? body : {};
    const seconds = Number.parseFloat(response.headers.get('Retry-After') ?? '');
    return new ImagegenError(
      response.status,
      problem.code ?? 'http_error',
      problem.detail ?? response.statusText,
      Number.isNaN(seconds) ? undefined : seconds,
      problem,
    );
  }
}

/** A task failed or was cancelled. */
export class TaskEnded extends Error {
  override readonly name = 'TaskEnded';
  readonly code: string;

  constructor(readonly task: TaskView) {
    const code = task.error_code ?? task.status;
    super(`${code}: ${task.error_message ?? 'the task was cancelled'}`);
    this.code = code;
  }
}
