"""The file on disk: complete at every moment, mode and owner kept, links followed, versions kept."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from errno import EBUSY, EIO, ENOSPC, EROFS
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imagegen.builtin import default_config
from imagegen.catalog import watching
from imagegen.catalog.changes import Roots
from imagegen.catalog.difference import Difference, difference
from imagegen.catalog.file import ConfigFile
from imagegen.catalog.loading import ConfigError
from imagegen.catalog.versions import Versions
from imagegen.catalog.watching import is_being_written, trail
from imagegen.cli import app
from imagegen.core.errors import (
    ConfigReadOnly,
    ImagegenError,
    PathNotAllowed,
    StorageFailed,
    StorageFull,
    VersionNotFound,
)
from imagegen.loaders import SPECS
from tests.conftest import fake_catalog, fake_config
from tests.unit.test_catalog import catalog, spec
from tests.unit.test_yaml_loading import BROKEN

# -- replacing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text("old")
    return path


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(path: Path, what: str) -> None:
    path.unlink()
    match what:
        case "pipe":
            os.mkfifo(path)  # to open it would wait for a writer
        case "device":
            path.symlink_to("/dev/zero")  # it has no end
        case "folder":
            path.mkdir()
    with pytest.raises(ConfigError, match=r"^models\.yaml: cannot be read: (not a regular file|Is a directory)$"):
        ConfigFile(path).read()


def test_the_mode_is_kept_and_nothing_is_left_beside(path: Path) -> None:
    path.chmod(0o640)
    ConfigFile(path).replace("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["models.yaml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give a file away")
def test_the_owner_is_kept(path: Path) -> None:
    os.chown(path, 12345, 23456)
    ConfigFile(path).replace("new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.yaml"
    link.parent.mkdir()
    link.symlink_to("../models.yaml")
    ConfigFile(link).replace("new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_a_file_without_write_permission_is_read_only_even_for_root(path: Path) -> None:
    path.chmod(0o444)
    with pytest.raises(ConfigReadOnly, match="read-only"):
        ConfigFile(path).replace("new")
    assert path.read_text() == "old"


def test_the_configuration_that_ships_is_read_only() -> None:
    assert "copy it" in (ConfigFile(default_config()).read_only() or "")


def test_a_missing_file_can_be_made_where_its_folder_can_be_written_to(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path / "models.yaml")
    assert file.read_only() is None
    file.replace("new")
    assert file.path.read_text() == "new"
    reason = "There is no file, and its folder cannot be written to."
    assert ConfigFile(tmp_path / "no" / "folder" / "models.yaml").read_only() == reason


@pytest.mark.parametrize(
    ("number", "error"), [(EBUSY, ConfigReadOnly), (EROFS, ConfigReadOnly), (ENOSPC, StorageFull), (EIO, StorageFailed)]
)
@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_a_refused_write_leaves_only_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[ImagegenError], call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    if call == "rename":
        monkeypatch.setattr(Path, "replace", refuse)
    else:
        monkeypatch.setattr(os, call, refuse)
    with pytest.raises(error):
        ConfigFile(path).replace("new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["models.yaml"]


def test_the_file_of_a_killed_write_is_swept(path: Path) -> None:
    left, other = path.with_name(".models.yaml.77.part"), path.with_name(".other.part")
    left.touch()
    other.touch()
    ConfigFile(path).sweep()
    assert sorted(os.listdir(path.parent)) == [".other.part", "models.yaml"]


_WRITE_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
from imagegen.catalog.file import ConfigFile
file = ConfigFile(Path(sys.argv[1]))
print("ready", flush=True)
for number in count():
    file.replace(f"# {number % 2}" + "x" * 50_000 * (1 + number % 3) + "\\n# end\\n")
"""


