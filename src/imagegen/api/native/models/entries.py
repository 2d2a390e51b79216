"""Entries of models.yaml: add, change and remove them. CatalogWriter makes all changes."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, RootModel

from imagegen.api.bounded import BoundedRoute
from imagegen.api.dependencies import EffectiveSettings, Writer
from imagegen.api.headers import headers
from imagegen.api.native.config import WRITING, IfMatch, SettingsPatchBody, tag
from imagegen.api.native.models.routes import ModelConfig
from imagegen.api.problems import describe
from imagegen.api.security import MANAGE
from imagegen.catalog.catalog import ModelSpec
from imagegen.catalog.changes import Roots, with_changed_model, with_model, without_model
from imagegen.catalog.loading import Families
from imagegen.catalog.schema import entry_fields, settings_fields
from imagegen.core.errors import ConfigInvalid

router = APIRouter(prefix="/models", tags=["models"], route_class=BoundedRoute, dependencies=[MANAGE])


async def _roots(settings: EffectiveSettings) -> Roots:
    return Roots(settings.models_path, settings.root_paths)


AllowedRoots = Annotated[Roots, Depends(_roots)]


class ModelPatchBody(RootModel[dict[str, Any]]):
    """Fields of an entry; null resets one to its default."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"steps": 8, "description": "Faster."}]})


class NewModelBody(BaseModel):
    """A new entry of models.yaml: its id, and the fields of its family."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "model_id": "my-flux",
                    "name": "My FLUX",
                    "type": "flux",
                    "pipeline_class": "FluxPipeline",
                    "local_path": "my-flux",
                    "steps": 28,
                }
            ]
        },
    )

    model_id: str = Field(description="Letters, digits, `.`, `_`, `-`; at most 64.", max_length=100)


def config_schemas(families: Families) -> dict[str, Any]:
    """The schemas of all that contains fields of models.yaml: bodies and answers, and what they refer to."""
    template = "#/components/schemas/{model}"
    entry, settings = entry_fields(families, template), settings_fields(template)
    kinds = families.values()
    # A family may have a default for a field that others need, such as `pipeline_class`.
    needed = [name for name in ModelSpec.model_fields if all(it.model_fields[name].is_required() for it in kinds)]
    model_id = {"type": "string", "description": NewModelBody.model_fields["model_id"].description, "maxLength": 100}
    shown: dict[type[BaseModel], dict[str, Any]] = {
        ModelConfig: entry.as_shown(ModelSpec.model_fields),
        ModelPatchBody: entry.as_changed(),
        NewModelBody: entry.as_changed(needed, model_id=model_id),
        SettingsPatchBody: settings.as_changed(),
    }
    return entry.inner | settings.inner | {kind.__name__: _described(kind, schema) for kind, schema in shown.items()}


def _described(kind: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    own = kind.model_json_schema()
    return schema | {name: own[name] for name in ("title", "description", "examples") if name in own}


class ModelWritten(BaseModel):
    """The result of a change of a model's entry."""

    message: str = Field(examples=["'my-flux' was added."])
    model_id: str = Field(examples=["my-flux"])


@router.post(
    "",
    status_code=201,
    operation_id="create_model",
    summary="Add a model",
    responses={
        201: {"headers": headers("Location", "ETag")},
        **describe("model_exists", "path_not_allowed", *WRITING),
    },
)
async def create_model(
    body: NewModelBody, request: Request, response: Response, writer: Writer, roots: AllowedRoots, if_match: IfMatch
) -> ModelWritten:
    """Appends an entry to models.yaml. The model can be used at once. The body may have every field of an entry.

    `pipeline_class` may be left out, unless `type` is `diffusers`.
    """
    fields = body.model_extra or {}
    edit = partial(with_model, model_id=body.model_id, fields=fields, families=writer.families, roots=roots)
    written = await writer.edit(edit, if_match)
    tag(response, written.etag)
    response.headers["Location"] = f"{request.scope['root_path']}/models/{body.model_id}"
    return ModelWritten(message=f"'{body.model_id}' was added.", model_id=body.model_id)


@router.patch(
    "/{model_id}",
    operation_id="patch_model",
    summary="Change some fields of a model (merge patch)",
    responses={200: {"headers": headers("ETag")}, **describe("model_not_found", "path_not_allowed", *WRITING)},
)
@router.put(
    "/{model_id}",
    operation_id="update_model",
    summary="Change some fields of a model",
    responses={200: {"headers": headers("ETag")}, **describe("model_not_found", "path_not_allowed", *WRITING)},
)
async def update_model(
    model_id: str, body: ModelPatchBody, response: Response, writer: Writer, roots: AllowedRoots, if_match: IfMatch
) -> ModelWritten:
    """Replaces the given fields of the entry and keeps the others. Null resets a field to its default.

    A change that affects how the model is loaded waits for the running task, and the model is unloaded. Any other
    change is in force at once. PUT, for clients of the original API, and PATCH (RFC 7396,
    `application/merge-patch+json` or `application/json`) do the same.
    """
    fields = dict(body.root)
    if fields.pop("model_id", model_id) != model_id:
        raise ConfigInvalid("model_id: the id of a model cannot be changed.")
    edit = partial(with_changed_model, model_id=model_id, fields=fields, families=writer.families, roots=roots)
    tag(response, (await writer.edit(edit, if_match)).etag)
    return ModelWritten(message=f"'{model_id}' was changed.", model_id=model_id)


@router.delete(
    "/{model_id}",
    operation_id="delete_model",
    summary="Remove a model",
    responses={200: {"headers": headers("ETag")}, **describe("model_not_found", *WRITING)},
)
async def delete_model(model_id: str, response: Response, writer: Writer, if_match: IfMatch) -> ModelWritten:
    """Removes the entry from models.yaml. A running task of the model goes on; waiting ones fail (`model_removed`).

    The model that `default_model` names cannot be removed, nor the last model. No weights are deleted.
    """
    tag(response, (await writer.edit(partial(without_model, model_id=model_id), if_match)).etag)
    return ModelWritten(message=f"'{model_id}' was removed.", model_id=model_id)
