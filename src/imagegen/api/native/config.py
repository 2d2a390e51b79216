"""The configuration: its status, the global settings, and its versions. CatalogWriter makes all changes."""

from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, RootModel

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import Models, Writer
from imagegen.api.headers import headers
from imagegen.api.native.shared import RequestBody
from imagegen.api.problems import describe
from imagegen.api.security import MANAGE
from imagegen.catalog.catalog import AliasName, GlobalSettings, ModelId
from imagegen.catalog.changes import with_aliases, with_settings

router = APIRouter(prefix="/config", tags=["configuration"], route_class=BoundedRoute, dependencies=[MANAGE])

#: More versions than can be.
MAX_VERSION = 2**31 - 1

#: The codes with which a route that changes models.yaml may refuse.
WRITING = (
    "malformed_body",
    "invalid_request",
    "config_invalid",
    "config_read_only",
    "config_broken",
    "config_stale",
    "storage_failed",
    "storage_full",
)


async def _if_match(
    if_match: Annotated[
        str | None,
        Header(description="The `ETag` of an earlier answer: 412 if the configuration has changed since. Optional."),
    ] = None,
) -> frozenset[str] | None:
    """The ETags that the configuration may have; None: any."""
    if if_match is None or if_match.strip() == "*":
        return None
    return frozenset(tag.strip().strip('"') for tag in if_match.split(",") if not tag.strip().startswith("W/"))


IfMatch = Annotated[frozenset[str] | None, Depends(_if_match)]


def tag(response: Response, etag: str | None) -> None:
    """Set the `ETag` of an answer about the configuration."""
    if etag is not None:
        response.headers["ETag"] = f'"{etag}"'


class SettingsPatchBody(RootModel[dict[str, Any]]):
    """Fields of `global`; null resets one to its default."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"auto_unload_minutes": 5}]})


class AliasesBody(RootModel[dict[AliasName, ModelId | None]]):
    """Aliases with the ids of models; null removes one."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"gpt-image-1": "tiny"}]})


