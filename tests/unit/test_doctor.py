"""The findings of `imagegen doctor` on several machines; torch, the system and the worker are simulated."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import parse_catalog
from imagegen.cli import app, checks
from imagegen.cli.checks import Finding
from imagegen.core.errors import FailureCode
from imagegen.core.task import Pixels
from imagegen.gpu import devices
from imagegen.gpu import machine as looking
from imagegen.gpu.machine import Card, Library, Machine, Torch
from imagegen.gpu.protocol import DeviceMemory, Failed, Generated, Loaded
from imagegen.loaders import PRODUCT, SPECS
from imagegen.settings import Settings
from imagegen.storage.lock import exclusive
from imagegen.testing.engine import SCRIPTED
from tests.pretend_cuda import Card as PretendedCard
from tests.pretend_cuda import pretended

GIB = 2**30
HERE, ABSENT = Library(state="here", version="1.0"), Library(state="absent")
NMS = Library(state="broken", trouble="operator torchvision::nms does not exist")

CPU = Machine(
    torch=Torch(version="2.13.0+cpu"),
    triton=ABSENT,
    torchao=ABSENT,
    nunchaku=ABSENT,
    torchvision=ABSENT,
    memory_total=24 * GIB,
    memory_available=20 * GIB,
)
CARD = Card(index=0, name="NVIDIA L4", capability="8.9", total=24 * GIB, free=47 * GIB // 2)
CUDA = CPU.evolve(
    torch=Torch(version="2.13.0", built_for="13.0", driver_runs="13.1", cards=(CARD,), device="cuda"),
    triton=HERE,
    driver="590.44.01",
    has_card=True,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.about: finding for finding in findings}


# -- device ------------------------------------------------------------------------------------------------------------


def device(machine: Machine, **settings: Any) -> dict[str, Finding]:
    return by_name(checks.device(machine, Settings(**settings)))


def test_a_cpu_without_a_card_is_well() -> None:
    found = device(CPU)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["torch"].says == "2.13.0+cpu, built for the CPU"
    assert found["host memory"].says == "20.0 GiB of 24.0 GiB available"


def test_a_card_is_shown_with_driver_and_memory() -> None:
    found = device(CUDA)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["driver"].says == "590.44.01, runs CUDA up to 13.1"
    assert found["device"].says == "the GPU"
    assert found["cuda:0"].says == "NVIDIA L4, compute capability 8.9, 24.0 GiB: 23.5 GiB free"


def test_memory_of_other_processes_is_a_note() -> None:
    found = device(with_card(free=10 * GIB))["cuda:0"]
    assert (found.level, found.exit_code) == ("note", 0)
    assert "13.5 GiB taken by other processes" in found.says
    assert "nvidia-smi" in found.mend


def with_card(**changes: Any) -> Machine:
    assert CUDA.torch is not None
    return CUDA.evolve(torch=CUDA.torch.evolve(cards=(CARD.evolve(**changes),)))


NO_DRIVER = Torch(version="2.13.0", built_for="13.0", problem="Found no NVIDIA driver on your system.")
NO_BUILD = Torch(version="2.13.0+cpu", problem="torch 2.13.0+cpu is a build without CUDA although there is nvidia0.")
OLD_DRIVER = Torch(version="2.13.0", built_for="13.0", driver_runs="11.4", problem="The NVIDIA driver is too old.")

FAULTS: dict[str, tuple[Machine, str, str, str, str]] = {
    "no torch": (CPU.evolve(torch=None, ended="ImportError: libcudart.so.13"), "auto", "torch", "libcudart", "install"),
    "cpu build beside a card": (
        CPU.evolve(torch=NO_BUILD, has_card=True),
        "auto",
        "device",
        "the CPU, although there is an NVIDIA card: torch 2.13.0+cpu is a build without CUDA",
        "make install TORCH=cuda",
    ),
    "driver too old": (
        CPU.evolve(torch=OLD_DRIVER, has_card=True),
        "auto",
        "device",
        "driver is too old",
        "CUDA 13.0 (this one: 11.4)",
    ),
    "no card, but one is demanded": (
        CPU.evolve(torch=NO_DRIVER),
        "cuda",
        "device",
        "IMAGEGEN_DEVICE is cuda, and no model loads: Found no NVIDIA driver",
        "--gpus all",
    ),
    "another process's card": (with_card(trouble="devices are busy"), "auto", "cuda:0", "are busy", "nvidia-smi"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_device_that_does_not_work_is_a_fault_with_a_way_out(name: str) -> None:
    machine, wanted, about, words, mend = FAULTS[name]
    found = device(machine, device=wanted)[about]
    assert (found.level, found.exit_code) == ("fault", 69)
    assert words in found.says
    assert mend in found.mend


def test_a_configured_cpu_needs_no_card() -> None:
    cpu = Torch(version="2.13.0", built_for="13.0")  # the CPU was asked for: nobody looks for a card
    found = device(CPU.evolve(torch=cpu, has_card=True), device="cpu")
    assert {finding.level for finding in found.values()} == {"ok"}


def test_a_cuda_build_without_a_card_is_only_worth_a_word() -> None:
    found = device(CPU.evolve(torch=NO_DRIVER))["device"]
    assert (found.level, found.says) == ("note", "the CPU: Found no NVIDIA driver on your system.")


# -- libraries ---------------------------------------------------------------------------------------------------------


def libraries(machine: Machine) -> dict[str, Finding]:
    return by_name(checks.libraries(machine))


def test_a_missing_library_is_a_note_with_the_models_that_need_it() -> None:
    found = libraries(CPU)
    assert "triton" not in found
    for name, word in {"torchao": "quantize", "nunchaku": "nunchaku-ai", "torchvision": "make vision"}.items():
        assert (found[name].level, found[name].says) == ("note", "absent")
        assert word in found[name].mend


def test_installed_libraries_are_listed_with_their_versions() -> None:
    found = libraries(CUDA.evolve(torchao=HERE, nunchaku=HERE, torchvision=HERE))
    assert [found[it].says for it in ("triton", "torchao", "nunchaku", "torchvision")] == ["1.0"] * 4


def test_a_torchvision_of_another_build_is_a_fault_whatever_the_models_are() -> None:
    found = libraries(CPU.evolve(torchvision=NMS))["torchvision"]
    assert (found.level, found.exit_code) == ("fault", 69)
    assert "of another build than torch, so that no model loads" in found.says
    assert "make vision" in found.mend


def test_a_torchvision_that_ends_the_process_is_named() -> None:
    found = libraries(CPU.evolve(torchvision=None, ended="the process died (SIGSEGV)"))["torchvision"]
    assert (found.level, "SIGSEGV" in found.says) == ("fault", True)


def test_a_library_that_ends_the_process_is_not_blamed_on_the_next_one() -> None:
    found = libraries(CPU.evolve(nunchaku=None, torchvision=None, ended="the process died (SIGSEGV)"))
    assert found["nunchaku"].says == "not known: the process died (SIGSEGV)"
    assert found["torchvision"].level == "note"


def test_the_package_of_the_engines_name_is_not_the_engine() -> None:
    found = libraries(CPU.evolve(nunchaku=Library(state="another", version="0.15.4")))["nunchaku"]
    assert "unrelated" in found.says
    assert "pip uninstall nunchaku" in found.mend


def test_compilers_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert checks._cannot_build(shutil.which("cc") or "gcc", "c") is None
    monkeypatch.setenv("CC", "false")
    assert libraries(CPU)["c compiler"].says == "false: cannot build: no reason given"
    monkeypatch.setenv("CC", "/nowhere/gcc")
    assert "cannot be run" in libraries(CPU)["c compiler"].says
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = libraries(CPU)["c compiler"]
    assert (found.level, found.says, "apt install gcc" in found.mend) == ("note", "absent", True)


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A temporary folder and a cache of the hub of their own."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(checks, "cache_root", lambda: tmp_path / "hub")
    return tmp_path


def test_folders_with_free_space_are_ok_and_unchanged(folders: Path, settings: Settings) -> None:
    found = by_name(checks.folders(settings))
    assert [finding.level for finding in found.values()] == ["ok"] * 3
    assert str(folders) in found["temporary"].says
    assert "not there yet" in found["weights"].says
    assert not list(folders.iterdir())


def test_a_temporary_folder_that_python_passes_over_is_a_fault(
    folders: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    found = by_name(checks.folders(settings))["temporary"]
    assert (found.level, found.exit_code) == ("fault", 73)
    assert found.says.startswith("TMPDIR names /nowhere/at/all: No such file or directory; Python takes /")


def test_no_temporary_folder_at_all_is_a_fault(
    folders: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    assert by_name(checks.folders(settings))["temporary"].says == "no temporary folder can be written to"


def test_a_full_disk_is_a_fault(folders: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115 - the caller does
    found = by_name(checks.folders(settings))
    assert found["temporary"].says == f"{folders}: No space left on device"
    assert (found["data"].level, found["data"].exit_code) == ("fault", 73)
    assert found["weights"].level == "note"


def test_little_room_is_a_fault(folders: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(90 * 2**20))
    assert by_name(checks.folders(settings))["data"].says == f"{settings.data_dir}: 90 MiB free"


def test_a_file_in_the_place_of_the_data_directory_is_a_fault(folders: Path, settings: Settings) -> None:
    (folders / "data").write_text("")
    found = by_name(checks.folders(settings.model_copy(update={"data_dir": folders / "data"})))["data"]
    assert (found.level, "Not a directory" in found.says) == ("fault", True)


def test_the_process_that_holds_the_data_directory_is_no_fault(folders: Path, settings: Settings) -> None:
    with exclusive(settings.data_dir):
        found = by_name(checks.folders(settings))["data"]
    assert found.level == "ok"
    assert "in use by process" in found.says


# -- models ------------------------------------------------------------------------------------------------------------


def catalog(**fields: Any) -> Catalog:
    """The embedded model as `a`, with other fields."""
    entry = {"name": "A", "type": "flux", "local_path": "builtin:tiny"} | fields
    return parse_catalog(json.dumps({"models": {"a": entry}}), SPECS)


def model(settings: Settings, machine: Machine = CPU, **fields: Any) -> Finding:
    (found,) = checks.models(catalog(**fields), settings, machine, PRODUCT)
    return found


def test_a_present_model_is_shown_with_its_size(settings: Settings) -> None:
    assert model(settings, torch_dtype="float32").says == "here, 20 MiB of weights"


def test_a_model_of_the_hub_that_is_not_here_can_be_pulled(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    found = model(settings, local_path=None, hf_path="org/name@v2")
    assert (found.level, found.says, found.mend) == ("note", "not here: org/name@v2", "`imagegen models pull a`")
    monkeypatch.setattr(checks, "lacks", lambda files: "text_encoder_2")
    assert model(settings, local_path=None, hf_path="org/name").says == "not here: org/name (text_encoder_2)"


def test_a_missing_folder_is_reported_with_advice(settings: Settings) -> None:
    found = model(settings, local_path="mine")
    assert (found.level, found.mend) == ("note", "Put them into 'mine' below the models directory.")


def test_a_folder_that_is_no_pipeline_is_a_fault(settings: Settings) -> None:
    (settings.models_path / "mine").mkdir(parents=True)
    found = model(settings, local_path="mine")
    assert (found.level, found.exit_code) == ("fault", 65)
    assert "model_index.json" in found.says


def test_a_model_that_is_larger_than_the_card_is_worth_a_word(settings: Settings) -> None:
    found = model(settings, with_card(total=2**23))
    assert (found.level, "it does not fit" in found.says) == ("note", True)
    assert "docs/models.md" in found.mend


#: Any file of the embedded model will do: without the engine nobody opens it.
NUNCHAKU_FILE = "transformer/diffusion_pytorch_model.safetensors"

LACKING: dict[str, tuple[dict[str, Any], Machine, str]] = {
    "torchvision": (
        {"type": "diffusers", "pipeline_class": "QwenImageEditPlusPipeline"},
        CPU,
        "here, and cannot run: torchvision is absent",
    ),
    "nunchaku": (
        {"type": "nunchaku", "base_model": "builtin:tiny", "local_path": "builtin:tiny", "weight_name": NUNCHAKU_FILE},
        CPU.evolve(nunchaku=Library(state="another", version="0.15.4")),
        "here, and cannot run: nunchaku: the installed package",
    ),
    "torchao": ({"quantize": "int8"}, CPU, "here, and cannot run: torchao: absent"),
    "compiler": ({"compile": True}, CUDA, "here, and cannot run: c compiler: false: cannot build"),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_a_model_that_is_here_needs_and_does_not_have_is_a_fault(
    settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    fields, machine, words = LACKING[name]
    found = model(settings, machine, **fields)
    assert (found.level, found.exit_code) == ("fault", 69)
    assert found.says.startswith(words)
    assert found.mend


# -- picture -----------------------------------------------------------------------------------------------------------


class Worker:
    """Gives the answers of the test, and counts its closes."""

    closed = 0

    def __init__(self, *answers: object) -> None:
        self.answers = iter(answers)

    def load(self, command: object) -> object:
        return next(self.answers)

    def generate(self, *arguments: object) -> object:
        return next(self.answers)

    def close(self) -> None:
        Worker.closed += 1


MEMORY = DeviceMemory(gpu_available=True, gpu_name="NVIDIA L4")
LOADED = Loaded(seconds=1, weight_bytes=1, memory=MEMORY)


def drawn(rgb: bytes) -> Generated:
    picture = Pixels(width=1, height=2, seed=7, rgb=rgb)
    return Generated(images=(picture,), memory=MEMORY, provenance=SCRIPTED)


ANSWERS: dict[str, tuple[tuple[object, ...], str, str]] = {
    "well": ((LOADED, drawn(bytes(range(6)))), "ok", "drawn on NVIDIA L4"),
    "black": ((LOADED, drawn(bytes(6))), "fault", "all of one colour"),
    "no load": (
        (Failed(code=FailureCode.LOAD_FAILED, message="It failed.", traceback="Traceback\nValueError: no kernel\n"),),
        "fault",
        "cannot be drawn: It failed. ValueError: no kernel",
    ),
    "no step": (
        (LOADED, Failed(code=FailureCode.WORKER_HUNG, message="It hangs.")),
        "fault",
        "cannot be drawn: It hangs.",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_picture_is_drawn_and_the_worker_leaves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    answers, level, words = ANSWERS[name]
    monkeypatch.setattr(checks, "WorkerEngine", lambda *options, **more: Worker(*answers))
    before = Worker.closed
    found = checks.picture(settings)
    assert (found.level, words in found.says, Worker.closed) == (level, True, before + 1)
    assert found.exit_code == (69 if level == "fault" else 0)


# -- the look at the machine -------------------------------------------------------------------------------------------


def answer(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make the checking process run this script instead."""
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **how: run([sys.executable, "-c", script, command[-1]], **how)
    )


