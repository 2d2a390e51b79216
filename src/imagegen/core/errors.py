"""Errors by stable code: those that answer a request, and the codes that a failed task ends with."""

import inspect
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar

from imagegen.core.keys import LimitState


class ImagegenError(Exception):
    """The service could not do this."""

    # The docstring of a subclass is its default message; messages reach callers, so they hold no path and no secret.
    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str | None = None, *, retry_after: int | None = None) -> None:
        """`retry_after`: whole seconds after which asking again makes sense."""
        self.detail = detail or inspect.cleandoc(type(self).__doc__ or "")
        self.retry_after = retry_after
        super().__init__(self.detail)


class InvalidRequest(ImagegenError):
    """The request does not have the documented form."""

    code = "invalid_request"


class InvalidImage(ImagegenError):
    """The image is not a readable PNG, JPEG, WebP, AVIF, GIF, BMP or TIFF picture in base64."""

    code = "invalid_image"


class ImageTooLarge(ImagegenError):
    """The image has more pixels than this service takes."""

    code = "image_too_large"


class SizeTooLarge(ImagegenError):
    """The requested picture has more pixels than this service makes."""

    code = "size_too_large"


class DoesNotFit(ImagegenError):
    """The model, or a picture of this size, needs more memory than the device has."""

    code = "does_not_fit"


class TaskTooLong(ImagegenError):
    """The task would occupy the device for longer than the service allows."""

    code = "task_too_long"


class UnsupportedCapability(ImagegenError):
    """The model cannot do this."""

    code = "unsupported_capability"


class ModelNotFound(ImagegenError):
    """There is no model with this id; GET /models lists them."""

    code = "model_not_found"


class ModelExists(ImagegenError):
    """There is a model with this id already; PUT /models/{id} changes it."""

    code = "model_exists"


class PathNotAllowed(ImagegenError):
    """A path given over HTTP must be a folder below one of the model roots, and never a URL."""

    code = "path_not_allowed"


class ConfigInvalid(ImagegenError):
    """The configuration would not be valid; nothing was changed."""

    code = "config_invalid"

    def __init__(self, detail: str | None = None, *, problems: Sequence[tuple[str, str]] = ()) -> None:
        """`problems`: every problem, as its place (`models.a.steps`) and its description."""
        super().__init__(detail)
        self.problems = tuple(problems)


class ConfigBroken(ImagegenError):
    """The configuration file was edited by hand and is broken; GET /config/status says where. Repair it first."""

    code = "config_broken"


class ConfigReadOnly(ImagegenError):
    """The configuration file cannot be written to; it is edited by hand."""

    code = "config_read_only"


class ConfigStale(ImagegenError):
    """The configuration has changed since the version that If-Match names; read it again."""

    code = "config_stale"


class VersionNotFound(ImagegenError):
    """There is no such version of the configuration; GET /config/versions lists them."""

    code = "version_not_found"


class NoRepository(ImagegenError):
    """The model's entry names no repository on the hub to pull weights from."""

    code = "no_repository"


class WeightsHere(ImagegenError):
    """The model's weights are already on this machine."""

    code = "weights_here"


class NotPulling(ImagegenError):
    """The model's weights are not being pulled."""

    code = "not_pulling"


class LoraNotFound(ImagegenError):
    """There is no such LoRA: it must be a .safetensors file below the LoRA directory."""

    code = "lora_not_found"


class TaskNotFound(ImagegenError):
    """There is no task with this id."""

    code = "task_not_found"


class TaskFinished(ImagegenError):
    """The task has already ended and cannot be cancelled."""

    code = "task_finished"


class WasCancelled(ImagegenError):
    """The task was cancelled before it made its pictures."""

    code = "task_cancelled"


class TaskNotFinished(ImagegenError):
    """The task has not ended; cancel it first."""

    code = "task_not_finished"


