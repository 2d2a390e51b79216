"""The commands that are clients of a service, against one live service."""

import base64
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from imagegen.cli import app
from imagegen.cli.remote import Remote
from imagegen.cli.terminal import Picture, Protocol, protocol_of
from tests.server import Server

RUNNER = CliRunner()
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "alice", "key": KEY}]}))
    with Server(folder / "data", IMAGEGEN_KEYS_FILE=str(keys)) as running:
        yield running


KEY = "ig_" + "k" * 43
SMALL = ["--steps", "4", "--seed", "7"]


@pytest.fixture
def imagegen(server: Server, monkeypatch: pytest.MonkeyPatch) -> "Imagegen":
    monkeypatch.setenv("IMAGEGEN_SERVER", str(server.http.base_url))
    monkeypatch.setenv("IMAGEGEN_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "80")
    return Imagegen()


class Imagegen:
    def __call__(self, *arguments: str | Path) -> Result:
        return RUNNER.invoke(app, [*map(str, arguments)])

    def ok(self, *arguments: str | Path) -> str:
        done = self(*arguments)
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        return dict(json.loads(self.ok(*arguments, "--json")))


def test_run_lets_the_service_make_pictures_and_writes_them(imagegen: Imagegen, tmp_path: Path) -> None:
    out = tmp_path / "a.webp"
    assert imagegen.ok("run", "a red circle", "-n", "2", *SMALL, "-o", out).split() == [
        str(tmp_path / "a-0.webp"),
        str(tmp_path / "a-1.webp"),
    ]
    with Image.open(tmp_path / "a-1.webp") as image:
        assert (image.format, image.size) == ("WEBP", (128, 128))
    edited = imagegen.json("run", "a star", "--image", tmp_path / "a-0.webp", *SMALL, "-o", tmp_path / "b.png")
    assert edited["files"] == [str(tmp_path / "b.png")]
    assert edited["seeds"] == [7]
    shown = imagegen("run", "a star", *SMALL, "-o", tmp_path / "c.png", "--preview", "iterm2")
    assert shown.exit_code == 0
    assert "4/4" in shown.stderr


def test_a_task_is_submitted_followed_listed_and_cancelled(imagegen: Imagegen, tmp_path: Path) -> None:
    task_id = imagegen.ok("submit", "a red circle", *SMALL).strip()
    assert imagegen.ok("watch", task_id, "-o", tmp_path / "a.png").split() == [str(tmp_path / "a.png")]
    assert imagegen("watch", task_id, "-o", tmp_path / "a.jpg").exit_code == 65
    events = [json.loads(line) for line in imagegen.ok("watch", task_id, "--json").splitlines()]
    assert events[-1]["type"] == "completed"
    lines = imagegen.ok("logs", task_id).splitlines()
    assert lines[-1].split()[:2] == ["completed", task_id]
    slow = imagegen.json("submit", "a red circle", "--steps", "200", "-n", "8")["task_id"]
    assert slow in imagegen.ok("tasks")
    imagegen.ok("cancel", str(slow))
    ended = imagegen("watch", str(slow))
    assert (ended.exit_code, ended.stderr.splitlines()[-1]) == (69, "The task was cancelled.")
    assert imagegen.json("tasks", "--limit", "1")["tasks"][0]["task_id"] == slow


def test_the_commands_of_the_page_work(imagegen: "Imagegen", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines():
        command, *arguments = shlex.split(line)
        assert command == "imagegen"
        imagegen.ok(*arguments)
    assert {path.name for path in tmp_path.iterdir()} >= {"circle.png", "star.png"}


def test_a_mask_without_a_picture_is_refused_on_this_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGEGEN_SERVER", raising=False)
    refused = RUNNER.invoke(app, ["run", "x", "--mask", "pyproject.toml"])
    assert (refused.exit_code, "needs --image" in refused.stderr) == (2, True)


def test_prompts_are_shown_as_they_are(imagegen: Imagegen) -> None:
    imagegen.ok("submit", "a [/] [red]star[/red] :star:", *SMALL)
    assert "a [/] [red]star" in imagegen.ok("tasks", "--limit", "1")


def test_what_the_service_does_fits_a_terminal_of_80_columns(imagegen: Imagegen) -> None:
    task_id = imagegen.ok("submit", "a prompt that is long enough to be cut off at the end of the line", *SMALL).strip()
    for command in ("ps", "tasks", "models"):
        shown = imagegen.ok(command)
        assert shown.strip()
        assert max(map(len, shown.splitlines())) <= 80, shown
    # What is copied from the tables is whole.
    assert task_id in imagegen.ok("tasks")
    listed = imagegen.ok("models")
    assert listed.split()[:4] == ["id", "type", "state", "description"]
    for model in imagegen.json("models")["models"]:
        assert re.search(rf"^{re.escape(model['id'])} .*{model['state']}", listed, re.MULTILINE), listed
    assert imagegen.json("ps")["health"]
    assert imagegen.json("models")["models"][0]["id"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["submit", "x", "--model", "nope"], 65, "model_not_found: There is no such model"),
        (["watch", "nope"], 65, "task_not_found"),
        (["cancel", "nope", "--key", "ig_wrong"], 77, "unauthorized"),
        (["ps", "--server", "http://127.0.0.1:1"], 69, "cannot reach the service at http://127.0.0.1:1"),
        (["ps", "--server", "ftp://a"], 2, "not an http or https URL"),
        (["ps", "--server", "http://a:b"], 2, "not an http or https URL"),
        (["ps", "--server", "http://"], 2, "not an http or https URL"),
        (["ps", "--key", "ключ"], 2, "keys have letters"),
        (["submit", "x", "--mask", "pyproject.toml"], 2, "--image"),
    ],
)
def test_what_goes_wrong_has_an_exit_code(imagegen: Imagegen, arguments: list[str], code: int, says: str) -> None:
    done = imagegen(*arguments)
    assert (done.exit_code, says in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    ("status", "code"), [(401, 77), (403, 77), (422, 65), (429, 75), (503, 75), (507, 73), (500, 69)]
)
def test_each_status_has_its_exit_code(status: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, text="no JSON"))
    with pytest.raises(typer.Exit) as ended:
        Remote("http://a", None, transport).get("/health")
    assert ended.value.exit_code == code
    assert str(status) in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["<!doctype html>", "[1]", "3"])
