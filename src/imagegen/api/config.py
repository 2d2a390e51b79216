"""The configuration over HTTP: entries, the global settings, versions. CatalogWriter makes all changes."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Response

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import EffectiveSettings, Models, Writer
from imagegen.api.problems import describe
from imagegen.api.schemas import (
    ConfigStatusView,
    ConfigVersions,
    ConfigWritten,
    ModelWritten,
    NewModelBody,
    RollbackBody,
    VersionDiff,
    VersionView,
)
from imagegen.api.views import tag
from imagegen.catalog.catalog import GlobalSettings
from imagegen.catalog.changes import Roots, with_changed_model, with_model, with_settings, without_model
from imagegen.core.errors import ConfigInvalid
from imagegen.loaders import SPECS

router = APIRouter(route_class=BoundedRoute)

_WRITING = (
    "malformed_body",
    "invalid_request",
    "config_invalid",
    "config_read_only",
    "config_broken",
    "config_stale",
    "storage_failed",
    "storage_full",
)


async def _roots(settings: EffectiveSettings) -> Roots:
    return Roots(settings.models_path, settings.root_paths)


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


AllowedRoots = Annotated[Roots, Depends(_roots)]
IfMatch = Annotated[frozenset[str] | None, Depends(_if_match)]
Fields = Annotated[
    dict[str, Any],
    Body(description="Fields of the entry; null removes one.", examples=[{"steps": 8, "description": "Faster."}]),
]
SettingsFields = Annotated[
    dict[str, Any],
    Body(description="Fields of `global`; null removes one.", examples=[{"auto_unload_minutes": 5}]),
]


@router.post(
    "/models",
    status_code=201,
    tags=["models"],
    operation_id="create_model",
    summary="Add a model",
    responses=describe("model_exists", "path_not_allowed", *_WRITING),
)
async def create_model(
    body: NewModelBody, response: Response, writer: Writer, roots: AllowedRoots, if_match: IfMatch
) -> ModelWritten:
    """Appends an entry to models.yaml. The model can be used at once. The body may have every field of an entry."""
    fields = body.model_extra or {}
    edit = partial(with_model, model_id=body.model_id, fields=fields, families=SPECS, roots=roots)
    written = await writer.edit(edit, if_match)
    tag(response, written.etag)
    response.headers["Location"] = f"/models/{body.model_id}"
    return ModelWritten(message=f"'{body.model_id}' was added.", model_id=body.model_id)


@router.patch(
    "/models/{model_id}",
    tags=["models"],
    operation_id="patch_model",
    summary="Change some fields of a model (merge patch)",
    responses=describe("model_not_found", "path_not_allowed", *_WRITING),
)
@router.put(
    "/models/{model_id}",
    tags=["models"],
    operation_id="update_model",
    summary="Change some fields of a model",
    responses=describe("model_not_found", "path_not_allowed", *_WRITING),
)
async def update_model(
    model_id: str, fields: Fields, response: Response, writer: Writer, roots: AllowedRoots, if_match: IfMatch
) -> ModelWritten:
    """Replaces the given fields of the entry and keeps the others. Null resets a field to its default.

    A change that affects how the model is loaded waits for the running task, and the model is unloaded. Any other
    change is in force at once. PUT, for clients of the original API, and PATCH (RFC 7396,
    `application/merge-patch+json` or `application/json`) do the same.
    """
    if fields.pop("model_id", model_id) != model_id:
        raise ConfigInvalid("model_id: the id of a model cannot be changed.")
    edit = partial(with_changed_model, model_id=model_id, fields=fields, families=SPECS, roots=roots)
    tag(response, (await writer.edit(edit, if_match)).etag)
    return ModelWritten(message=f"'{model_id}' was changed.", model_id=model_id)


@router.delete(
    "/models/{model_id}",
    tags=["models"],
    operation_id="delete_model",
    summary="Remove a model",
    responses=describe("model_not_found", *_WRITING),
)
async def delete_model(model_id: str, response: Response, writer: Writer, if_match: IfMatch) -> ModelWritten:
    """Removes the entry from models.yaml. A running task of the model goes on; waiting ones fail (`model_removed`).

    The model that `default_model` names cannot be removed, nor the last model. No weights are deleted.
    """
    tag(response, (await writer.edit(partial(without_model, model_id=model_id), if_match)).etag)
    return ModelWritten(message=f"'{model_id}' was removed.", model_id=model_id)


@router.get("/config/global", tags=["configuration"], operation_id="get_settings", summary="The global settings")
async def get_settings(models: Models, writer: Writer, response: Response) -> GlobalSettings:
    """The section `global` of models.yaml, with defaults."""
    tag(response, writer.etag)
    return models.catalog.settings


@router.patch(
    "/config/global",
    tags=["configuration"],
    operation_id="patch_settings",
    summary="Change some global settings (merge patch)",
    responses=describe(*_WRITING),
)
@router.put(
    "/config/global",
    tags=["configuration"],
    operation_id="update_settings",
    summary="Change some global settings",
    responses=describe(*_WRITING),
)
async def update_settings(
    fields: SettingsFields, response: Response, writer: Writer, models: Models, if_match: IfMatch
) -> GlobalSettings:
    """Replaces the given fields of the section and keeps the others. Null resets a field to its default.

    PUT and PATCH (RFC 7396) do the same.
    """
    tag(response, (await writer.edit(partial(with_settings, fields=fields), if_match)).etag)
    return models.catalog.settings


@router.get(
    "/config/status", tags=["configuration"], operation_id="get_config_status", summary="Status of the configuration"
)
async def get_config_status(writer: Writer, response: Response) -> ConfigStatusView:
    """Whether the file is valid, what is wrong with it, and whether it can be edited over HTTP.

    While the file is broken (`ok` is false), the previous configuration stays in force and the service stays ready.
    """
    status = await writer.status()
    tag(response, status.etag)
    return ConfigStatusView(**status.model_dump())


@router.get(
    "/config/versions", tags=["configuration"], operation_id="list_config_versions", summary="All kept versions"
)
async def list_config_versions(writer: Writer, response: Response) -> ConfigVersions:
    """The configurations that were in force, newest first. The newest hundred are kept."""
    tag(response, writer.etag)
    versions = [VersionView(**version.model_dump()) for version in await writer.versions()]
    return ConfigVersions(versions=versions, total=len(versions))


@router.get(
    "/config/versions/{version}/diff",
    tags=["configuration"],
    operation_id="diff_config",
    summary="What a version changed",
    responses=describe("version_not_found"),
)
async def diff_config_version(
    version: Annotated[int, Path(ge=1)],
    writer: Writer,
    against: Annotated[int | None, Query(ge=1, description="The other version; default: the one before it.")] = None,
) -> VersionDiff:
    """A unified diff of two versions."""
    other, text = await writer.difference(version, against)
    return VersionDiff(version=version, against=other or None, diff=text)


@router.post(
    "/config/rollback",
    tags=["configuration"],
    operation_id="rollback_config",
    summary="Restore an older version",
    responses=describe("version_not_found", *(code for code in _WRITING if code != "config_broken")),
)
async def rollback_config(body: RollbackBody, response: Response, writer: Writer, if_match: IfMatch) -> ConfigWritten:
    """Writes the text of that version to the file, as a new version. This also repairs a broken file."""
    written = await writer.rollback(body.version, if_match)
    tag(response, written.etag)
    return ConfigWritten(message=f"Version {body.version} is in force.", etag=written.etag)