class NoReceipt(ImagegenError):
    """The task has no receipt: it made no pictures, or an older imagegen made them."""

    code = "no_receipt"


class NoInputs(ImagegenError):
    """The input pictures of the task are not kept any more; send them again, with the request of its receipt."""

    code = "no_inputs"


class KeyReused(ImagegenError):
    """The Idempotency-Key was used for another request; take a new one."""

    code = "idempotency_key_reused"


class ImageNotFound(ImagegenError):
    """There is no such image."""

    code = "image_not_found"


class WebhooksOff(ImagegenError):
    """Webhooks are off on this service; its operator turns them on with IMAGEGEN_WEBHOOK_SECRETS."""

    code = "webhooks_off"


class UrlNotAllowed(ImagegenError):
    """This service does not send to this URL."""

    code = "url_not_allowed"


class DeliveryNotFound(ImagegenError):
    """There is no delivery with this id."""

    code = "delivery_not_found"


class Unauthorized(ImagegenError):
    """This needs a valid API key: `Authorization: Bearer ig_...` or `X-API-Key: ig_...`."""

    code = "unauthorized"


class Forbidden(ImagegenError):
    """The API key does not allow this."""

    code = "forbidden"


class KeysFileInvalid(ImagegenError):
    """The file of IMAGEGEN_KEYS_FILE cannot be used."""

    code = "keys_file_invalid"


class NotProtected(ImagegenError):
    """Other machines reach this address, and there is no API key to protect it."""

    code = "not_protected"


class LimitReached(ImagegenError):
    """The API key has reached a limit; GET /keys/me shows what is left."""

    code = "limit_reached"

    def __init__(
        self, detail: str | None = None, *, limit: LimitState | None = None, retry_after: int | None = None
    ) -> None:
        """`limit`: the limit that is reached."""
        if limit is not None:
            per = {None: "", 60: " a minute"}.get(limit.window_s, " a day")
            detail = f"The API key has reached its limit '{limit.name}' of {limit.quota:g}{per}; see GET /keys/me."
            retry_after = limit.reset_s if retry_after is None else retry_after
        super().__init__(detail, retry_after=retry_after)
        self.limit = limit


class KeyNotFound(ImagegenError):
    """There is no API key with this name."""

    code = "key_not_found"


class KeyExists(ImagegenError):
    """There is, or was, an API key with this name."""

    code = "key_exists"


class QueueFull(ImagegenError):
    """The queue is full."""

    code = "queue_full"


class ModelQuarantined(ImagegenError):
    """The model has killed its worker twice in a row; POST /models/{id}/load tries it again."""

    code = "model_quarantined"


class ModelBusy(ImagegenError):
    """The model is running a task."""

    code = "model_busy"


class LoadFailed(ImagegenError):
    """The model could not be loaded."""

    code = "load_failed"


class TooManyUploads(ImagegenError):
    """Too many pictures are being read at once; try again soon."""

    code = "too_many_uploads"


class TooManyStreams(ImagegenError):
    """There are too many event streams; close some, or poll the task."""

    code = "too_many_streams"


class Draining(ImagegenError):
    """The service is stopping and accepts no new tasks."""

    code = "draining"


class StorageFull(ImagegenError):
    """The disk is full; nothing was accepted."""

    code = "storage_full"


class StorageFailed(ImagegenError):
    """The disk refused to store this; nothing was accepted."""

    code = "storage_failed"


class JournalLost(StorageFailed):
    """The journal was removed, or its disk failed. It is unknown what was stored; the service stops."""

    code = "journal_lost"


class SearchTooLong(ImagegenError):
    """The search took too long. Search for a longer text, or narrow it by status, model or time."""

    code = "search_too_long"


class EncodingFailed(ImagegenError):
    """The pictures cannot be written in this format."""

    code = "encoding_failed"


class StoreUnreachable(StorageFailed):
    """The store of pictures cannot be reached, or refuses."""

    code = "store_unreachable"


