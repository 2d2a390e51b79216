"""The `imagegen` command on the command line."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from imagegen import __version__
from imagegen.loaders import SPECS
from imagegen.testing import WITH_FAKE
from tests.commands import command
from tests.server import PATIENCE_S

ROOT = Path(__file__).parents[2]


def imagegen(
    *arguments: str | Path | int,
    module: str = "imagegen",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=PATIENCE_S, check=False)


def test_generate_makes_a_picture_without_a_server(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = imagegen("generate", "a red circle on a blue background", "-o", out, "--seed", 7)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert "8/8" in done.stderr
    with Image.open(out) as image:
        assert image.size == (128, 128)
        red, _, blue = image.getpixel((64, 64))  # type: ignore[misc]
    assert red > 150 > blue


def test_generate_makes_a_batch_in_another_shape_from_a_picture(tmp_path: Path) -> None:
    start = tmp_path / "start.png"
    Image.new("RGB", (64, 64), "red").save(start)
    done = command(
        "generate",
        "a star",
        "-o",
        tmp_path / "b.png",
        "-n",
        2,
        "--seed",
        -1,
        "--aspect-ratio",
        "4:3",
        "--steps",
        4,
        "--image",
        start,
    )
    assert done.exit_code == 0, done.stderr
    for name in ("b-0.png", "b-1.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size == (171, 128)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["generate", "x", "--model", "nope"], 65, "There is no such model; known: tiny"),
        (["generate", "x", "--model", "flux.1-dev"], 69, "`imagegen models pull flux.1-dev` fetches"),
        (["generate", "x", "--image", "pyproject.toml"], 65, "not a readable PNG, JPEG, WebP, AVIF, GIF"),
        (["generate", "x", "--steps", "0"], 2, "--steps"),
        (["generate", "x", "-o", "/nowhere/at/all.png"], 73, "cannot write"),
        (["config", "check", "nowhere.yaml"], 78, "nowhere.yaml: cannot be read"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_errors_have_a_message_and_an_exit_code(
    arguments: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = command(*arguments)
    assert done.exit_code == code, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"), (["--port", "99999"], "port")],
)
def test_a_service_that_cannot_start_has_a_message_and_an_exit_code(arguments: list[str], words: str) -> None:
    done = imagegen("serve", *arguments, cwd=ROOT)
    assert done.returncode == 78, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_config_check_reports_every_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("global:\n  auto_unload_minuts: 3\nmodels:\n  a:\n    name: A\n    type: fluxx\n")
    done = imagegen("config", "check", file)
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        f"{file}:2:3: unknown key 'auto_unload_minuts'; did you mean 'auto_unload_minutes'?",
        f"{file}:6:5: unknown type 'fluxx'; did you mean 'flux'?; known: {', '.join(sorted(SPECS))}",
    ]
    assert imagegen("serve", "--config", file).stderr == done.stderr


def test_models_lists_configured_models_and_whether_their_weights_are_present() -> None:
    done = imagegen("models")
    assert done.returncode == 0
    assert "tiny (default)" in done.stdout
    assert "not here" in done.stdout


def test_version_and_help() -> None:
    assert imagegen("version").stdout.strip() == "0.1.0"
    for words in (
        [],
        ["serve"],
        ["generate"],
        ["models"],
        ["models", "pull"],
        ["config", "check"],
        ["doctor"],
        ["version"],
    ):
        shown = command(*words, "--help")
        assert shown.exit_code == 0
        assert "Usage" in shown.stdout


def test_the_fake_family_is_in_the_command_of_the_tests_only(tmp_path: Path, fake_yaml: Path) -> None:
    assert command("config", "check", fake_yaml, families=WITH_FAKE).exit_code == 0
    refused = command("config", "check", fake_yaml)
    assert refused.exit_code == 78
    assert "unknown type 'fake'" in refused.stderr
    out = tmp_path / "out.png"
    drawn = command("generate", "x", "--config", fake_yaml, "-o", out, families=WITH_FAKE)
    assert drawn.exit_code == 0, drawn.stderr
    with Image.open(out) as image:
        assert image.size == (64, 64)


def test_the_wheel_is_installed_by_pip_and_works_the_same_outside_the_checkout(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.startswith(("training", "tests", "bench"))]
    assert "imagegen/builtin/models.yaml" in names
    pages = {f"imagegen/api/errors/{page.name}" for page in (ROOT / "docs" / "errors").iterdir()}
    assert pages <= set(names)
    web = ROOT / "src" / "imagegen" / "api" / "web"
    assert {f"imagegen/api/web/{file.relative_to(web)}" for file in web.rglob("*.mjs")} <= set(names)
    assert {"imagegen/api/web/index.html", "imagegen/api/web/style.css", "imagegen/api/web/icon.svg"} <= set(names)
    assert wheel.stat().st_size < 20 * 2**20
    # An environment of its own, to which pip adds the wheel; the packages that it needs are those of this one.
    site = tmp_path / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=PATIENCE_S)
    (site / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv"), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=PATIENCE_S)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = tmp_path / "venv" / "bin" / "imagegen"

    def said(*command: str | Path) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=alone,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said(program, "--version").split()[-1] == __version__
    assert str(site) in said(program.with_name("python"), "-c", "import imagegen; print(imagegen.__file__)")
    said(program, "run", "a red circle", "-o", "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (128, 128)
