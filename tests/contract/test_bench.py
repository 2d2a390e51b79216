"""bench.gpu with tiny parts and without a GPU."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from bench import gpu, webhooks
from bench._flux import build, part_bytes

from imagegen.core.errors import FailureCode
from imagegen.gpu.engine import LocalEngine
from imagegen.gpu.protocol import Failed, Load, Loaded
from tests.pretend_cuda import pretended


def rows_of(text: str) -> dict[str, str]:
    return {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if " | " in line}


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WorkerEngine", LocalEngine)  # a worker takes seconds to start


def test_the_gpu_benchmark_runs_with_tiny_parts(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--small"])
    told = capsys.readouterr().out
    rows = rows_of(told)
    assert "FAILED" not in told
    assert rows["bytes of the swap"].endswith(" | 1.00 |")
    assert rows["left after the unload"].endswith("| before any load: 0 MiB |  |")
    assert list(rows)[1] == "a step, plain"
    assert "torch 2." in told


def test_without_a_gpu_it_reports_this_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # where there is one, it takes minutes
    gpu.main([])
    assert capsys.readouterr().out == "bench.gpu: no CUDA device here, nothing to measure.\n"


#: Takes a minute, even on tiny parts.
COMPILED = "a step, compiled"


def test_the_rows_that_only_a_gpu_has_run_on_a_pretended_card(
    rig: gpu.Rig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def hog() -> Iterator[None]:
        """The engine is in this process, so the memory of another process is only reported."""
        card.foreign = card.free - gpu.CRUMBS
        yield
        card.foreign = 0

    build("tiny", rig.folder)
    # A CPU does the work: the picture that is too large is a small one, and so is the room that is left.
    for name, value in {"hog": hog, "CRUMBS": 2**16, "LARGE": {"width": 128, "height": 128}, "MANY": 5}.items():
        monkeypatch.setattr(gpu, name, value)
    with pretended() as card:
        gpu.run(rig._replace(device="cuda"), [part for part in gpu.PARTS if part.name != COMPILED])
    told = capsys.readouterr().out
    rows = rows_of(told)
    assert "Pretended card" in told
    assert [name for name, row in rows.items() if "FAILED" in row] == ["a step, `quantize: float8`"]
    assert "quantize needs torchao" in rows["a step, `quantize: float8`"]
    assert rows["the same picture after it"].split(" | ")[1] == "yes"  # of the warm swap
    assert rows["a full device"].endswith("| numbers are told | yes |")
    assert rows["the same picture once there is room"].split(" | ")[1] == "yes"
    assert {"a step, attention `_native_cudnn`", "a step, attention `_native_flash`"} < rows.keys()


@pytest.fixture
def rig(tmp_path: Path) -> gpu.Rig:
    return gpu.Rig(tmp_path, "cpu", "tiny", part_bytes("tiny"))


def broken(stage: gpu.Stage) -> Iterator[gpu.Row]:
    yield gpu.Row("before", "1")
    raise RuntimeError("no kernel | image\nmore of it")


def refused(stage: gpu.Stage) -> Iterator[gpu.Row]:
    failed = Failed(
        code=FailureCode.ENGINE_MISSING, message="torchao is needed.", traceback="Traceback\nImportError: torchao"
    )
    yield gpu.Row("never", str(gpu.expect(failed, type(None))))


def well(stage: gpu.Stage) -> Iterator[gpu.Row]:
    yield gpu.Row("after", "2")


def test_a_row_that_fails_prints_the_reason_and_the_next_ones_follow(
    rig: gpu.Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.run(rig, [gpu.Part("broken", broken), gpu.Part("refused", refused), gpu.Part("well", well)])
    assert capsys.readouterr().out.splitlines()[4:] == [
        "| before | 1 |  |  |",
        "| broken | **FAILED** | RuntimeError: no kernel / image |  |",
        "| refused | **FAILED** | Wrong: engine_missing: torchao is needed. ImportError: torchao |  |",
        "| after | 2 |  |  |",
    ]


def test_a_failure_leaves_nothing_loaded_to_the_next_row(rig: gpu.Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    build("tiny", rig.folder)
    loads: list[str] = []
    load = LocalEngine.load

    def noted(engine: LocalEngine, command: Load) -> Loaded | Failed:
        loads.append(command.model)
        return load(engine, command)

    monkeypatch.setattr(LocalEngine, "load", noted)

    def ready(stage: gpu.Stage) -> Iterator[gpu.Row]:
        stage.ready()
        stage.ready()  # is loaded already
        yield from ()

    gpu.run(rig, [gpu.Part("ready", ready), gpu.Part("broken", broken), gpu.Part("ready", ready)])
    assert loads == ["a", "a"]


def test_each_row_is_out_before_the_next_one_is_measured(rig: gpu.Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    seen: list[bytes] = []

    def looking(stage: gpu.Stage) -> Iterator[gpu.Row]:
        seen.append(os.read(ours, 65_536))  # would wait for ever for what is not flushed
        yield gpu.Row("one", "1")
        seen.append(os.read(ours, 65_536))

    with open(theirs, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        gpu.run(rig, [gpu.Part("looking", looking)])
    os.close(ours)
    assert seen[0].endswith(b"|---|---|---|---|\n")
    assert seen[1] == b"| one | 1 |  |  |\n"


class Usage(NamedTuple):
    free: float


@pytest.mark.parametrize(
    ("disk_gb", "card_gb", "shape"),
    [(36, 48, "full"), (34, 48, "short"), (26, 48, "short"), (100, 36, "short"), (25, 48, None), (100, 24, None)],
)
def test_the_largest_shape_that_fits_is_measured(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    disk_gb: float,
    card_gb: float,
    shape: str | None,
) -> None:
    measured: list[str] = []
    card = SimpleNamespace(total_memory=card_gb * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(disk_gb * 10**9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(gpu, "give_back", lambda: None)
    monkeypatch.setattr(gpu, "build", lambda shape, folder, device: folder)
    monkeypatch.setattr(gpu, "run", lambda rig, parts: measured.append(rig.shape))
    gpu.main(["--folder", str(tmp_path)])
    assert measured == ([] if shape is None else [shape])
    if shape is None:
        assert "`short` needs" in capsys.readouterr().out


def test_the_shapes_have_their_documented_sizes() -> None:
    sizes = {shape: sum(part_bytes(shape).values()) / 10**9 for shape in ("full", "short")}
    assert {shape: round(size, 1) for shape, size in sizes.items()} == {"full": 33.7, "short": 25.3}


def test_what_webhooks_cost_is_measured_with_each_kind_of_receiver(capsys: pytest.CaptureFixture[str]) -> None:
    webhooks.main(["--tasks", "4", "--rounds", "1"])
    told = {name: row.split(" | ") for name, row in rows_of(capsys.readouterr().out).items()}
    counts = {name: [int(cell.strip(" |")) for cell in told[name][4:]] for name in webhooks.RECEIVERS}
    assert counts["none"] == [0, 0, 0]
    assert counts["refuses"] == counts["hangs"] == [0, 5, 0]  # the first task is not timed
    assert sum(counts["healthy"]) == 5
