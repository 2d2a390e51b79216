"""Errors on the wire: one table from stable codes to HTTP statuses, and the bodies of problems."""

import json
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from imagegen.api.problems import MEDIA_TYPE, STATUS, FieldError, describe, problem, problem_json
from imagegen.core.errors import (
    BackupFailed,
    BackupInvalid,
    DataDirInUse,
    DataDirUnusable,
    DeviceFault,
    EncodingFailed,
    EngineError,
    FailureCode,
    ImagegenError,
    JournalDamaged,
    KeysFileInvalid,
    NotProtected,
    QueueFull,
    StoreMisconfigured,
)

#: Never raised towards a caller: they end the process, its start, a command, or (flattened to a Failed) a task.
INWARD = (
    *(BackupFailed, BackupInvalid),
    *(DeviceFault, DataDirInUse, DataDirUnusable, JournalDamaged),
    *(StoreMisconfigured, KeysFileInvalid, NotProtected, EncodingFailed, EngineError),
)


def subclasses(kind: type[ImagegenError]) -> Iterator[type[ImagegenError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


ERRORS = [each for each in subclasses(ImagegenError) if each.__module__ == "imagegen.core.errors"]
OUTWARD = [each for each in ERRORS if not issubclass(each, INWARD)]


@pytest.mark.parametrize("error", OUTWARD, ids=lambda error: error.code)
def test_every_error_that_a_caller_can_meet_has_a_status(error: type[ImagegenError]) -> None:
    assert 400 <= STATUS[error.code] < 600
    assert STATUS[error.code] != HTTPStatus.INTERNAL_SERVER_ERROR


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in OUTWARD]
    assert len(codes) == len(set(codes))
    assert "internal_error" not in codes


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_docstring_of_an_error_is_its_message(error: type[ImagegenError]) -> None:
    assert error().detail == str(error())
    assert error().detail.endswith(".")
    assert "\n" not in error().detail
    assert error("Something else.").detail == "Something else."


@pytest.mark.parametrize("status", sorted(set(STATUS.values())))
def test_every_status_has_a_name(status: int) -> None:
    assert HTTPStatus(status).phrase


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_request", 422),
        ("invalid_image", 422),
        ("image_too_large", 422),
        ("model_not_found", 404),
        ("task_not_found", 404),
        ("task_finished", 409),
        ("body_too_large", 413),
        ("queue_full", 503),
        ("draining", 503),
        ("storage_full", 507),
    ],
)
def test_the_codes_that_clients_act_upon_keep_their_status(code: str, status: int) -> None:
    assert STATUS[code] == status


def test_codes_are_lower_case_words() -> None:
    for code in [*STATUS, *FailureCode]:
        assert code == code.lower()
        assert code.replace("_", "").isalpha()


def test_only_errors_that_end_by_waiting_have_a_retry_time() -> None:
    assert QueueFull(retry_after=3).retry_after == 3
    assert QueueFull().retry_after is None


# -- bodies ------------------------------------------------------------------------------------------------------------


def test_a_problem_follows_rfc_9457() -> None:
    response = problem_json(problem("task_not_found", "There is no task with this id."))
    assert response.status_code == 404
    assert response.media_type == MEDIA_TYPE == "application/problem+json"
    assert json.loads(bytes(response.body)) == {
        "type": "/docs/errors/task_not_found",
        "title": "Not Found",
        "status": 404,
        "code": "task_not_found",
        "detail": "There is no task with this id.",
    }


def test_a_problem_lists_the_fields_that_are_wrong() -> None:
    wrong = FieldError(loc="body.width", message="too small")
    response = problem_json(problem("invalid_request", "x", errors=[wrong]))
    assert json.loads(bytes(response.body))["errors"] == [{"loc": "body.width", "message": "too small"}]


def test_the_frameworks_own_status_overrides_the_table() -> None:
    assert problem("http_error", "x", status=418).status == 418


def test_a_code_that_is_not_in_the_table_is_a_bug_of_ours() -> None:
    assert problem("internal_error", "x").status == 500


# -- in the documentation ----------------------------------------------------------------------------------------------


def test_a_route_describes_its_codes_by_status() -> None:
    described = describe("queue_full", "task_not_found", "draining")
    assert list(described) == [404, 503]
    assert described[404]["description"] == "Code `task_not_found`."
    assert described[503]["description"] == "Code `queue_full`, `draining`."


def test_a_described_error_has_the_body_of_a_problem() -> None:
    content = describe("task_not_found")[404]["content"]
    assert content == {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def test_a_route_cannot_promise_a_code_that_does_not_exist() -> None:
    with pytest.raises(KeyError):
        describe("no_such_code")