def test_an_address_of_something_else_is_named(answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=answer))
    with pytest.raises(typer.Exit) as ended:
        Remote("http://a", None, transport).get("/health")
    assert ended.value.exit_code == 69
    assert "what answers at http://a is not imagegen" in capsys.readouterr().err


def test_a_broken_stream_is_continued_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["Last-Event-ID"])
        if len(asked) == 1:
            return httpx.Response(200, text=frame(3, "started") + frame(3, "closed"))
        if len(asked) == 2:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, text=": keep-alive\n\n" + frame(4, "completed"))

    monkeypatch.setattr("imagegen.cli.remote.PAUSE_S", 0)
    events = list(Remote("http://a", None, httpx.MockTransport(answer)).events("/task/a/events"))
    assert [it["type"] for it in events] == ["started", "completed"]
    assert asked == ["0", "3", "3"]


def frame(event_id: int, name: str) -> str:
    return f'event: {name}\ndata: {{"type":"{name}"}}\nid: {event_id}\n\n'


# -- pictures in terminals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "protocol"),
    [
        ({"TERM": "xterm-256color"}, Protocol.NONE),
        ({"TERM": "xterm-kitty"}, Protocol.KITTY),
        ({"TERM": "xterm-ghostty"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM2),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, Protocol.ITERM2),
        ({"TERM": "foot"}, Protocol.SIXEL),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/a"}, Protocol.NONE),
    ],
)
def test_the_terminal_is_recognised(variables: dict[str, str], protocol: Protocol) -> None:
    assert protocol_of(variables) is protocol


