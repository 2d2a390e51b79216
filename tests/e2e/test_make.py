"""What `make` installs: torch for this machine, torchvision of the same build, and why not. There is no network."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# -- torch: pip is the real one, with indexes of these tests ---------------------------------------------------------

(TORCH,) = [it.removeprefix("torch==") for it in (ROOT / "constraints.txt").read_text().split() if it[:7] == "torch=="]

#: Stands for a virtual environment's python: the real pip, which installs into a folder.
PYTHON_WITH_PIP = f"""#!/bin/sh
PIP_TARGET="$(dirname "$0")/../site" exec {sys.executable} "$@"
"""


def index(folder: Path, *versions: str) -> str:
    """A package index in a folder, as a URL, with these versions of torch."""
    torch = folder / "torch"
    torch.mkdir(parents=True)
    for version in versions:
        about = f"torch-{version}.dist-info"
        with zipfile.ZipFile(torch / f"torch-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    links = "".join(f'<a href="{file.name}">{file.name}</a>' for file in torch.iterdir())
    (torch / "index.html").write_text(links)
    return folder.as_uri()


def make_torch(folder: Path, *variables: str, own: str) -> tuple[int, str, list[str]]:
    """The exit code, what make says, and what is installed then. `own`: the index that pip is configured with."""
    venv, tools = folder / "venv", folder / "tools"
    for each in (venv / "bin", tools):
        each.mkdir(parents=True)
    (venv / ".pip").touch()
    for file, text in ((venv / "bin" / "python", PYTHON_WITH_PIP), (tools / "nvidia-smi", "#!/bin/sh\nexit 1\n")):
        file.write_text(text)
        file.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH", "MAKE"))}
    environment = kept | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": own,
        "PYTHONPATH": "",
    }
    command = ["make", "--no-print-directory", "torch", f"VENV={venv}", *variables]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr, sorted(it.name for it in (venv / "site").glob("torch*"))


def test_without_a_gpu_torchs_own_index_is_asked_if_pips_has_no_cpu_build(tmp_path: Path) -> None:
    own, theirs = index(tmp_path / "own", TORCH), index(tmp_path / "theirs", TORCH, f"{TORCH}+cpu")
    code, said, installed = make_torch(tmp_path, f"TORCH_INDEX={theirs}", own=own)
    assert (code, installed) == (0, [f"torch-{TORCH}+cpu.dist-info"])
    first, *why = said.splitlines()
    assert first == f"The index that pip is configured with has no cpu build of torch=={TORCH}:"
    assert f"No matching distribution found for torch=={TORCH}+cpu" in "".join(why)
    assert theirs not in said


def test_pips_own_index_comes_first(tmp_path: Path) -> None:
    own = index(tmp_path / "own", f"{TORCH}+cpu")
    code, said, installed = make_torch(tmp_path, "TORCH_INDEX=http://127.0.0.1:9", own=own)
    assert (code, said, installed) == (0, "", [f"torch-{TORCH}+cpu.dist-info"])


def test_if_no_index_has_a_cpu_build_make_says_why_and_what_it_installs_instead(tmp_path: Path) -> None:
    own, theirs = index(tmp_path / "own", TORCH), index(tmp_path / "theirs")
    code, said, installed = make_torch(tmp_path, f"TORCH_INDEX={theirs}", own=own)
    # The other build comes with the packages that need it.
    assert (code, installed) == (0, [])
    assert f"{theirs} has no cpu build of torch=={TORCH}:" in said
    assert said.count("No matching distribution found") == 2
    assert said.splitlines()[-1].startswith("No cpu build of torch is available: installing the other one, 2.7 GB")


def test_a_build_that_was_asked_for_is_that_build_or_an_error(tmp_path: Path) -> None:
    own, theirs = index(tmp_path / "own", TORCH), index(tmp_path / "theirs")
    code, said, installed = make_torch(tmp_path, "TORCH=cpu", f"TORCH_INDEX={theirs}", own=own)
    assert (code, installed) == (2, [])
    assert "No cpu build of torch is available; see TORCH_INDEX in the Makefile." in said
    code, said, installed = make_torch(tmp_path / "cuda", "TORCH=cuda", own=own)
    assert (code, said, installed) == (0, "", [f"torch-{TORCH}.dist-info"])


def test_pytorchs_index_is_the_default_also_of_the_image() -> None:
    default = "https://download.pytorch.org/whl/cpu"
    assert f"TORCH_INDEX ?= {default}\n" in (ROOT / "Makefile").read_text()
    assert f"TORCH_INDEX: ${{TORCH_INDEX:-{default}}}\n" in (ROOT / "compose.yaml").read_text()


# -- torchvision: only pip and the import are simulated --------------------------------------------------------------

#: Stands for a virtual environment's python: says which torch it has, writes down what pip is asked for.
PYTHON = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
  *importlib.metadata*) cat "$here/built" ;;
  *"import torchvision"*) exit "$(cat "$here/import_exits")" ;;
  *"-m pip"*)
    echo "$*" >> "$here/pip.log"
    case "$*" in *"$(cat "$here/there")"*) exit 0 ;; esac
    echo "ERROR: none" >&2; exit 1 ;;
esac
"""


def make_torchvision(
    venv: Path, built: str, *, there: str = "torchvision", import_exits: int = 0, index: str = ""
) -> str:
    """The end of its stderr, and the calls of pip; `there`: a part of the calls that succeed."""
    (venv / "bin").mkdir()
    for name, text in {"built": built, "there": there, "import_exits": str(import_exits), "pip.log": ""}.items():
        (venv / "bin" / name).write_text(text)
    python = venv / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TORCH", "TORCH_INDEX", "MAKEFLAGS")
    }
    command = ["make", "torchvision", f"VENV={venv}", f"TORCH_INDEX={index}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = done.stderr.partition("\nmake")[0] if done.returncode else ""
    return f"{said}\n{(venv / 'bin' / 'pip.log').read_text()}"


@pytest.mark.parametrize(
    ("built", "wanted"), [("cpu", "torchvision==0.28.0+cpu"), ("cuda", "torchvision==0.28.0,!=0.28.0+cpu")]
)
def test_torchvision_is_of_the_build_that_torch_is(tmp_path: Path, built: str, wanted: str) -> None:
    said, *asked = make_torchvision(tmp_path, built).splitlines()
    assert said == ""
    assert [call.split()[-1] for call in asked] == [wanted]


def test_only_a_cpu_build_is_requested_from_torchs_own_index(tmp_path: Path) -> None:
    index = "https://torch.example/cpu"
    for built, calls in {"cpu": 2, "cuda": 1}.items():
        venv = tmp_path / built
        venv.mkdir()
        asked = make_torchvision(venv, built, there=f"--index-url {index}", index=index).splitlines()
        asked = [line for line in asked if line.startswith("-m pip")]
        assert len(asked) == calls
        assert [index in call for call in asked] == [False, True][:calls]


def test_an_unavailable_build_is_reported(tmp_path: Path) -> None:
    said = make_torchvision(tmp_path, "cpu", there="nothing")
    assert said.startswith("The index that pip is configured with has no cpu build of torchvision==0.28.0:\n    none\n")
    assert "No cpu build of torchvision==0.28.0" in said


def test_one_that_does_not_work_beside_torch_does_not_stay(tmp_path: Path) -> None:
    said = make_torchvision(tmp_path, "cuda", import_exits=1)
    assert "does not work with this torch and was removed again" in said
    assert said.splitlines()[-1].endswith("uninstall --quiet --yes torchvision")
