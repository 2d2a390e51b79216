"""Process settings, from IMAGEGEN_* variables and the command line. What concerns models is in models.yaml."""

import base64
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from platformdirs import user_data_path
from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyNetwork, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from imagegen.builtin import default_config
from imagegen.core.limits import MaxQueue, RetentionDays, RetentionGb, RetentionTasks


def _comma_separated(value: object) -> object:
    return [part.strip().lower() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _secret(secret: SecretStr) -> SecretStr:
    """As Standard Webhooks has them: `whsec_` and 24 to 64 bytes in base64."""
    text = secret.get_secret_value()
    try:
        size = len(base64.b64decode(text.removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not text.startswith("whsec_") or not 24 <= size <= 64:
        raise ValueError("must be whsec_ and 24 to 64 bytes in base64")
    return secret


def _host_patterns(hosts: frozenset[str]) -> frozenset[str]:
    from ssrfguard import Policy  # here: few commands need it

    return Policy(allowed_hosts=hosts).allowed_hosts


def _networks(networks: tuple[IPvAnyNetwork, ...]) -> tuple[IPvAnyNetwork, ...]:
    from ssrfguard import Policy

    Policy(allowed_networks=networks)  # refuses some that would let through more than they seem to
    return networks


def _separated_as_in_path(value: object) -> object:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


Port = Annotated[int, Field(ge=1, le=65_535)]
Delay = Annotated[float, Field(ge=0, le=604_800)]


class Settings(BaseSettings):
    """Fixed for the life of the process."""

    model_config = SettingsConfigDict(
        env_prefix="IMAGEGEN_", env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    #: 0 lets the system choose.
    port: int = Field(5050, ge=0, le=65_535)
    #: Names, beside the local ones, that callers may use for a service that listens on a local address only.
    allowed_hosts: Annotated[frozenset[str], NoDecode, BeforeValidator(_comma_separated)] = frozenset()
    #: models.yaml; default: the one that ships with imagegen.
    config: Path = Field(default_factory=default_config)
    #: Journal and images; default: where the platform keeps a user's data.
    data_dir: Path = Field(default_factory=lambda: user_data_path("imagegen"))
    #: What a relative `local_path` is relative to; default: `models` in the data directory.
    models_dir: Path | None = None
    #: Where code that `compile` made is kept for later starts; default: `compiled` in the data directory.
    compiled_dir: Path | None = None
    #: The only place that LoRA files are read from; default: `loras` in the models directory.
    loras_dir: Path | None = None
    #: Folders that a path given over HTTP must lie in, separated as in PATH; default: the models directory.
    model_roots: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_separated_as_in_path)] = ()
    #: `process` runs models in a worker process; `thread` in a thread of the service.
    isolation: Literal["process", "thread"] = "process"
    #: `auto`, `cpu`, `cuda` (the first card), `cuda:1` (the second one), or the UUID that `nvidia-smi -L` shows.
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?|GPU-[0-9A-Fa-f-]{4,36}|MIG-[0-9A-Za-z-]{4,50}(/\d{1,2}){0,2})$"
    )

    #: Tasks that may wait; one more is refused with 503.
    max_queue: MaxQueue = 1000
    max_batch_size: int = Field(8, ge=1, le=64)
    #: Pixels of one generated picture: 2048 x 2048.
    max_pixels: int = Field(4_194_304, ge=4096, le=67_108_864)
    #: Pixels of one input picture: 24 megapixels, what phones take.
    max_input_pixels: int = Field(24_000_000, ge=4096, le=178_956_970)
    #: Bytes of one request body: the longest prompts with room to spare.
    max_body_bytes: int = Field(1_048_576, ge=1024, le=268_435_456)
    #: Bytes of one with a picture in it: base64 of a 24 megapixel JPEG with room to spare.
    max_upload_bytes: int = Field(33_554_432, ge=1024, le=268_435_456)
    #: Days of service after which ended tasks and their files go; 0 keeps them.
    retention_days: RetentionDays = 7
    #: Ended tasks that are kept, and GiB of their files; beyond, the oldest go. 0 is no limit.
    retention_tasks: RetentionTasks = 0
    retention_gb: RetentionGb = 0
    #: Where finished pictures are kept: empty is the folder `images` in the data directory, else `s3://bucket/prefix`.
    store: str = Field("", pattern=r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]{1,254}(/[A-Za-z0-9._/-]{0,500})?)?$")
    #: How pictures in a bucket reach callers: `proxied` by the service, or by URLs `presigned` for `store_url_s`.
    store_urls: Literal["proxied", "presigned"] = "proxied"
    #: Seconds; S3 takes a week at most.
    store_url_s: float = Field(3600, ge=60, le=604_800)
    #: While the bucket cannot be reached, finished pictures `wait` on this machine, or their tasks `fail`.
    store_down: Literal["wait", "fail"] = "wait"
    #: Seconds that the running task gets to finish when the service is told to stop.
    drain_timeout_s: float = Field(30, ge=0, le=3600)
    #: Seconds that a load gets to end by itself once the task that wanted it was cancelled; then its worker is killed.
    cancel_grace_s: float = Field(5, ge=0, le=3600)
    #: Seconds after which a worker is killed that neither answers nor reads: while loading, and between two steps.
    load_timeout_s: float = Field(900, gt=0, le=86_400)
    step_timeout_s: float = Field(300, gt=0, le=86_400)
    #: `whsec_...`, the newest first; each signs every webhook. Without one webhooks are off.
    webhook_secrets: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_secret)], ...], NoDecode, BeforeValidator(_listed)
    ] = ()
    #: Names that webhooks may go to (`*.example.com` too); empty: any. Whatever the name, its address must be public.
    webhook_hosts: Annotated[
        frozenset[str], NoDecode, BeforeValidator(_comma_separated), AfterValidator(_host_patterns)
    ] = frozenset()
    #: Networks that are not public and that webhooks may go to all the same, as `10.1.0.0/16`.
    webhook_networks: Annotated[
        tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_networks)
    ] = ()
    webhook_ports: Annotated[frozenset[Port], NoDecode, BeforeValidator(_listed), Field(min_length=1)] = frozenset(
        {80, 443}
    )
    #: Whether webhooks may go over plain http.
    webhook_http: bool = False
    #: Seconds that one attempt may take.
    webhook_timeout_s: float = Field(15, ge=0.1, le=60)
    #: Seconds from one attempt to the next; after the last one a delivery is dead. As Standard Webhooks has it: 75 h.
    webhook_delays_s: Annotated[tuple[Delay, ...], NoDecode, BeforeValidator(_listed), Field(max_length=50)] = (
        5,
        300,
        1800,
        7200,
        18_000,
        36_000,
        50_400,
        72_000,
        86_400,
    )
    #: Seconds between two looks for idle models and expired tasks.
    housekeeping_s: float = Field(10, gt=0, le=3600)

    @model_validator(mode="after")
    def _urls_need_a_bucket(self) -> Self:
        if self.store_urls == "presigned" and not self.store:
            raise ValueError("IMAGEGEN_STORE_URLS=presigned needs IMAGEGEN_STORE=s3://bucket/prefix")
        return self

    @property
    def images_path(self) -> Path:
        """Where pictures are kept, or where they wait for the bucket."""
        return self.data_dir / ("spool" if self.store else "images")

    @property
    def journal_path(self) -> Path:
        return self.data_dir / "imagegen.sqlite3"

    @property
    def compiled_path(self) -> Path:
        """Where compiled code is kept for later starts."""
        return (self.compiled_dir or self.data_dir / "compiled").absolute()

    @property
    def models_path(self) -> Path:
        return self.models_dir or self.data_dir / "models"

    @property
    def root_paths(self) -> tuple[Path, ...]:
        return self.model_roots or (self.models_path,)

    @property
    def loras_path(self) -> Path:
        return self.loras_dir or self.models_path / "loras"