TORCH_LINE = """print('{"torch": {"version": "2"}}', flush=True)"""


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process died (SIGSEGV)"),
        ("raise ImportError('libcudart.so.13')", "ImportError: libcudart.so.13"),
        ("raise SystemExit(3)", "exit code 3"),
        ("""print('{"tri', end='', flush=True); raise SystemExit(3)""", "exit code 3"),
    ],
)
def test_findings_from_before_the_process_ended_are_kept(
    monkeypatch: pytest.MonkeyPatch, script: str, ended: str
) -> None:
    answer(monkeypatch, f"{TORCH_LINE}\n{script}")
    found = looking.look("auto")
    assert (found.torch, found.torchvision, found.ended) == (Torch(version="2"), None, ended)


def test_findings_from_before_the_process_hung_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: object, *, timeout: float, **how: object) -> None:
        raise subprocess.TimeoutExpired("python", timeout, output=b'{"torch": {"version": "2"}}\n{"triton": ')

    monkeypatch.setattr(subprocess, "run", hang)
    found = looking.look("auto")
    assert (found.torch, found.triton, found.ended) == (Torch(version="2"), None, "no answer within 120 seconds")


def test_a_machine_that_cannot_start_a_process_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*command: object, **how: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert looking.look("auto").ended == "no process could be started: Resource temporarily unavailable"


