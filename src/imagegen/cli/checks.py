"""The checks of `imagegen doctor`. Each yields findings and changes nothing on this machine."""

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from imagegen.builtin import default_config
from imagegen.catalog.catalog import Catalog, HubFiles, ModelSpec
from imagegen.catalog.hub_cache import EVERYTHING, cache_root, lacks
from imagegen.catalog.loading import ConfigError, load_catalog
from imagegen.catalog.sources import Folders, local_folder, missing, weights_here
from imagegen.cli.common import EX_CANTCREAT, EX_CONFIG, EX_DATAERR, EX_UNAVAILABLE
from imagegen.core.errors import EngineError
from imagegen.core.task import GenerationRequest
from imagegen.core.value import Value
from imagegen.gpu.engine import LEAST_FOREIGN_BYTES
from imagegen.gpu.machine import Card, Library, Machine
from imagegen.gpu.protocol import CONTEXT_BYTES, EngineOptions, Failed, Generate, Generated, Load
from imagegen.gpu.worker_engine import WorkerEngine
from imagegen.loaders import SPECS
from imagegen.loaders.base import ModelLoader, Placement, advice, families_named, specs_of
from imagegen.loaders.nunchaku import INSTALL, NunchakuSpec
from imagegen.loaders.options import OptionsSpec
from imagegen.loaders.parts import Parts
from imagegen.loaders.pipelines import WITH_TORCHVISION
from imagegen.settings import Settings
from imagegen.storage.lock import holder

GIB, MIB = 2**30, 2**20

#: Free bytes below which a folder counts as full. Compilers and libraries write some MiB; a picture takes 2 MiB.
LEAST_ROOM = 100 * MIB

#: Seconds that the worker may take to load the embedded model, and for each step of its picture; also the timeout of a
#: compiler.
TIMEOUT_S = 120

#: Compilers for a GPU (C) and for a CPU (C++): the variable that names one, and the default programs.
COMPILERS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {"c": ("CC", ("gcc", "clang")), "c++": ("CXX", ("g++", "clang++"))}
)


class Finding(Value):
    """The result of one check."""

    section: Literal["configuration", "folders", "device", "libraries", "models", "picture"]
    about: str
    #: `note`: it works, with a remark; `fault`: something that is configured does not work.
    level: Literal["ok", "note", "fault"] = "ok"
    says: str
    #: What to do; empty: nothing.
    mend: str = ""
    #: The exit code of the command after a fault.
    exit_code: int = 0


# -- configuration -----------------------------------------------------------------------------------------------------


def configuration(settings: Settings, families: str) -> tuple[Catalog | None, list[Finding]]:
    """The catalog, or None if the file is invalid; and a finding for the file or for each of its problems."""
    file, mend = (
        str(settings.config),
        "`imagegen config check` shows the same; every field is in docs/configuration.md.",
    )
    try:
        catalog = load_catalog(settings.config, specs_of(families_named(families)))
    except ConfigError as error:
        lines = [line.removeprefix(f"{file}:") for line in error.lines]
        fault = {"level": "fault", "mend": mend, "exit_code": EX_CONFIG}
        return None, [_finding("configuration", "models.yaml", f"{file}: {line}", **fault) for line in lines]
    says = f"{file}: {len(catalog.models)} models, default {catalog.default_model}"
    unknown = [
        _finding("configuration", name, f"no setting has this name{hint}", level="note", mend="Rename or remove it.")
        for name, hint in settings.unknown_variables(os.environ).items()
    ]
    return catalog, [_finding("configuration", "models.yaml", says), *unknown]


# -- folders -----------------------------------------------------------------------------------------------------------


def folders(settings: Settings) -> Iterator[Finding]:
    """The folders that files are written to: whether they are writable and have room, and which process uses them."""
    yield _temporary_folder()
    yield _data_directory(settings.data_dir)
    cache = _folder("weights", cache_root(), "`imagegen models pull` writes there; HF_HOME names another folder.")
    # Only a note, because weights that are in the cache already can be read.
    yield cache.evolve(level="note", exit_code=0) if cache.level == "fault" else cache


def _temporary_folder() -> Finding:
    named = next(((it, os.environ[it]) for it in ("TMPDIR", "TEMP", "TMP") if os.environ.get(it)), None)
    mend = "Name another folder in TMPDIR, or make room."
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return _fault("folders", "temporary", "no temporary folder can be written to", mend, EX_CANTCREAT)
    if named is not None and Path(named[1]).absolute() != folder.absolute():
        # Python's tempfile skips such a folder silently; compilers fail.
        why = trouble_with(Path(named[1])) or "cannot be written to"
        says = f"{named[0]} names {named[1]}: {why}; Python takes {folder} instead"
        return _fault("folders", "temporary", says, mend, EX_CANTCREAT)
    return _folder("temporary", folder, mend)


