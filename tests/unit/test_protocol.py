"""The frames of the GPU border: every value is the same after a round trip, and other frames are refused."""

from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from imagegen.core.errors import FailureCode
from imagegen.core.task import Lora, Pixels
from imagegen.core.value import Value
from imagegen.gpu.protocol import (
    Answer,
    Command,
    DeviceMemory,
    EngineOptions,
    Failed,
    Generate,
    Generated,
    Load,
    Loaded,
    Measure,
    Measured,
    Step,
    StopGenerating,
    Stopped,
    Unload,
    Unloaded,
    pack,
    unpack_answer,
    unpack_command,
)
from imagegen.loaders.base import families_named
from imagegen.testing.engine import SCRIPTED
from tests.conftest import request_for

MEMORY = DeviceMemory(gpu_available=True, gpu_name="H200", allocated=2**37, cached=2**38, total=2**39, host=2**33)

COMMANDS: list[Value] = [
    Load(
        model="a",
        spec={"type": "fake", "steps": 4, "x": [1.5, None, {"y": True}]},
        settings={},
        models_dir="models",
        loras_dir="loras",
    ),
    Load(model="a", spec={}, settings={"log_level": "INFO"}, models_dir="", loras_dir=""),
    Unload(model="flux.1-dev"),
    Generate(model="a", request=request_for()),
    Generate(
        model="a",
        request=request_for(
            "红色圆圈\n🟥",
            seed=2**64 - 1,
            batch_size=8,
            strength=0.35,
            loras=(Lora(path="a", scale=-1.5), Lora(path="b", scale=1, repo="a/b@c")),
        ),
        init_image=bytes(range(256)),
        mask_image=b"mask",
        lora_files=("loras/a", "loras/b"),
    ),
    StopGenerating(),
    Measure(),
]

ANSWERS: list[Value] = [
    Step(step=3, total=28),
    Loaded(seconds=22.7, weight_bytes=33_700_000_000, memory=MEMORY),
    Unloaded(memory=DeviceMemory()),
    Generated(images=(), memory=MEMORY, provenance=SCRIPTED),
    Generated(
        images=(
            Pixels(width=2, height=1, seed=0, rgb=b"\x00\xff\x80\x00\x01\x02"),
            Pixels(width=1, height=1, seed=1, rgb=b"abc", alpha=b"\x80"),
        ),
        memory=MEMORY,
        provenance=SCRIPTED.evolve(weights=("a/b@c",), options={"compile": True, "step_cache": 0.1}),
        warnings=(("Two layers are ignored.",), ()),
    ),
    Stopped(),
    *(Failed(code=code, message="It failed.", traceback="Traceback ...") for code in FailureCode),
    Measured(memory=MEMORY),
]


def kinds(union: Any) -> set[type[Value]]:
    return set(get_args(get_args(union)[0]))


def kind_of(value: Value) -> Any:
    return value.model_dump()["kind"]


def test_warnings_are_cut_to_their_limits() -> None:
    many = Generated(images=(), memory=MEMORY, provenance=SCRIPTED, warnings=(("x" * 1000,) * 100,))
    assert many.warnings == (("x" * 500,) * 16,)


@pytest.mark.parametrize("command", COMMANDS, ids=kind_of)
def test_a_command_is_the_same_after_a_round_trip(command: Value) -> None:
    assert unpack_command(pack(command)) == command


@pytest.mark.parametrize("answer", ANSWERS, ids=kind_of)
def test_an_answer_is_the_same_after_a_round_trip(answer: Value) -> None:
    assert unpack_answer(pack(answer)) == answer


def test_no_kind_of_command_or_answer_is_left_out_above() -> None:
    assert {type(value) for value in COMMANDS} == kinds(Command)
    assert {type(value) for value in ANSWERS} == kinds(Answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=10), JSON, max_size=4), st.text(max_size=50))
def test_any_entry_of_a_models_yaml_is_the_same_after_a_round_trip(spec: dict[str, Any], folder: str) -> None:
    command = Load(model="a", spec=spec, settings={}, models_dir=folder, loras_dir=folder)
    assert unpack_command(pack(command)) == command


@given(st.binary(max_size=500), st.text(max_size=100))
def test_any_picture_and_any_prompt_are_the_same_after_a_round_trip(image: bytes, prompt: str) -> None:
    command = Generate(model="a", request=request_for(prompt), init_image=image)
    assert unpack_command(pack(command)) == command


def test_a_failure_crosses_with_any_characters_in_its_traceback() -> None:
    # A file name that is not UTF-8 reaches Python as lone surrogates.
    answer = unpack_answer(pack(Failed(code=FailureCode.LOAD_FAILED, message="m", traceback="OSError: 'a\udcff'")))
    assert isinstance(answer, Failed)
    assert answer.code is FailureCode.LOAD_FAILED


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "shutdown"},
        {"kind": "Load"},
        {"kind": None},
        {"model": "a"},
        {},
        [],
        None,
        7,
        "load",
        {"kind": "unload", "model": "a", "extra": 1},
        {"kind": "unload"},
        {"kind": "unload", "model": 7},
        {"kind": "step", "step": "x", "total": 1},
        {"kind": "failed", "code": "no_such_code", "message": ""},
    ],
)
def test_an_invalid_message_is_refused_in_both_directions(value: object) -> None:
    frame = msgpack.packb(value)
    for unpack in (unpack_command, unpack_answer):
        with pytest.raises(ValidationError):
            unpack(frame)


@pytest.mark.parametrize("command", COMMANDS, ids=kind_of)
def test_a_command_is_no_answer(command: Value) -> None:
    with pytest.raises(ValidationError):
        unpack_answer(pack(command))


@pytest.mark.parametrize("answer", ANSWERS, ids=kind_of)
def test_an_answer_is_no_command(answer: Value) -> None:
    with pytest.raises(ValidationError):
        unpack_command(pack(answer))


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_a_cut_frame_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_command(pack(Unload(model="a"))[:cut])


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(frame: bytes) -> None:
    try:
        command = unpack_command(frame)
    except ValueError:  # msgpack's errors and pydantic's
        return
    assert type(command) in kinds(Command)


# -- what messages mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FailureCode)
def test_only_the_end_of_a_worker_ends_its_resident_models(code: FailureCode) -> None:
    died = {FailureCode.WORKER_CRASHED, FailureCode.WORKER_HUNG}
    assert Failed(code=code, message="").worker_died is (code in died)


@pytest.mark.parametrize("name", ["", "imagegen.loaders", "imagegen.loaders:", ":FAMILIES", "a b:C", "a:b.c", "../a:b"])
def test_a_table_of_families_is_named_by_module_and_attribute(name: str) -> None:
    with pytest.raises(ValidationError):
        EngineOptions(families=name)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("imagegen.nowhere:FAMILIES", ImportError),
        ("imagegen.loaders:NOTHING", AttributeError),
        ("imagegen.loaders:SPECS", TypeError),
        ("imagegen.loaders:PRODUCT", TypeError),
    ],
)
def test_a_name_of_no_table_of_families_is_refused_at_the_start(name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        families_named(name)