class StoreMisconfigured(ImagegenError):
    """The settings of the store of pictures cannot be used."""

    code = "store_misconfigured"


class DeviceFault(ImagegenError):
    """The GPU context is broken until this process exits; it exits so that a new one can take over."""

    code = "device_fault"


class DataDirUnusable(ImagegenError):
    """The data directory cannot be written to."""

    code = "data_dir_unusable"


class BackupFailed(ImagegenError):
    """The backup cannot be made or restored."""

    code = "backup_failed"


class BackupInvalid(ImagegenError):
    """This is not a whole backup."""

    code = "backup_invalid"


class JournalDamaged(ImagegenError):
    """The journal is damaged."""

    code = "journal_damaged"


class DataDirInUse(ImagegenError):
    """Another instance uses this data directory."""

    code = "data_dir_in_use"


class FailureCode(StrEnum):
    """Why a task ended as failed, or a model could not be loaded."""

    GENERATION_FAILED = "generation_failed"
    LOAD_FAILED = "load_failed"
    WEIGHTS_MISSING = "weights_missing"
    WEIGHTS_REFUSED = "weights_refused"
    WEIGHTS_UNREADABLE = "weights_unreadable"
    WEIGHTS_CORRUPT = "weights_corrupt"
    ENGINE_MISSING = "engine_missing"
    IMPORT_FAILED = "import_failed"
    UNSUPPORTED_DEVICE = "unsupported_device"
    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE_FAULT = "device_fault"
    WORKER_CRASHED = "worker_crashed"
    WORKER_HUNG = "worker_hung"
    LORA_NOT_FOUND = "lora_not_found"
    LORA_REFUSED = "lora_refused"
    INTERRUPTED = "interrupted"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    MODEL_REMOVED = "model_removed"
    MODEL_QUARANTINED = "model_quarantined"
    ENCODING_FAILED = "encoding_failed"
    STORAGE_FULL = "storage_full"
    STORAGE_FAILED = "storage_failed"
    HUB_GATED = "hub_gated"
    HUB_UNAUTHORIZED = "hub_unauthorized"
    HUB_NOT_FOUND = "hub_not_found"
    HUB_RATE_LIMITED = "hub_rate_limited"
    HUB_UNREACHABLE = "hub_unreachable"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    PULL_CANCELLED = "pull_cancelled"
    PULL_CRASHED = "pull_crashed"


class EngineError(ImagegenError):
    """The engine knows what is wrong; the task or the load ends with this code and message."""

    failure: ClassVar[FailureCode] = FailureCode.GENERATION_FAILED


class WeightsMissing(EngineError):
    """The model's weights are not on this machine."""

    failure = FailureCode.WEIGHTS_MISSING


class WeightsUnreadable(EngineError):
    """The system does not let imagegen read the model's files."""

    failure = FailureCode.WEIGHTS_UNREADABLE


class WeightsRefused(EngineError):
    """The model's files are not of a kind that is safe to load."""

    failure = FailureCode.WEIGHTS_REFUSED


class WeightsCorrupt(EngineError):
    """The model's files are damaged or do not fit together."""

    failure = FailureCode.WEIGHTS_CORRUPT


class EngineMissing(EngineError):
    """A library that this family needs is not installed."""

    failure = FailureCode.ENGINE_MISSING


class ImportFailed(EngineError):
    """A library that is installed cannot be imported."""

    failure = FailureCode.IMPORT_FAILED


class UnsupportedDevice(EngineError):
    """This family does not run on this device."""

    failure = FailureCode.UNSUPPORTED_DEVICE


class LoraRefused(EngineError):
    """The LoRA file does not fit this model."""

    failure = FailureCode.LORA_REFUSED


class NotFinite(EngineError):
    """The model computed values that are not finite (NaN or infinity), so there is no picture."""

    failure = FailureCode.NOT_FINITE
