"""Client: makes pictures with an imagegen service."""

import time
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_sse import EventSource

from imagegen_client import generated
from imagegen_client.errors import ImagegenError, TaskEnded, error_of
from imagegen_client.events import TaskEvent, is_final, task_event
from imagegen_client.generated.models import Image2ImageBody, TaskAccepted, TaskView, Text2ImageBody
from imagegen_client.pictures import Picture, base64_of

#: Seconds of silence after which a stream counts as dead. The service sends something every 15 seconds.
SILENCE_S = 45

#: Seconds between two tries, unless the service says how many. They double with each try.
FIRST_PAUSE_S = 0.5

#: The longest pause that is waited for.
LONGEST_PAUSE_S = 60

#: Answers that say: try again later.
LATER = (429, 503)


class Client:
    """A client of one service.

    `api` is the generated client, for the operations that have no method here:

        from imagegen_client.generated.api.models import list_models
        list_models.sync(client=client.api)
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:5050",
        key: str | None = None,
        *,
        timeout_s: float = 60,
        retries: int = 4,
    ) -> None:
        """`retries`: how often a request is tried again that did not arrive, or that the service refused for now."""
        self._retries = retries
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(timeout_s)
        self.api = generated.Client(url, headers=headers, timeout=timeout, follow_redirects=True)

    @property
    def _http(self) -> httpx.Client:
        return self.api.get_httpx_client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- tasks --------------------------------------------------------------------------------------------------------

    def run(self, prompt: str, *, image: Picture | None = None, mask: Picture | None = None, **fields: Any) -> bytes:
        """Make one picture and return its file. The arguments are those of `submit`.

        Raises ImagegenError if the request is refused, TaskEnded if the task fails or is cancelled.
        """
        return self.run_all(prompt, image=image, mask=mask, **fields)[0]

    def run_all(
        self, prompt: str, *, image: Picture | None = None, mask: Picture | None = None, **fields: Any
    ) -> list[bytes]:
        """Like `run`, for all pictures of a batch (`batch_size`)."""
        return self.images(self.wait(self.submit(prompt, image=image, mask=mask, **fields).task_id))

    def submit(
        self,
        prompt: str | Text2ImageBody | Image2ImageBody,
        *,
        image: Picture | None = None,
        mask: Picture | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> TaskAccepted:
        """Submit a task; it is on disk when this returns.

        `image`, `mask`: a file or its bytes; with `image` the task is image2image. `fields`: of Text2ImageBody or
        Image2ImageBody. Or give such a body instead of the prompt. A request that is tried again makes no second task.
        Raises ImagegenError.
        """
        body = prompt if not isinstance(prompt, str) else _body(prompt, image, mask, fields)
        path = "/image2image" if isinstance(body, Image2ImageBody) else "/text2image"
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return TaskAccepted.from_dict(self._send("POST", path, json=body.to_dict(), headers=headers).json())

    def task(self, task_id: str) -> TaskView:
        """The task as it is now. Raises ImagegenError."""
        return TaskView.from_dict(self._send("GET", f"/task/{task_id}").json())

    def wait(self, task_id: str) -> TaskView:
        """The completed task, once it is. Raises TaskEnded if it fails or is cancelled."""
        for _ in self.events(task_id):
            pass
        task = self.task(task_id)
        if task.status != "completed":
            raise TaskEnded(task)
        return task

    def cancel(self, task_id: str) -> TaskView:
        """Cancel a task: at once while it waits, after the present step while it runs. Raises ImagegenError."""
        return TaskView.from_dict(self._send("POST", f"/task/{task_id}/cancel", retried=False).json())

    def images(self, task: TaskView) -> list[bytes]:
        """The files of a task's pictures. Raises ImagegenError."""
        # Not by `image.url`, which may begin with the path prefix that the URL of the service has, too.
        return [self._send("GET", f"/images/{'/'.join(it.url.split('/')[-2:])}").content for it in task.images]

    def events(self, task_id: str, after: int = 0) -> Iterator[TaskEvent]:
        """The events of a task until it has ended, from the first one or those with an id above `after`.

        A stream that breaks off is continued where it was. Events of types that this version does not know are left
        out. Raises ImagegenError.
        """
        tries = 0
        while True:
            pause = None
            try:
                for event_id, event in self._stream(f"/task/{task_id}/events", after):
                    after, tries = event_id, 0
                    if event is not None:
                        yield event
                        if is_final(event):
                            return
            except httpx.TransportError:
                if tries >= self._retries:
                    raise
            except ImagegenError as error:
                pause = self._pause(error, tries)
            _sleep(tries, pause)
            tries += 1

    def _stream(self, path: str, after: int) -> Iterator[tuple[int, TaskEvent | None]]:
        """The id of each event with the event; None: one to skip."""
        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        timeout = httpx.Timeout(self._http.timeout.connect, read=SILENCE_S)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise error_of(response)
            for event in EventSource(response).iter_sse():
                if event.data:  # httpx-sse yields an event for a comment, too
                    yield int(event.id), task_event(event.json())

    # -- requests -----------------------------------------------------------------------------------------------------

    def _send(self, method: str, path: str, *, retried: bool = True, **request: Any) -> httpx.Response:
        """`retried`: whether a second request of this kind does no harm."""
        for tries in range(self._retries + 1):
            again = retried and tries < self._retries
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError:
                if not again:
                    raise
                _sleep(tries, None)
                continue
            if not response.is_error:
                return response
            error = error_of(response)
            if not again:
                raise error
            _sleep(tries, self._pause(error, tries))
        raise AssertionError  # the last round returns or raises

    def _pause(self, error: ImagegenError, tries: int) -> float | None:
        """Seconds to wait before the next try; None: the service did not say. Raises the error if there is none."""
        if error.status not in LATER or tries >= self._retries or (error.retry_after or 0) > LONGEST_PAUSE_S:
            raise error
        return error.retry_after


def _body(
    prompt: str, image: Picture | None, mask: Picture | None, fields: dict[str, Any]
) -> Text2ImageBody | Image2ImageBody:
    if image is None:
        if mask is not None:
            raise TypeError("mask needs image")
        return Text2ImageBody(prompt=prompt, **fields)
    masked: dict[str, Any] = {} if mask is None else {"mask": base64_of(mask)}
    return Image2ImageBody(prompt=prompt, image=base64_of(image), **masked, **fields)


def _sleep(tries: int, seconds: float | None) -> None:
    time.sleep(min(seconds if seconds is not None else FIRST_PAUSE_S * 2**tries, LONGEST_PAUSE_S))