def picture() -> bytes:
    image = Image.new("RGB", (64, 32), "blue")
    image.paste("red", (0, 0, 32, 32))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_kitty_and_iterm2_get_the_file() -> None:
    messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", Picture(picture(), Protocol.KITTY).escape())
    assert messages[0][0].startswith("a=T,f=100,")
    assert messages[-1][0].endswith("m=0")
    sent = [base64.b64decode("".join(data for _, data in messages))]
    shown = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):(.*)\a", Picture(picture(), Protocol.ITERM2).escape())
    assert shown is not None
    sent.append(base64.b64decode(shown[2]))
    assert int(shown[1]) == len(sent[1])
    for data in sent:
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, image.getpixel((0, 0)), image.getpixel((63, 31))) == (
                (64, 32),
                (255, 0, 0),
                (0, 0, 255),
            )


def test_sixels_draw_every_pixel_once() -> None:
    escape = Picture(picture(), Protocol.SIXEL).escape()
    assert escape.startswith("\x1bPq")
    assert escape.endswith("\x1b\\")
    colours, drawn = sixels(escape)
    for y in range(32):
        for x in range(64):
            assert colours[drawn[x, y]] == ((100, 0, 0) if x < 32 else (0, 0, 100)), (x, y)
    assert len(drawn) == 64 * 32


def sixels(escape: str) -> tuple[dict[int, tuple[int, ...]], dict[tuple[int, int], int]]:
    """The colours of a picture in sixels, and the colour of each of its pixels."""
    colours: dict[int, tuple[int, ...]] = {}
    drawn: dict[tuple[int, int], int] = {}
    x = top = colour = 0
    for token in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)(.)|([$-])|([?-~])", escape[3:-2]):
        if token[2]:
            colours[int(token[1])] = tuple(int(token[it]) for it in (2, 3, 4))
        elif token[1]:
            colour = int(token[1])
        elif token[7]:
            x, top = 0, top + 6 * (token[7] == "-")
        else:
            count, bits = int(token[5] or 1), ord(token[6] or token[8]) - 63
            rows = [top + row for row in range(6) if bits >> row & 1]
            for place in ((column, row) for column in range(x, x + count) for row in rows):
                assert place not in drawn
                drawn[place] = colour
            x += count
    return colours, drawn


# -- around them -------------------------------------------------------------------------------------------------------


def test_init_writes_a_models_yaml_and_replaces_none(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    assert str(file) in RUNNER.invoke(app, ["init", str(file)]).stdout
    assert RUNNER.invoke(app, ["config", "check", str(file)]).exit_code == 0
    refused = RUNNER.invoke(app, ["init", str(file)])
    assert (refused.exit_code, "--force" in refused.stderr) == (73, True)
    file.write_text("")
    assert RUNNER.invoke(app, ["init", str(file), "--force"]).exit_code == 0
    assert file.read_text()


def test_the_version_the_help_and_the_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RUNNER.invoke(app, ["--version"]).stdout.strip() == "0.1.0"
    monkeypatch.setenv("COLUMNS", "80")
    for command in ([], ["run"], ["submit"], ["watch"], ["cancel"], ["tasks"], ["ps"], ["logs"], ["models"], ["init"]):
        shown = RUNNER.invoke(app, [*command, "--help"])
        assert shown.exit_code == 0
        assert max(map(len, shown.stdout.splitlines())) <= 80, command
    assert "--device-seconds-per-day" in RUNNER.invoke(app, ["keys", "create", "--help"]).stdout
    help_ = RUNNER.invoke(app, ["--help"]).stdout
    assert "generate" not in help_
    assert "--install-completion" in help_
    assert RUNNER.invoke(app, ["generate", "--help"]).exit_code == 0
