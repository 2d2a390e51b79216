"""The service as a process: signals, sockets, restarts."""

import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

import imagegen
from tests.conftest import fake_config
from tests.server import PATIENCE_S, Server, environment, serve_command

SEEDS = range(12)


def colours(png: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The colours of the middle and of a corner."""
    with Image.open(io.BytesIO(png)) as image:
        middle = image.getpixel((image.width // 2, image.height // 2))
        corner = image.getpixel((4, 4))
    assert isinstance(middle, tuple)
    assert isinstance(corner, tuple)
    return middle, corner


def test_a_picture_is_made_by_the_real_service(tiny: Server) -> None:
    task = tiny.until(tiny.submit(seed=7))
    (red, _, blue), (red_outside, _, blue_outside) = colours(tiny.pictures(task)[0])
    assert red > 150 > blue
    assert blue_outside > 150 > red_outside


def test_a_stream_of_events_can_be_followed_while_it_happens(tiny: Server) -> None:
    task_id = tiny.submit(steps=30)
    with tiny.http.stream("GET", f"/task/{task_id}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line.startswith("event: ")]
    assert lines[0] == "event: queued"
    assert lines.count("event: step") == 30
    assert lines[-1] == "event: completed"


def test_only_the_declared_port_listens(tiny: Server) -> None:
    tiny.worker()
    processes = [psutil.Process(tiny.process.pid), *psutil.Process(tiny.process.pid).children(recursive=True)]
    listening = {
        (c.laddr.ip, c.laddr.port)
        for process in processes
        for c in process.net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert listening == {(tiny.http.base_url.host, tiny.http.base_url.port)}


def test_importing_the_app_does_not_import_torch() -> None:
    code = "import sys, imagegen.server; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_same_seed_same_pixels_over_calls_worker_deaths_and_restarts(tiny: Server, tmp_path: Path) -> None:
    reference = tiny.pictures(tiny.until(tiny.submit(seed=42)))
    assert tiny.pictures(tiny.until(tiny.submit(seed=42))) == reference
    tiny.worker().kill()
    assert tiny.pictures(tiny.until(tiny.submit(seed=42))) == reference
    for isolation in ("process", "thread"):
        with Server(tmp_path / isolation, IMAGEGEN_ISOLATION=isolation) as server:
            assert server.pictures(server.until(server.submit(seed=42))) == reference


def test_killing_a_worker_loses_no_task(tiny: Server) -> None:
    ids = [tiny.submit(seed=1, steps=150), tiny.submit(seed=2)]
    tiny.until(ids[0], "processing")
    tiny.worker().kill()
    first, second = (tiny.until(task_id) for task_id in ids)
    assert (first["status"], first["attempt"]) == ("completed", 2)
    assert (second["status"], second["attempt"]) == ("completed", 1)


def test_twelve_tasks_survive_kill_9_with_the_same_pixels(tiny: Server, tmp_path: Path) -> None:
    expected = [tiny.pictures(tiny.until(task_id)) for task_id in [tiny.submit(seed=seed) for seed in SEEDS]]
    with Server(tmp_path) as server:
        ids = [server.submit(seed=seed) for seed in SEEDS]
        server.until(ids[1], "processing", "completed")
        worker = server.worker()
        server.kill()
    psutil.wait_procs([worker], PATIENCE_S)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    with Server(tmp_path) as server:
        done = [server.until(task_id) for task_id in ids]
        assert [task["status"] for task in done] == ["completed"] * 12
        assert [server.pictures(task) for task in done] == expected
        assert server.http.get("/tasks").json()["total"] == 12


def test_a_poisonous_task_fails_alone(tmp_path: Path, fake_yaml: Path) -> None:
    with Server(tmp_path / "data", fake_yaml) as server:
        prompts = ["fine", "fine", "poison", "fine", "fine"]
        done = [server.until(task_id) for task_id in [server.submit(prompt, model="fake") for prompt in prompts]]
    assert [task["status"] for task in done] == ["completed", "completed", "failed", "completed", "completed"]
    assert (done[2]["error_code"], done[2]["attempt"]) == ("worker_crashed", 2)
    assert "SIGABRT" in done[2]["error_message"]


def test_sigterm_finishes_the_running_task_keeps_the_waiting_ones_and_exits_0(tmp_path: Path, fake_yaml: Path) -> None:
    with Server(tmp_path / "data", fake_yaml) as server:
        ids = [server.submit(steps=20) for _ in range(4)]
        server.until(ids[0], "processing")
        with server.http.stream("GET", f"/task/{ids[3]}/events") as stream:
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert "completed" not in stream.read().decode()  # the stream ends at once, cleanly
            streamed = time.monotonic() - began
        assert server.process.wait(PATIENCE_S) == 0
        assert streamed < time.monotonic() - began + 1
    the_log_tells_the_start_and_the_stop(server, tmp_path / "data", fake_yaml)
    with Server(tmp_path / "data", fake_yaml) as server:
        assert server.task(ids[0])["status"] == "completed"
        done = [server.until(task_id) for task_id in ids]
        assert [(task["status"], task["attempt"]) for task in done] == [("completed", 1)] * 4


def the_log_tells_the_start_and_the_stop(server: Server, data: Path, config: Path) -> None:
    lines = {it["event"]: it for it in map(json.loads, server.log)}
    about = {"version": imagegen.__version__, "config": str(config), "data_dir": str(data), "device": "cpu"}
    assert about.items() <= lines["starting"].items()
    assert about.items() <= lines["listening"].items()
    assert lines["listening"]["address"] == str(server.http.base_url).rstrip("/")
    assert lines["device_ready"]["device"] == "cpu"
    assert (lines["draining"]["reason"], lines["draining"]["running"]) == ("SIGTERM", 1)
    last = json.loads(server.log[-1])
    assert (last["event"], last["exit_code"]) == ("stopped", 0)


def test_while_it_drains_the_service_answers_all_but_new_tasks(tmp_path: Path, fake_yaml: Path) -> None:
    with Server(tmp_path / "data", fake_yaml) as server:
        task_id = server.submit(steps=200)
        server.until(task_id, "processing")
        server.process.send_signal(signal.SIGTERM)
        while server.http.get("/readyz").status_code == 200:
            time.sleep(0.01)
        assert server.http.get("/livez").status_code == 200
        assert server.http.post("/text2image", json={"prompt": "x"}).json()["code"] == "draining"
        assert server.task(task_id)["status"] == "processing"
        server.process.send_signal(signal.SIGTERM)  # a second one: put it back, do not wait
        assert server.process.wait(PATIENCE_S) == 0
    with Server(tmp_path / "data", fake_yaml) as server:
        task = server.until(task_id)
        assert (task["status"], task["attempt"]) == ("completed", 1)


def test_being_killed_during_loads_counts_no_attempt(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"load_seconds": 3600}))
    with Server(tmp_path / "data", config) as server:
        task_id = server.submit()
        server.until(task_id, "processing")
        server.kill()
    with Server(tmp_path / "data", config) as server:
        server.until(task_id, "processing")
        server.kill()
    config.write_text(fake_config())
    with Server(tmp_path / "data", config) as server:
        task = server.until(task_id)
        assert (task["status"], task["attempt"]) == ("completed", 1)


def test_a_data_directory_that_cannot_be_used_exits_73_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    command = [sys.executable, "-m", "imagegen", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 73
    assert "Cannot use the data directory" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("damage", ["in the middle", "at the head"])
def test_a_damaged_journal_exits_65_with_advice_and_is_left_alone(tmp_path: Path, damage: str) -> None:
    journal = tmp_path / "imagegen.sqlite3"
    with closing(sqlite3.connect(journal)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 900,)] * 50)
    data = bytearray(journal.read_bytes())
    place = 8192 if damage == "in the middle" else 0
    data[place : place + 100] = b"\xff" * 100
    journal.write_bytes(data)
    command = [sys.executable, "-m", "imagegen", "serve", "--port", "0", "--data-dir", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 65
    assert "damaged" in refused.stderr
    assert ".recover" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert journal.read_bytes() == data


def test_sigterm_does_not_wait_for_a_hanging_load(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"load_seconds": 3600}))
    with Server(tmp_path / "data", config, IMAGEGEN_DRAIN_TIMEOUT_S="0.1") as server:
        task_id = server.submit()
        server.until(task_id, "processing")
        assert server.terminate() == 0
    with Server(tmp_path / "data", config) as server:
        assert server.task(task_id)["status"] in ("pending", "processing")


def test_sigterm_does_not_wait_for_a_thread_that_hangs(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"fault": "hang", "fault_prompt": "poison"}))
    environment = {"IMAGEGEN_ISOLATION": "thread", "IMAGEGEN_DRAIN_TIMEOUT_S": "0.1"}
    with Server(tmp_path / "data", config, **environment) as server:
        task_id = server.submit("poison")
        server.until(task_id, "processing")
        assert server.terminate() == 0
    with Server(tmp_path / "data", config, **environment) as server:
        assert server.task(task_id)["status"] in ("pending", "processing")
        server.kill()


def test_a_broken_device_in_thread_mode_exits_70_and_the_journal_restores_the_task(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"fault": "device_fault", "fault_prompt": "poison"}))
    with Server(tmp_path / "data", config, IMAGEGEN_ISOLATION="thread") as server:
        ids = [server.submit("poison"), server.submit("fine")]
        assert server.process.wait(PATIENCE_S) == 70
    config.write_text(fake_config())
    with Server(tmp_path / "data", config, IMAGEGEN_ISOLATION="thread") as server:
        done = [server.until(task_id) for task_id in ids]
        assert [(task["status"], task["attempt"]) for task in done] == [("completed", 2), ("completed", 1)]


@pytest.mark.parametrize("path", ["/models/fake/load", "/text2image"])
def test_a_device_that_breaks_during_any_load_ends_the_process(tmp_path: Path, path: str) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config(fake={"fault": "device_fault", "fault_at": "load"}))
    with Server(tmp_path / "data", config, IMAGEGEN_ISOLATION="thread") as server:
        with suppress(httpx.TransportError):
            server.http.post(path, json={"prompt": "a star"} if path == "/text2image" else None)
        assert server.process.wait(PATIENCE_S) == 70


def test_a_second_instance_on_the_same_data_exits_75_and_a_killed_one_frees_the_lock(
    tmp_path: Path, fake_yaml: Path
) -> None:
    command = [sys.executable, "-m", "imagegen", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    with Server(tmp_path / "data", fake_yaml) as server:
        second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert second.returncode == 75
        assert str(server.process.pid) in second.stderr
        assert "Traceback" not in second.stderr
        server.kill()
    with Server(tmp_path / "data", fake_yaml) as third:
        assert third.http.get("/livez").status_code == 200


def test_a_journal_of_a_newer_version_and_a_full_disk_end_the_start_with_one_sentence(
    tmp_path: Path, fake_yaml: Path
) -> None:
    data = tmp_path / "data"
    with Server(data, fake_yaml) as server:
        assert server.terminate() == 0
    with closing(sqlite3.connect(data / "imagegen.sqlite3")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    newer = (data / "imagegen.sqlite3").read_bytes()
    for command, code, words in (
        (serve_command(data, fake_yaml), 65, "newer imagegen"),
        # The kernel refuses to write more than nothing to any file.
        (["prlimit", "--fsize=0", *serve_command(tmp_path / "full", fake_yaml)], 65, "refused"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert (data / "imagegen.sqlite3").read_bytes() == newer


def test_a_half_written_picture_of_a_killed_run_is_swept_away(tmp_path: Path, fake_yaml: Path) -> None:
    part = tmp_path / "data" / "images" / "20260101" / "x.png.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    with Server(tmp_path / "data", fake_yaml):
        assert not part.exists()


@pytest.mark.parametrize("body", [b'{"prompt":"x"', b"\x00" * 100])
def test_the_service_lives_on_after_nonsense_on_the_socket(tiny: Server, body: bytes) -> None:
    for content_type in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
        answer = tiny.http.post("/text2image", content=body, headers={"content-type": content_type})
        assert 400 <= answer.status_code < 500
    assert tiny.http.get("/livez").status_code == 200


def test_a_port_that_is_taken_is_one_clear_line(tiny: Server, tmp_path: Path) -> None:
    port = str(tiny.http.base_url.port)
    command = [sys.executable, "-m", "imagegen", "serve", "--port", port, "--data-dir", str(tmp_path)]
    taken = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert taken.returncode == 3
    assert "in use" in taken.stderr
    assert json.loads(taken.stderr.splitlines()[-1])["exit_code"] == 3
    assert "Traceback" not in taken.stderr


def test_secrets_of_the_environment_appear_nowhere(tmp_path: Path, fake_yaml: Path) -> None:
    secret = "hf_canarycanarycanarycanary"
    with Server(tmp_path / "data", fake_yaml, HF_TOKEN=secret) as server:
        server.until(server.submit())
        environment = server.worker().environ()
        server.until(server.submit("poison"))
        said = [server.http.get(path).text for path in ("/health", "/models/fake", "/tasks", "/openapi.json")]
        server.terminate()
    said += server.log
    assert secret not in "".join(said)
    assert secret not in environment.values()


def test_httpx_is_enough_as_a_client(tiny: Server) -> None:
    """A client in plain Python."""
    with httpx.Client(base_url=tiny.http.base_url, timeout=PATIENCE_S) as http:
        task = http.post("/text2image", json={"prompt": "a yellow star on a purple background"}).json()
        with http.stream("GET", task["links"]["events"]) as events:
            for _ in events.iter_lines():
                pass
        image = http.get(task["links"]["self"]).json()["images"][0]
        assert http.get(image["url"]).content.startswith(b"\x89PNG")


def test_the_process_leaves_nothing_behind(tmp_path: Path, fake_yaml: Path) -> None:
    with Server(tmp_path / "data", fake_yaml) as server:
        server.until(server.submit())
        worker = server.worker()
        assert server.terminate() == 0
    assert not worker.is_running()
    assert sorted(os.listdir(tmp_path / "data")) == ["config", "imagegen.sqlite3", "images", "lock", "tmp"]
    assert not os.listdir(tmp_path / "data" / "tmp")


def test_a_reader_of_the_log_that_goes_away_stops_no_task(tmp_path: Path, fake_yaml: Path) -> None:
    process = subprocess.Popen(
        serve_command(tmp_path / "data", fake_yaml), stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stderr is not None
    address = next(json.loads(line)["address"] for line in process.stderr if '"listening"' in line)
    process.stderr.close()
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as http:
        for _ in range(3):
            accepted = http.post("/text2image", json={"prompt": "x", "model": "fake"}, headers={"prefer": "wait=60"})
            assert (accepted.status_code, accepted.json()["status"]) == (200, "completed")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


EARLY_SIGNAL = """
import os, signal
from imagegen.cli import main, serving

read = serving.open_catalog

def interrupted(*given, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    return read(*given, **named)

serving.open_catalog = interrupted
main()
"""


def test_a_signal_in_the_first_moments_of_a_start_ends_it_like_a_later_one(tmp_path: Path) -> None:
    """The signal comes while models.yaml is read, long before the server has handlers of its own."""
    command = [sys.executable, "-c", EARLY_SIGNAL, "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    assert subprocess.run(command, env=environment(), timeout=PATIENCE_S, check=False).returncode == 0


def test_a_signal_while_the_program_is_imported_ends_it_like_a_later_one(tmp_path: Path) -> None:
    folder = str(tmp_path / "data")
    command = [sys.executable, "-X", "importtime", "-m", "imagegen", "serve", "--port", "0", "--data-dir", folder]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        assert any("| typer" in line for line in process.stderr)
        process.terminate()
        process.stderr.read()
    assert process.wait(PATIENCE_S) == 0


def test_a_hostile_socket_is_cut_off_and_probes_have_a_port_of_their_own(tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(fake_config())
    few = {"IMAGEGEN_PROBE_PORT": "0", "IMAGEGEN_MAX_CONNECTIONS": "16"}
    with Server(tmp_path / "data", config, **few) as server:
        address = (server.http.base_url.host, int(server.http.base_url.port or 0))
        probes = next(int(json.loads(line)["port"]) for line in server.log if '"probes_listening"' in line)
        with socket.create_connection(address, PATIENCE_S) as endless:
            endless.sendall(b"GET /tasks HTTP/1.1\r\n" + b"a:b\r\n" * 200)
            assert b" 431 " in endless.recv(1000)
        with ExitStack() as held:
            for _ in range(100):
                held.enter_context(socket.create_connection(address, PATIENCE_S))
            assert httpx.get(f"http://127.0.0.1:{probes}/livez").status_code == 200
            assert "imagegen_build_info" in httpx.get(f"http://127.0.0.1:{probes}/metrics").text
            assert httpx.get(f"http://127.0.0.1:{probes}/tasks").json()["code"] == "too_many_connections"
            assert httpx.get(f"http://127.0.0.1:{address[1]}/readyz").status_code == 200
            assert httpx.get(f"http://127.0.0.1:{address[1]}/tasks").json()["code"] == "too_many_connections"
        server.until(server.submit())
        assert all(json.loads(line) for line in server.log)