def rounds_of_kills(path: Path, rounds: int) -> None:
    """kill -9 at any moment of a write: the file is complete each time."""
    path.write_text("# end\n")
    for number in range(rounds):
        with subprocess.Popen([sys.executable, "-c", _WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.002 * (number % 23))
            writer.send_signal(signal.SIGKILL)
        assert path.read_text().endswith("# end\n")
    ConfigFile(path).sweep()
    assert os.listdir(path.parent) == [path.name]


def test_a_write_that_is_killed_leaves_a_complete_file(path: Path) -> None:
    rounds_of_kills(path, 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_150_writes_that_are_killed_leave_150_complete_files(path: Path) -> None:
    rounds_of_kills(path, 150)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_versions_count_on_and_the_oldest_go(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "v", kept=3)
    for text in "aabcde":
        versions.add(text, "file")
    assert [version.version for version in Versions(tmp_path / "v").newest_first()] == [5, 4, 3]
    assert versions.text(4) == "d"
    with pytest.raises(VersionNotFound):
        versions.text(1)


def test_versions_are_listed_while_a_thread_adds_some(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "v", kept=2)
    with ThreadPoolExecutor(1) as thread:
        adding = thread.submit(lambda: [versions.add(str(number), "file") for number in range(200)])
        while not adding.done():
            for version in versions.newest_first():
                with suppress(VersionNotFound):
                    versions.text(version.version)
        adding.result()


def test_a_difference_is_what_a_version_changed(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    for text in ("a\nb\n", "a\nc\n", "a\nc"):
        versions.add(text, "rest")
    assert versions.difference(2, None) == (1, "--- version 1\n+++ version 2\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n")
    assert versions.difference(1, None)[0] == 0
    assert versions.difference(1, 2)[1].endswith("-c\n+b\n")
    assert versions.difference(3, None)[1].endswith("-c\n+c\n\\ No newline at end of file\n")
    with pytest.raises(VersionNotFound):
        versions.difference(9, None)


# -- at the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text, _ in BROKEN.values()], ids=BROKEN)
def test_a_broken_file_ends_the_start_with_every_problem_and_exit_code_78(path: Path, text: str) -> None:
    path.write_text(text)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    done = CliRunner().invoke(app, ["serve", "--config", str(path)])
    for number, handler in before.items():
        signal.signal(number, handler)
    assert done.exit_code == 78
    assert done.stderr.splitlines()
    assert all(line.startswith(f"{path}:") for line in done.stderr.splitlines())


# -- what changed ------------------------------------------------------------------------------------------------------


def test_only_fields_that_a_load_depends_on_make_a_model_outdated() -> None:
    old = catalog(a=spec(), b=spec(), c=spec(), d=spec())
    new = catalog(a=spec(), b=spec(steps=3, description="!"), c=spec(memory_mb=3), e=spec())
    assert difference(old, new) == Difference(
        added=("e",), changed=("b", "c"), removed=("d",), settings=(), outdated=("d", "c")
    )


def test_a_global_setting_outdates_the_models_that_take_it_from_there() -> None:
    old = catalog({"gpu_memory_fraction": 0.9}, a=spec(), b=spec(gpu_memory_fraction=0.5))
    new = catalog({"gpu_memory_fraction": 0.8, "log_level": "DEBUG"}, a=spec(), b=spec(gpu_memory_fraction=0.5))
    change = difference(old, new)
    assert (change.settings, change.outdated) == (("gpu_memory_fraction", "log_level"), ("a",))


def test_nothing_is_no_difference() -> None:
    assert difference(fake_catalog(), fake_catalog()).empty
    assert fake_config() == fake_config()


# -- paths that come over HTTP -----------------------------------------------------------------------------------------

ELSEWHERE = [
    *("http://h/x", "https://h/x", "HTTP://h/x", "file:///etc", "file:/etc", "ftp://h/x", "gopher://h", "s3://b/k"),
    *("hf:o/n", "hf:../..", "data:,x", "javascript:1", "C:\\x", "C:/x", "\\\\host\\share", "//host/share", "/etc"),
    *("/", "..", "../x", "x/../../y", "./../../x", "~", "~root/x", "%2e%2e/x", "..%2fx", "x\x00y", "x\ny", "\\x"),
    *(
        "../models2/x",
        "link/x",
        "link",
        "loop",
        "a/link/../../../x",
        "/proc/self/root/etc",
        "builtin:../x",
        "builtin:",
        "x/../..",
    ),
]


@pytest.mark.parametrize("name", ["local_path", "base_model"])
@pytest.mark.parametrize("value", ELSEWHERE)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, value: str) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "link").symlink_to("/etc")
    (models / "loop").symlink_to("loop")
    with pytest.raises(PathNotAllowed):
        Roots(models, (models,)).check(SPECS["gguf"], {name: value})


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gguf", {"gguf_file": "x/../../y.gguf"}),
        ("gguf", {"filename": "x/../../y.gguf"}),
        ("gguf", {"weight_name": "/etc/y.gguf"}),
        ("nunchaku", {"weight_name": "x/../../y.safetensors"}),
        ("nunchaku", {"t5_weight_name": "x/../../y.safetensors"}),
        ("flux", {"loras": [{"path": "style.safetensors"}, {"path": "x/../../y.safetensors"}]}),
        ("gguf", {"base_model": "o/n@.."}),
        ("gguf", {"base_model": "o/n@/dev/zero"}),
    ],
)
def test_a_file_or_a_revision_that_leads_elsewhere_is_refused(
    tmp_path: Path, family: str, fields: dict[str, object]
) -> None:
    with pytest.raises(PathNotAllowed):
        Roots(tmp_path, (tmp_path,)).check(SPECS[family], fields)


