"""Models: what is configured, what is resident, and letting it go."""

from fastapi import APIRouter

from imagegen.api.dependencies import Models, Tasks
from imagegen.api.problems import describe
from imagegen.api.schemas import CurrentModel, GpuMemory, ModelDetails, ModelList, Unloaded
from imagegen.api.views import gib, model_details, model_view

router = APIRouter(prefix="/models", tags=["models"])


@router.get("", operation_id="list_models", summary="All configured models")
async def list_models(models: Models) -> ModelList:
    """In the order of models.yaml."""
    views = [model_view(model_id, spec, models) for model_id, spec in models.catalog.models.items()]
    return ModelList(models=views, total=len(views))


@router.get("/current", operation_id="get_current_model", summary="The model in device memory")
async def get_current_model(models: Models) -> CurrentModel:
    """At most one model is in device memory at a time."""
    resident, memory = models.current, models.memory
    return CurrentModel(
        current_model=resident.model if resident else None,
        model_name=models.catalog.model(resident.model).name if resident else None,
        is_loaded=resident is not None,
        last_used=resident.last_used_at if resident else None,
        gpu_memory=GpuMemory(allocated=gib(memory.allocated), cached=gib(memory.cached), total=gib(memory.total)),
    )


@router.post(
    "/unload", operation_id="unload_model", summary="Unload the model in device memory", responses=describe("draining")
)
async def unload_model(models: Models, tasks: Tasks) -> Unloaded:
    """Waits for the running task, then frees the memory. The next task that needs the model loads it again."""
    gone = await tasks.between_tasks(models.unload_all)
    return Unloaded(message=f"'{gone[0]}' was unloaded." if gone else "No model was loaded.")


@router.get("/{model_id}", operation_id="get_model", summary="One model", responses=describe("model_not_found"))
async def get_model(model_id: str, models: Models) -> ModelDetails:
    """A model with its configuration."""
    return model_details(model_id, models.catalog.model(model_id), models)