class RollbackBody(RequestBody):
    """The version to restore."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1}]})

    version: int = Field(ge=1, le=MAX_VERSION, strict=True, description="A version that `GET /config/versions` lists.")


class AliasesView(BaseModel):
    """Other names of models, which clients of other APIs send."""

    aliases: dict[str, str] = Field(
        description="The id of the model by its other name; `*`: every name that is neither an id nor an alias.",
        examples=[{"gpt-image-1": "tiny"}],
    )


class ConfigWritten(BaseModel):
    """The result of a change of the configuration."""

    message: str = Field(examples=["Version 3 is in force."])
    etag: str


class ConfigStatusView(BaseModel):
    """The status of the configuration."""

    file: str = Field(description="The file's name.", examples=["models.yaml"])
    read_only: str | None = Field(description="Why it cannot be edited over HTTP; null: it can.")
    etag: str | None = Field(description="The ETag of the configuration in force.")
    source: str = Field(
        description="The source of the configuration in force: `start`, `file`, `signal`, `rest`, `rollback`."
    )
    loaded_at: datetime = Field(description="When the configuration in force was loaded.")
    ok: bool = Field(description="False: the file is broken, and an older configuration is in force.")
    checked_at: datetime = Field(description="When the file was last read.")
    errors: list[str] = Field(description="The problems of the file: `file:line:column: problem, and the fix`.")
    waiting: bool = Field(description="Whether a newer configuration waits for the running task.")


class VersionView(BaseModel):
    """A version of the configuration."""

    version: int
    etag: str
    source: str = Field(description="`start`, `file`, `signal`, `rest`, `rollback`; `broken`: never in force.")
    created_at: datetime


class ConfigVersions(BaseModel):
    versions: list[VersionView]
    total: int


class VersionDiff(BaseModel):
    """The difference of two versions."""

    version: int
    against: int | None = Field(description="The other version; null: the empty file, if no older version is kept.")
    diff: str = Field(description="A unified diff; empty if nothing differs.")


@router.get(
    "/global", operation_id="get_settings", summary="The global settings", responses={200: {"headers": headers("ETag")}}
)
async def get_settings(models: Models, writer: Writer, response: Response) -> GlobalSettings:
    """The section `global` of models.yaml, with defaults."""
    tag(response, writer.etag)
    return models.catalog.settings


@router.patch(
    "/global",
    operation_id="patch_settings",
    summary="Change some global settings (merge patch)",
    responses={200: {"headers": headers("ETag")}, **describe(*WRITING)},
)
@router.put(
    "/global",
    operation_id="update_settings",
    summary="Change some global settings",
    responses={200: {"headers": headers("ETag")}, **describe(*WRITING)},
)
async def update_settings(
    body: SettingsPatchBody, response: Response, writer: Writer, models: Models, if_match: IfMatch
) -> GlobalSettings:
    """Replaces the given fields of the section and keeps the others. Null resets a field to its default.

    PUT and PATCH (RFC 7396) do the same.
    """
    tag(response, (await writer.edit(partial(with_settings, fields=body.root), if_match)).etag)
    return models.catalog.settings


@router.get(
    "/aliases",
    operation_id="get_aliases",
    summary="Other names of models",
    responses={200: {"headers": headers("ETag")}},
)
async def get_aliases(models: Models, writer: Writer, response: Response) -> AliasesView:
    """The section `aliases` of models.yaml."""
    tag(response, writer.etag)
    return AliasesView(aliases=dict(models.catalog.aliases))


@router.patch(
    "/aliases",
    operation_id="patch_aliases",
    summary="Change some aliases (merge patch)",
    responses={200: {"headers": headers("ETag")}, **describe(*WRITING)},
)
@router.put(
    "/aliases",
    operation_id="update_aliases",
    summary="Change some aliases",
    responses={200: {"headers": headers("ETag")}, **describe(*WRITING)},
)
async def update_aliases(
    fields: AliasesBody, response: Response, writer: Writer, models: Models, if_match: IfMatch
) -> AliasesView:
    """Replaces the given aliases and keeps the others. Null removes one. The change is in force at once.

    PUT and PATCH (RFC 7396) do the same.
    """
    tag(response, (await writer.edit(partial(with_aliases, fields=fields.root), if_match)).etag)
    return AliasesView(aliases=dict(models.catalog.aliases))


@router.get(
    "/status",
    operation_id="get_config_status",
    summary="Status of the configuration",
    responses={200: {"headers": headers("ETag")}},
)
async def get_config_status(writer: Writer, response: Response) -> ConfigStatusView:
    """Whether the file is valid, what is wrong with it, and whether it can be edited over HTTP.

    While the file is broken (`ok` is false), the previous configuration stays in force and the service stays ready.
    """
    status = await writer.status()
    tag(response, status.etag)
    return ConfigStatusView(**status.model_dump())


@router.get(
    "/versions",
    operation_id="list_config_versions",
    summary="All kept versions",
    responses={200: {"headers": headers("ETag")}},
)
async def list_config_versions(writer: Writer, response: Response) -> ConfigVersions:
    """The configurations that were in force, newest first. The newest hundred are kept."""
    tag(response, writer.etag)
    versions = [VersionView(**version.model_dump()) for version in await writer.versions()]
    return ConfigVersions(versions=versions, total=len(versions))


@router.get(
    "/versions/{version}/diff",
    operation_id="diff_config",
    summary="What a version changed",
    responses=describe("version_not_found"),
)
async def diff_config_version(
    version: Annotated[int, Path(ge=1, le=MAX_VERSION)],
    writer: Writer,
    against: Annotated[
        int | None, Query(ge=1, le=MAX_VERSION, description="The other version; default: the one before it.")
    ] = None,
) -> VersionDiff:
    """A unified diff of two versions."""
    other, text = await writer.difference(version, against)
    return VersionDiff(version=version, against=other or None, diff=text)


@router.post(
    "/rollback",
    operation_id="rollback_config",
    summary="Restore an older version",
    responses={
        200: {"headers": headers("ETag")},
        **describe("version_not_found", *(code for code in WRITING if code != "config_broken")),
    },
)
async def rollback_config(body: RollbackBody, response: Response, writer: Writer, if_match: IfMatch) -> ConfigWritten:
    """Writes the text of that version to the file, as a new version. It also repairs a broken or deleted file."""
    written = await writer.rollback(body.version, if_match)
    tag(response, written.etag)
    return ConfigWritten(message=f"Version {body.version} is in force.", etag=written.etag)