@pytest.mark.parametrize("source", ["o/n", "o/n@main", "o/n@refs/pr/1"])
def test_a_repository_is_no_path(tmp_path: Path, source: str) -> None:
    Roots(tmp_path / "models", (tmp_path / "weights",)).check(
        SPECS["gguf"], {"base_model": source, "gguf_file": "a/b.gguf"}
    )


@pytest.mark.parametrize("value", ["x", "x/y", "./x", "builtin:tiny", "x/../y", "x.gguf", "名/字", None, 3])
def test_a_path_below_the_roots_is_allowed(tmp_path: Path, value: object) -> None:
    Roots(tmp_path, (tmp_path,)).check(SPECS["flux"], {"local_path": value})
    Roots(tmp_path / "models", (tmp_path / "a", tmp_path)).check(SPECS["flux"], {"local_path": str(tmp_path / "b")})


# -- where a file can be exchanged -------------------------------------------------------------------------------------


def test_every_link_on_the_way_to_a_file_is_watched(tmp_path: Path) -> None:
    """A ConfigMap, as kubelet lays it out."""
    folder = tmp_path.resolve() / "config"
    (folder / "..2026").mkdir(parents=True)
    (folder / "..2026" / "models.yaml").touch()
    (folder / "..data").symlink_to("..2026")
    (folder / "models.yaml").symlink_to("..data/models.yaml")
    places = {Path(place).relative_to(folder) for place in trail(folder / "models.yaml").places}
    assert {str(place) for place in places} == {"models.yaml", "..data", "..2026/models.yaml"}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert trail(tmp_path / "a").places


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_an_open_file_counts_as_being_written(path: Path) -> None:
    with path.open("a"):
        writing = is_being_written(path)
    assert not is_being_written(path)
    if not writing:
        pytest.skip("this file system knows no leases")


async def test_a_file_is_followed_even_where_there_is_nothing_to_watch_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used_up(*_: object, **__: object) -> None:
        raise RuntimeError("OS file watch limit reached")

    monkeypatch.setattr(watching, "awatch", used_up)
    monkeypatch.setattr(watching, "_AGAIN_S", 0)
    monkeypatch.setattr(watching, "QUIET_S", 0)
    file, stop = ConfigFile(path), asyncio.Event()
    seen = watching.changes(file, file.stamp(), stop)
    for text in ("1", "22"):
        path.write_text(text)
        await anext(seen)
    path.unlink()
    await anext(seen)
    stop.set()
    with pytest.raises(StopAsyncIteration):
        await anext(seen)