def _data_directory(folder: Path) -> Finding:
    found = _folder("data", folder, "Make room, or name another folder in IMAGEGEN_DATA_DIR.")
    process = holder(folder)
    return found if process is None else found.evolve(says=f"{found.says}; in use by process {process} (the service)")


def _folder(about: str, folder: Path, mend: str) -> Finding:
    existing = next(it for it in (folder, *folder.absolute().parents) if os.path.exists(it))
    trouble = trouble_with(existing)
    if trouble is not None:
        return _fault("folders", about, f"{folder}: {trouble}", mend, EX_CANTCREAT)
    free = shutil.disk_usage(existing).free
    if free < LEAST_ROOM:
        return _fault("folders", about, f"{folder}: {_size(free)} free", mend, EX_CANTCREAT)
    later = "" if existing == folder else "; not there yet, made when needed"
    return _finding("folders", about, f"{folder}: {_size(free)} free{later}")


def trouble_with(folder: Path) -> str | None:
    """Why nothing can be written to a folder, as the system says; None: it is writable. Writes an unnamed file."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(65_536))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


# -- device ------------------------------------------------------------------------------------------------------------


def device(machine: Machine, settings: Settings) -> Iterator[Finding]:
    """torch, the driver, the cards and the memory."""
    torch = machine.torch
    if torch is None:
        mend = "Install it again: `make clean install`, or the wheel for this machine."
        yield _fault("device", "torch", f"cannot be used: {machine.ended}", mend, EX_UNAVAILABLE)
        return
    built = f"built for CUDA {torch.built_for}" if torch.built_for else "built for the CPU"
    yield _finding("device", "torch", f"{torch.version}, {built}")
    if machine.driver or torch.driver_runs:
        runs = f", runs CUDA up to {torch.driver_runs}" if torch.driver_runs else ""
        yield _finding("device", "driver", f"{machine.driver or 'version unknown'}{runs}")
    for card in torch.cards:
        yield _card(card)
    yield _device(machine, settings)
    says = f"{_size(machine.memory_available)} of {_size(machine.memory_total)} available"
    yield _finding("device", "host memory", says)


def _card(card: Card) -> Finding:
    name = f"{card.name}, compute capability {card.capability}, {_size(card.total)}"
    about = f"cuda:{card.index}"
    if card.trouble:
        mend = "`nvidia-smi` says whether another process uses the card exclusively, or whether it needs a reset."
        return _fault("device", about, f"{name}; its memory cannot be read: {card.trouble}", mend, EX_UNAVAILABLE)
    says, taken = f"{name}: {_size(card.free)} free", card.total - card.free - CONTEXT_BYTES
    if taken < LEAST_FOREIGN_BYTES:
        return _finding("device", about, says)
    mend = "`nvidia-smi` names these processes. While the service runs, its worker is one of them."
    return _finding("device", about, f"{says}, {_size(taken)} taken by other processes", level="note", mend=mend)


def _device(machine: Machine, settings: Settings) -> Finding:
    """The device that models run on, and whether it is the configured one."""
    torch = machine.torch
    assert torch is not None
    if torch.problem is None:
        return _finding("device", "device", "the GPU" if torch.device.startswith("cuda") else "the CPU")
    if settings.device != "auto":
        says = f"IMAGEGEN_DEVICE is {settings.device}, and no model loads: {torch.problem}"
        return _fault("device", "device", says, _card_advice(machine), EX_UNAVAILABLE)
    if machine.has_card:
        says = f"the CPU, although there is an NVIDIA card: {torch.problem}"
        return _fault("device", "device", says, _card_advice(machine), EX_UNAVAILABLE)
    return _finding("device", "device", f"the CPU: {torch.problem}", level="note", mend=_card_advice(machine))


def _card_advice(machine: Machine) -> str:
    assert machine.torch is not None
    if machine.has_card and machine.torch.built_for is None:
        return "Take torch's CUDA build: `make install TORCH=cuda`"
    if machine.has_card:
        runs = f" (this one: {machine.torch.driver_runs})" if machine.torch.driver_runs else ""
        return f"Install a driver that runs CUDA {machine.torch.built_for}{runs}, or name another card or `auto`."
    return "In a container, give it the card (`--gpus all`, NVIDIA container toolkit); else install the NVIDIA driver."


# -- libraries ---------------------------------------------------------------------------------------------------------


def libraries(machine: Machine) -> Iterator[Finding]:
    """Compilers and optional libraries. If a configured model needs one that is absent, `models` reports it too."""
    yield from (_compiler(language) for language in COMPILERS)
    if machine.torch is None:
        return
    if machine.torch.built_for is not None:
        yield _library("triton", machine.triton, machine.ended, "`compile` needs it; torch's CUDA build brings it.")
    yield _library("torchao", machine.torchao, machine.ended, "`quantize` needs it: pip install 'imagegen[quantize]'")
    yield _nunchaku(machine)
    yield _torchvision(machine)


def _compiler(language: str) -> Finding:
    variable, names = COMPILERS[language]
    mend = f"`compile` needs one ({language}: for a {'GPU' if language == 'c' else 'CPU'}): apt install {names[0]}"
    found = os.environ.get(variable) or next(filter(shutil.which, names), None)
    if found is None:
        return _finding("libraries", f"{language} compiler", "absent", level="note", mend=mend)
    trouble = _cannot_build(found, language)
    if trouble is not None:
        mend = f"{mend} libc6-dev, and Python's headers"
        return _finding("libraries", f"{language} compiler", f"{found}: {trouble}", level="note", mend=mend)
    return _finding("libraries", f"{language} compiler", f"{found} builds")


def _cannot_build(compiler: str, language: str) -> str | None:
    """Why a compiler cannot build a shared module with Python's headers, as Triton and torch do; None: it can."""
    include = sysconfig.get_paths()["include"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [*shlex.split(compiler), "-x", language, "-", "-shared", "-fPIC", f"-I{include}"]
            done = subprocess.run(
                [*command, "-o", f"{folder}/module.so"],
                input=b"#include <Python.h>\n#include <math.h>\nint answer(void) { return 42; }\n",
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be run: {error}"
    lines = done.stderr.decode(errors="replace").splitlines()
    return None if done.returncode == 0 else f"cannot build: {(lines or ['no reason given'])[0]}"


def _library(name: str, library: Library | None, ended: str, use: str) -> Finding:
    if library is None:
        says = f"not known: {ended or 'the check of this machine ended too early'}"
        return _finding("libraries", name, says, level="note", mend=use)
    if library.state == "here":
        return _finding("libraries", name, library.version or "here")
    says = "absent" if library.state == "absent" else f"cannot be imported: {library.trouble}"
    return _finding("libraries", name, says, level="note", mend=use)


def _nunchaku(machine: Machine) -> Finding:
    found = machine.nunchaku
    if found is not None and found.state == "another":
        says = f"the installed package 'nunchaku' {found.version} is an unrelated one of that name on PyPI"
        mend = f"Models of type nunchaku need the engine: `pip uninstall nunchaku`, then {INSTALL}."
        return _finding("libraries", "nunchaku", says, level="note", mend=mend)
    return _library("nunchaku", found, machine.ended, f"Models of type nunchaku need it: {INSTALL}.")


def _torchvision(machine: Machine) -> Finding:
    """A broken torchvision is always a fault: diffusers and transformers import it if it is installed."""
    found, mend = machine.torchvision, "`pip uninstall torchvision`, then `make vision` for the build that matches."
    ended_there = found is None and machine.nunchaku is not None
    if ended_there or (found is not None and found.state == "broken"):
        why = machine.ended if found is None else found.trouble
        what = "is of another build than torch" if "torchvision::nms" in why else "cannot be imported"
        return _fault("libraries", "torchvision", f"{what}, so that no model loads: {why}", mend, EX_UNAVAILABLE)
    return _library("torchvision", found, machine.ended, "Some models read pictures with it: `make vision`")


# -- models ------------------------------------------------------------------------------------------------------------


def models(catalog: Catalog, settings: Settings, machine: Machine, families: str) -> Iterator[Finding]:
    """For each entry: whether its weights are here, whether it fits, and whether it has what it needs."""
    table = families_named(families)
    for model_id, spec in catalog.models.items():
        folder = local_folder(spec, settings.models_path)
        here = weights_here(spec, settings.models_path) or (folder is not None and folder.exists() and not spec.hf_path)
        if here:
            yield _model(model_id, catalog, settings, machine, table[spec.type].loader)
        else:
            yield _absent(model_id, spec, settings.models_path)


def _absent(model_id: str, spec: ModelSpec, models_dir: Path) -> Finding:
    wanted = missing(spec, models_dir)
    if not wanted:
        return _finding("models", model_id, "not here", level="note", mend=f"{advice(spec)}.".capitalize())
    says = "; ".join(map(_not_here, wanted))
    return _finding("models", model_id, f"not here: {says}", level="note", mend=f"`imagegen models pull {model_id}`")


def _not_here(files: HubFiles) -> str:
    """A repository, with the first part that is missing if other parts are here."""
    source = files.repo if files.revision is None else f"{files.repo}@{files.revision}"
    first = lacks(files)
    return source if first == EVERYTHING else f"{source} ({first})"


def _model(model_id: str, catalog: Catalog, settings: Settings, machine: Machine, loader: ModelLoader[Any]) -> Finding:
    spec, where = catalog.models[model_id], Folders(settings.models_path, settings.loras_path)
    if (lack := _lack(spec, machine)) is not None:
        return _fault("models", model_id, f"here, and cannot run: {lack[0]}", lack[1], EX_UNAVAILABLE)
    cards = machine.torch.cards if machine.torch is not None and settings.device != "cpu" else ()
    placement = Placement("cuda" if cards else "cpu", catalog.settings, where, Parts())
    try:
        loader.check(spec, where)
        size = loader.least_bytes(spec, placement)
    except EngineError as error:
        mend = f"`imagegen models pull {model_id}`" if spec.hub_files() else f"{advice(spec)}.".capitalize()
        return _fault("models", model_id, error.detail, mend, EX_DATAERR)
    except OSError as error:
        mend = "Let the user that runs imagegen read it."
        return _fault("models", model_id, f"its folder cannot be read: {error.strerror}", mend, EX_DATAERR)
    if size is None:
        return _finding("models", model_id, "here")
    room = max((card.total for card in cards), default=0) * catalog.memory_fraction(model_id) or machine.memory_total
    if 0 < room < size:
        says = f"here, {_size(size)} of weights for {_size(room)}: it does not fit"
        mend = "docs/models.md has a table of cards and entries."
        return _finding("models", model_id, says, level="note", mend=mend)
    return _finding("models", model_id, f"here, {_size(size)} of weights")


def _lack(spec: ModelSpec, machine: Machine) -> tuple[str, str] | None:
    """What an entry needs and this machine lacks, and what to do; None: nothing is missing."""
    found = {"torchvision": _torchvision(machine), "nunchaku": _nunchaku(machine)}
    if spec.pipeline_class in WITH_TORCHVISION and found["torchvision"].says == "absent":
        return "torchvision is absent", "`make vision`"
    if isinstance(spec, NunchakuSpec) and found["nunchaku"].level != "ok":
        return f"nunchaku: {found['nunchaku'].says}", found["nunchaku"].mend
    if isinstance(spec, OptionsSpec) and spec.quantize is not None:
        torchao = _library("torchao", machine.torchao, machine.ended, "pip install 'imagegen[quantize]'")
        if torchao.level != "ok":
            return f"torchao: {torchao.says}", torchao.mend
    if isinstance(spec, OptionsSpec) and spec.compile:
        compiler = _compiler("c" if machine.torch is not None and machine.torch.cards else "c++")
        if compiler.level != "ok":
            return f"{compiler.about}: {compiler.says}", compiler.mend
    return None


# -- picture -----------------------------------------------------------------------------------------------------------


def picture(settings: Settings) -> Finding:
    """Make a picture with the embedded model, in a worker process as the service does."""
    catalog = load_catalog(default_config(), SPECS)
    options = EngineOptions(device=settings.device)
    engine = WorkerEngine(options, load_timeout_s=TIMEOUT_S, step_timeout_s=TIMEOUT_S)
    request = GenerationRequest(
        prompt="a red circle on a blue background", width=64, height=64, steps=4, guidance_scale=0, seed=7
    )
    began = time.monotonic()
    try:
        loaded = engine.load(Load.entry(catalog, "tiny", Folders(settings.models_path, settings.loras_path)))
        command = Generate(model="tiny", request=request)
        made = (
            loaded
            if isinstance(loaded, Failed)
            else engine.generate(command, threading.Event(), lambda step, total, *preview: None)
        )
    finally:
        engine.close()
    mend = "The lines above may say why; docs/doctor.md has other causes."
    if not isinstance(made, Generated):
        why = made.message if isinstance(made, Failed) else "it stopped"
        details = (made.traceback if isinstance(made, Failed) else "").strip().splitlines()
        says = f"cannot be drawn: {why} {details[-1][:300] if details else ''}".rstrip()
        return _fault("picture", "picture", says, mend, EX_UNAVAILABLE)
    where = made.memory.gpu_name or "the CPU"
    if len(set(made.images[0].rgb)) == 1:
        says = f"drawn on {where}, and all of one colour: the device computes wrongly"
        return _fault("picture", "picture", says, mend, EX_UNAVAILABLE)
    return _finding("picture", "picture", f"drawn on {where} in {time.monotonic() - began:.1f} s, start included")


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / MIB:.0f} MiB"


def _finding(section: str, about: str, says: str, **more: object) -> Finding:
    return Finding.model_validate({"section": section, "about": about, "says": says, **more})


def _fault(section: str, about: str, says: str, mend: str, exit_code: int) -> Finding:
    return _finding(section, about, says, level="fault", mend=mend, exit_code=exit_code)