def test_driver_card_and_memory_are_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.44.01  Release Build\nGCC version: gcc 14.2.0\n"
    )
    (tmp_path / "nvidia0").touch()
    for name, place in {"DRIVER": "version", "DEVICES": "."}.items():
        monkeypatch.setattr(looking, name, tmp_path / place)
    answer(monkeypatch, TORCH_LINE)
    found = looking.look("auto")
    assert (found.driver, found.has_card) == ("590.44.01", True)
    assert 0 < found.memory_available < found.memory_total


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\n",
        "NVRM version: NVIDIA UNIX aarch64 Kernel Module  550.54.14  Thu Feb 22\n",
    ],
)
def test_the_driver_is_read_in_each_of_its_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(looking, "DRIVER", tmp_path / "version")
    assert looking.driver() is None
    (tmp_path / "version").write_text(text)
    assert looking.driver() == "550.54.14"


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch as a CUDA build with two cards, of which the second one does not answer."""
    import torch

    def mem_get_info(index: int) -> tuple[int, int]:
        if index == 1:
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might")
        return 20 * GIB, 24 * GIB

    card = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, total_memory=24 * GIB)
    monkeypatch.setattr(devices, "run_kernel", lambda device: None)
    played = {
        "is_available": lambda: True,
        "init": lambda: None,
        "device_count": lambda: 2,
        "get_device_properties": lambda index: card,
    }
    for name, answers in {**played, "mem_get_info": mem_get_info}.items():
        monkeypatch.setattr(torch.cuda, name, answers)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13010, raising=False)
    return torch


@pytest.mark.usefixtures("cuda_build")
def test_each_card_is_read_from_torch() -> None:
    found = looking.torch_facts("auto")
    assert (found.built_for, found.driver_runs, found.device) == ("13.0", "13.1", "cuda")
    first, second = found.cards
    assert (first.free, first.total, first.capability) == (20 * GIB, 24 * GIB, "8.9")
    assert second.trouble == "CUDA error: all CUDA-capable devices are busy or unavailable"


def test_a_pretended_card_is_shown_with_the_memory_of_other_processes() -> None:
    with pretended(PretendedCard(total=80 * GIB, foreign=20 * GIB)):
        found = looking.torch_facts("auto")
    assert (found.device, found.problem) == ("cuda", None)
    (card,) = found.cards
    assert (card.name, card.total) == ("Pretended card", 80 * GIB)
    assert 59 * GIB < card.free <= 60 * GIB  # the look has a context of its own


def test_the_reason_for_no_cards_is_read_from_a_cuda_build(cuda_build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(cuda_build.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda_build.cuda, "init", refuse)
    found = looking.torch_facts("auto")
    assert (found.cards, found.device) == ((), "cpu")
    assert "too old (found version 11040)" in str(found.problem)


def test_the_process_that_looks_sees_the_card_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """import json, os, sys
print(json.dumps({"torch": {"version": os.environ["CUDA_VISIBLE_DEVICES"], "device": sys.argv[-1]}}))"""
    answer(monkeypatch, script)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = looking.look("cuda:1").torch
    assert found is not None
    assert (found.version, found.device) == ("1", "cuda")


@pytest.mark.parametrize(
    ("source", "state", "trouble"),
    [
        ("__version__ = '1.2'", "here", ""),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "broken", "operator torchvision::nms does"),
        ("raise OSError('libcudart.so.13: cannot open')", "broken", "libcudart.so.13"),
        ("import nowhere_at_all", "broken", "No module named"),
    ],
)
def test_a_library_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, state: str, trouble: str
) -> None:
    assert looking.library("a_library").state == "absent"
    (tmp_path / "a_library.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = looking.library("a_library")
    sys.modules.pop("a_library", None)
    assert (found.state, found.version) == (state, "1.2" if state == "here" else "")
    assert trouble in found.trouble


@pytest.mark.parametrize(("folder", "state"), [("nunchaku_engine", "here"), ("nunchaku_impostor", "another")])
def test_the_engine_is_distinguished_from_its_namesake(
    monkeypatch: pytest.MonkeyPatch, folder: str, state: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / folder)
    before = set(sys.modules)
    try:
        assert looking.nunchaku().state == state
    finally:
        for name in {name for name in sys.modules if name.partition(".")[0] == "nunchaku"} - before:
            del sys.modules[name]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine whose picture and models.yaml both fail."""
    monkeypatch.setenv("IMAGEGEN_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sys.modules["imagegen.cli.doctor"], "look", lambda asked: CUDA)
    fault = Finding(section="picture", about="picture", level="fault", says="black", mend="Look.", exit_code=69)
    monkeypatch.setattr(checks, "picture", lambda settings: fault)


@pytest.mark.usefixtures("played")
def test_the_first_fault_decides_the_exit_code_and_all_are_listed(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: {}\n")
    done = CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "models.yaml")], env={"COLUMNS": "80"})
    assert done.exit_code == 78
    assert "To mend: 2" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "there is no model" in " ".join(done.stdout.split())


@pytest.mark.usefixtures("played")
def test_scripts_read_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.exit_code == 69
    assert told["machine"]["torch"]["cards"][0]["name"] == "NVIDIA L4"
    assert told["findings"][-1] == {
        "section": "picture",
        "about": "picture",
        "level": "fault",
        "says": "black",
        "mend": "Look.",
        "exit_code": 69,
    }


def test_a_misspelt_variable_is_a_note_with_the_setting_that_was_meant(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEGEN_MAX_QUEU", "3")
    _, findings = checks.configuration(settings, PRODUCT)
    found = {finding.about: finding for finding in findings}["IMAGEGEN_MAX_QUEU"]
    assert (found.level, found.says) == ("note", "no setting has this name; did you mean 'IMAGEGEN_MAX_QUEUE'?")
