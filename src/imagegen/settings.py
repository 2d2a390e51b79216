"""Process settings, from IMAGEGEN_* variables and the command line. The settings of models are in models.yaml."""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyNetwork, model_validator
from pydantic_core import PydanticUseDefault
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from imagegen.builtin import default_config
from imagegen.core.limits import (
    MAX_PIXEL_STEPS,
    MaxPixelSteps,
    MaxQueue,
    RetentionDays,
    RetentionGb,
    RetentionOfPictures,
    RetentionTasks,
)
from imagegen.core.webhooks import WebhookSecret
from imagegen.core.wording import Form


def _comma_separated(value: object) -> object:
    return [part.strip().lower() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _host_patterns(hosts: frozenset[str]) -> frozenset[str]:
    from ssrfguard import Policy  # imported here, because few commands need it

    return Policy(allowed_hosts=hosts).allowed_hosts


def _networks(networks: tuple[IPvAnyNetwork, ...]) -> tuple[IPvAnyNetwork, ...]:
    from ssrfguard import Policy

    Policy(allowed_networks=networks)  # raises for networks that would allow more addresses than they show
    return networks


def _separated_as_in_path(value: object) -> object:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


#: What Kubernetes and `docker --link` set in the containers beside a Service called `imagegen`, or `imagegen-x`.
_LINKED_PORT = re.compile(r"(tcp|udp|sctp)://\S+")
_LINK = re.compile(
    r"IMAGEGEN(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)"
)


def _unless_linked(value: object) -> object:
    """The default instead of the address of a Service: IMAGEGEN_PORT=tcp://10.0.0.1:5050."""
    if isinstance(value, str) and _LINKED_PORT.fullmatch(value):
        raise PydanticUseDefault
    return value


Port = Annotated[int, Field(ge=1, le=65_535)]
Delay = Annotated[float, Field(ge=0, le=604_800)]


#: A path below which the service is: `/imagegen`, without a slash at its end.
PATH_PREFIX = r"(/[A-Za-z0-9._~-]{1,100}){0,9}"

#: The variables that commands read to find a service: IMAGEGEN_SERVER and IMAGEGEN_KEY.
CLIENT_VARIABLES = frozenset({"server", "key"})


class Settings(BaseSettings):
    """The settings of one process. They do not change while it runs."""

    model_config = SettingsConfigDict(
        env_prefix="IMAGEGEN_", env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    #: 0: the system chooses a free port.
    port: Annotated[int, Field(ge=0, le=65_535), BeforeValidator(_unless_linked)] = 5050
    #: A second port, for /livez and /readyz only. It answers however many connections the first one has. None: none.
    probe_port: Annotated[int | None, Field(ge=0, le=65_535), BeforeValidator(_unless_linked)] = None
    #: Host names that a service on a local address answers to, in addition to the local ones.
    allowed_hosts: Annotated[frozenset[str], NoDecode, BeforeValidator(_comma_separated)] = frozenset()
    #: The URL at which callers reach the service, as `https://example.com/imagegen`, for whole URLs in answers and for
    #: the OpenAPI document; empty: the one of each request.
    public_url: Annotated[
        str,
        Form(
            rf"(https?://[A-Za-z0-9.\[\]:-]{{1,255}}{PATH_PREFIX})?",
            "must be an http or https URL without a slash at its end",
        ),
    ] = ""
    #: The path below which callers reach the service, as `/imagegen`; empty: that of `public_url`.
    root_path: Annotated[str, Form(PATH_PREFIX, "must begin with a slash and not end with one, as /imagegen")] = ""
    #: Addresses and networks of proxies, as `10.1.0.0/16`, whose `X-Forwarded-*` headers count; empty: none.
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_listed)] = ()
    #: Seconds that an idle connection stays open. Longer than in proxies (nginx: 60): a proxy with a longer timeout
    #: could send a request on a connection that is being closed.
    keep_alive_s: int = Field(75, ge=1, le=3600)
    #: Origins of front ends, as `https://app.example.com`, whose scripts may use the service; empty: none.
    cors_origins: Annotated[
        frozenset[Annotated[str, Field(pattern=r"^https?://[a-z0-9.\[\]:-]{1,255}$")]],
        NoDecode,
        BeforeValidator(_comma_separated),
    ] = frozenset()
    #: Whether the log has the prompts of tasks.
    log_prompts: bool = False
    #: Whether a service without API keys may listen on an address that other machines reach.
    insecure: bool = False
    #: The name of a key with all scopes that the first start makes and prints, if there is no key; empty: none.
    first_key: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    #: A YAML or JSON file of API keys that the operator manages outside of imagegen. It is read at the start.
    keys_file: Path | None = None
    #: models.yaml; default: the one in the package.
    config: Path = Field(default_factory=default_config)
    #: The folder of the journal and the pictures; default: the platform's folder for user data.
    data_dir: Path = Field(default_factory=lambda: user_data_path("imagegen"))
    #: The folder that contains each relative `local_path`; default: `models` in the data directory.
    models_dir: Path | None = None
    #: The folder of the code that `compile` makes, which later starts use; default: `compiled` in the data directory.
    compiled_dir: Path | None = None
    #: The folder that contains all LoRA files; default: `loras` in the models directory.
    loras_dir: Path | None = None
    #: The folders below which every path given over HTTP must be, separated as in PATH; default: the models directory.
    model_roots: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_separated_as_in_path)] = ()
    #: `process`: models run in a worker process; `thread`: in a thread of the service.
    isolation: Literal["process", "thread"] = "process"
    #: `auto`, `cpu`, `cuda` (the first card), `cuda:1` (the second one), or the UUID that `nvidia-smi -L` shows.
    device: Annotated[
        str,
        Form(
            r"(auto|cpu|cuda(:[0-9]{1,2})?|GPU-[0-9A-Fa-f-]{4,36}|MIG-[0-9A-Za-z-]{4,50}(/[0-9]{1,2}){0,2})",
            "must be auto, cpu, cuda, cuda:N, or the UUID of a card (GPU-..., MIG-...) that `nvidia-smi -L` shows",
        ),
    ] = "auto"

    #: Tasks that may wait; further tasks are refused with 503.
    max_queue: MaxQueue = 1000
    #: Pictures of one task.
    max_batch_size: int = Field(10, ge=1, le=64)
    #: Pixels of one generated picture. The default is 2048 x 2048.
    max_pixels: int = Field(4_194_304, ge=4096, le=67_108_864)
    #: Pixels times steps times pictures of one task, until the model's times are measured. See `max_task_seconds`.
    max_pixel_steps: MaxPixelSteps = MAX_PIXEL_STEPS
    #: Pixels of one input picture. The default is the largest common size of phone pictures.
    max_input_pixels: int = Field(24_000_000, ge=4096, le=178_956_970)
    #: Bytes of a request body without pictures. The longest prompts need a small part of it.
    max_body_bytes: int = Field(1_048_576, ge=1024, le=268_435_456)
    #: Bytes of a request body with pictures. The default is enough for a JPEG of 24 megapixels in base64.
    max_upload_bytes: int = Field(33_554_432, ge=1024, le=268_435_456)
    #: Connections at once, in all and from one address; fewer if the process may open fewer files. Further connections
    #: are served /livez and /readyz only.
    max_connections: int = Field(4096, ge=16, le=60_000)
    max_connections_per_address: int = Field(2048, ge=1, le=60_000)
    #: Event streams at once, in all and of one key, or of one address without keys; further ones are refused with 503.
    max_event_streams: int = Field(2048, ge=1, le=60_000)
    max_event_streams_per_caller: int = Field(1024, ge=1, le=60_000)
    #: Bytes of bodies that are being received at once, beyond the first 64 KiB of each; further uploads get 503.
    max_uploading_bytes: int = Field(134_217_728, ge=1_048_576, le=17_179_869_184)
    #: Bytes of answers that callers have not taken, together. Beyond it, the address with the most of them loses its
    #: oldest connections.
    max_unsent_bytes: int = Field(268_435_456, ge=1_048_576, le=17_179_869_184)
    #: Days of service (not counting downtime) after which ended tasks and their files are deleted; 0 keeps them.
    retention_days: RetentionDays = 7
    #: Ended tasks that are kept, and GiB of their pictures. The oldest beyond them are deleted. 0: no limit.
    retention_tasks: RetentionTasks = 100_000
    retention_gb: RetentionOfPictures = "auto"
    #: GiB of the journal for ended tasks. Beyond it the input pictures of the oldest are deleted, then the oldest.
    retention_journal_gb: RetentionGb = 2
    #: MiB of the disk of the data directory that stay free: below it new tasks are refused with 507. 0: none.
    min_free_mb: int = Field(256, ge=0, le=1_000_000_000)
    #: The store of finished pictures: `s3://bucket/prefix`; empty: the folder `images` in the data directory.
    store: Annotated[
        str,
        Form(
            r"(s3://[A-Za-z0-9][A-Za-z0-9._-]{1,254}(/[A-Za-z0-9._/-]{0,500})?)?",
            "must be s3://bucket or s3://bucket/prefix, of letters, digits, '.', '_', '-' and, in the prefix, '/'",
        ),
    ] = ""
    #: How callers get pictures in a bucket: `proxied` by the service, or from `presigned` URLs.
    store_urls: Literal["proxied", "presigned"] = "proxied"
    #: Seconds that a presigned URL is valid. S3 allows a week at most.
    store_url_s: float = Field(3600, ge=60, le=604_800)
    #: While the bucket cannot be reached: `wait` keeps finished pictures on this machine, `fail` fails their tasks.
    store_down: Literal["wait", "fail"] = "wait"
    #: Seconds that the running task gets to finish during a drain.
    drain_timeout_s: float = Field(30, ge=0, le=3600)
    #: Seconds that a load may go on after its task was cancelled; then the worker is killed.
    cancel_grace_s: float = Field(5, ge=0, le=3600)
    #: Seconds after which a worker that neither answers nor reads is killed: during a load, and between two steps.
    load_timeout_s: float = Field(900, gt=0, le=86_400)
    step_timeout_s: float = Field(300, gt=0, le=86_400)
    #: `whsec_...`, the newest first. Every webhook has a signature for each of them. Empty: webhooks are off.
    webhook_secrets: Annotated[tuple[WebhookSecret, ...], NoDecode, BeforeValidator(_listed)] = ()
    #: Hosts that webhooks may be sent to (also `*.example.com`); empty: any host with a public address.
    webhook_hosts: Annotated[
        frozenset[str], NoDecode, BeforeValidator(_comma_separated), AfterValidator(_host_patterns)
    ] = frozenset()
    #: Networks, as `10.1.0.0/16`, that webhooks may be sent to although they are not public.
    webhook_networks: Annotated[
        tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_listed), AfterValidator(_networks)
    ] = ()
    webhook_ports: Annotated[frozenset[Port], NoDecode, BeforeValidator(_listed), Field(min_length=1)] = frozenset(
        {80, 443}
    )
    #: Whether webhooks may be sent over plain HTTP.
    webhook_http: bool = False
    #: Seconds that one attempt may take.
    webhook_timeout_s: float = Field(15, ge=0.1, le=60)
    #: Seconds between attempts; after the last one a delivery is dead. The default is that of Standard Webhooks, 75 h.
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
    #: Seconds between two rounds of housekeeping: idle models, expired tasks, writes that failed.
    housekeeping_s: float = Field(10, gt=0, le=3600)

    @model_validator(mode="after")
    def _uploading_holds_one_upload(self) -> Self:
        if self.max_uploading_bytes < self.max_upload_bytes:
            raise ValueError("IMAGEGEN_MAX_UPLOADING_BYTES must not be less than IMAGEGEN_MAX_UPLOAD_BYTES")
        return self

    @model_validator(mode="after")
    def _urls_need_a_bucket(self) -> Self:
        if self.store_urls == "presigned" and not self.store:
            raise ValueError("IMAGEGEN_STORE_URLS=presigned needs IMAGEGEN_STORE=s3://bucket/prefix")
        return self

    @model_validator(mode="after")
    def _one_prefix(self) -> Self:
        if self.root_path and self.public_url and self.root_path != urlsplit(self.public_url).path:
            raise ValueError("IMAGEGEN_ROOT_PATH must be the path of IMAGEGEN_PUBLIC_URL, if both are set")
        return self

    @classmethod
    def linked_variables(cls, environment: Mapping[str, str]) -> list[str]:
        """The variables with the name of a Service of Kubernetes. They are ignored."""
        return sorted(
            name
            for name, value in environment.items()
            if _LINK.fullmatch(name)
            or (re.fullmatch(r"IMAGEGEN(_[A-Z0-9_]+)?_PORT", name) and _LINKED_PORT.fullmatch(value))
        )

    @classmethod
    def unknown_variables(cls, environment: Mapping[str, str]) -> dict[str, str]:
        """The names that begin with IMAGEGEN_ and are not settings, each with `; did you mean 'IMAGEGEN_X'?` or ''."""
        hints = {}
        known = cls.model_fields.keys() | CLIENT_VARIABLES
        for name in sorted(environment.keys() - cls.linked_variables(environment)):
            field = name.lower().removeprefix("imagegen_")
            if name.lower().startswith("imagegen_") and field not in known:
                close = get_close_matches(field, cls.model_fields, n=1)
                hints[name] = f"; did you mean 'IMAGEGEN_{close[0].upper()}'?" if close else ""
        return hints

    @property
    def prefix(self) -> str:
        """The path below which callers reach the service: `/imagegen`; empty: the root, or what a proxy says."""
        return self.root_path or urlsplit(self.public_url).path

    @property
    def images_path(self) -> Path:
        """The folder of pictures; with a bucket, the spool."""
        return self.data_dir / ("spool" if self.store else "images")

    @property
    def journal_path(self) -> Path:
        return self.data_dir / "imagegen.sqlite3"

    @property
    def compiled_path(self) -> Path:
        """Where compiled code is kept for later starts."""
        return (self.compiled_dir or self.data_dir / "compiled").absolute()

    @property
    def temporary_path(self) -> Path:
        """Where the worker process writes temporary files."""
        return (self.data_dir / "tmp").absolute()

    @property
    def models_path(self) -> Path:
        return self.models_dir or self.data_dir / "models"

    @property
    def root_paths(self) -> tuple[Path, ...]:
        return self.model_roots or (self.models_path,)

    @property
    def loras_path(self) -> Path:
        return self.loras_dir or self.models_path / "loras"
