"""What is to be measured on a GPU is tried on tiny parts without one, so that it runs where there is one."""

import pytest
from bench import gpu

from imagegen.gpu.engine import LocalEngine


def test_what_is_measured_on_a_gpu_runs_on_tiny_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "ChildEngine", LocalEngine)  # a worker takes seconds to start
    gpu.main(["--small"])
    rows = {line.split(" | ")[0].strip("| "): line for line in capsys.readouterr().out.splitlines() if " | " in line}
    assert rows["bytes of the swap"].endswith(" | 1.00 |")
    assert "a step, plain" in rows


def test_without_a_gpu_it_says_so_and_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)  # where there is one, it takes minutes
    gpu.main([])
    assert capsys.readouterr().out == "bench.gpu: no CUDA device here, nothing to measure.\n"
