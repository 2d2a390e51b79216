"""Receipts: one for each picture, and the reasons why two of them may differ."""

from imagegen.core.provenance import differences
from imagegen.core.receipt import Receipt, receipt_of
from imagegen.testing.engine import SCRIPTED
from tests.unit.conftest import task_of


def test_a_task_without_pictures_has_none() -> None:
    assert receipt_of(task_of(1)) is None


def test_a_receipt_has_the_request_and_the_provenance() -> None:
    task = task_of(1, provenance=SCRIPTED, init_image_sha256="ab")
    receipt = receipt_of(task)
    assert receipt == Receipt(
        model="fake", type=task.type, request=task.request, init_image_sha256="ab", provenance=SCRIPTED
    )


def test_warnings_list_what_the_pictures_ignore() -> None:
    receipt = receipt_of(task_of(1, provenance=SCRIPTED, warnings=("A layer is ignored.",)))
    assert receipt is not None
    assert receipt.of_picture(3, "ab").warnings == ("A layer is ignored.",)


def test_it_survives_json() -> None:
    receipt = receipt_of(task_of(1, provenance=SCRIPTED.evolve(options={"compile": True})))
    assert receipt is not None
    assert Receipt.model_validate_json(receipt.model_dump_json(exclude_none=True)) == receipt


def test_the_same_makers_make_the_same() -> None:
    assert differences(SCRIPTED, SCRIPTED.evolve()) == []


def test_each_difference_is_named_with_the_old_value() -> None:
    then = SCRIPTED.evolve(quantization="int8", options={"compile": True})
    now = SCRIPTED.evolve(device="NVIDIA H200", versions={"imagegen": "1", "torch": "2.13.0"}, weights=("a/b@c",))
    assert differences(then, now) == [
        "device: NVIDIA H200, was none",
        "options.compile: nothing, was True",
        "quantization: nothing, was int8",
        "versions.imagegen: 1, was 0",
        "versions.torch: 2.13.0, was nothing",
        "weights: a/b@c, was ",
    ]
