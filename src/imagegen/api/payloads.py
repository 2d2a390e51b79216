"""The bodies of webhooks: each shows its task as `GET /task/{id}` does."""

from datetime import datetime

from imagegen.api.views import task_view, webhook_payload
from imagegen.core.receipt import receipt_of
from imagegen.core.task import GenerationTask
from imagegen.core.webhooks import WebhookEvent
from imagegen.models.manager import DynamicModelManager
from imagegen.settings import Settings
from imagegen.tasks.manager import TaskManager


class WebhookPayloads:
    """Renders the body of a webhook when its event is written to the journal."""

    def __init__(self, settings: Settings, models: DynamicModelManager, tasks: TaskManager) -> None:
        self._settings = settings
        self._models = models
        self._tasks = tasks

    def __call__(self, task: GenerationTask, event: WebhookEvent, at: datetime) -> str:
        kept_days = self._models.catalog.settings.over(self._settings).retention_days
        outlook, download = self._tasks.outlook(task), self._tasks.download(task.id)
        return webhook_payload(event, at, task_view(task, outlook, download, kept_days, receipt_of(task)))
