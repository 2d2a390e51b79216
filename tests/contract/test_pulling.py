"""The download process, against a local fake of the hub that fails in every way that the real one does."""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants

from imagegen.catalog.catalog import HubFiles
from imagegen.catalog.hub_cache import HubCache, is_here
from imagegen.catalog.pipeline_files import Dtype
from imagegen.catalog.sources import weights_here
from imagegen.core.errors import FailureCode
from imagegen.hub.process import fetch_in_process
from imagegen.hub.protocol import Fetch, Fetched, Progress, Refused
from imagegen.loaders.stable_diffusion import StableDiffusionSpec
from tests.hub import Hub, Repo

#: Large enough to be cut in the middle.
WEIGHTS = os.urandom(3_000_000)
BIG = "vae/diffusion_pytorch_model.safetensors"
FILES = {
    "README.md": b"# A model",
    "everything.safetensors": b"all in one",
    "model_index.json": b'{"vae": ["diffusers", "AutoencoderKL"]}',
    "vae/config.json": b"{}",
    BIG: WEIGHTS,
    "vae/diffusion_pytorch_model.fp16.safetensors": WEIGHTS[:100],
}
NEEDED = ["model_index.json", "vae/config.json", BIG]
NAME = "org/name"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.add(NAME, FILES)
        set_home(monkeypatch, hub, tmp_path)
        yield hub


def set_home(monkeypatch: pytest.MonkeyPatch, hub: Hub, home: Path, token: str | None = None) -> None:
    for name, value in hub.environment(home, token).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))


def wish(source: str = NAME, files: tuple[str, ...] = ()) -> HubFiles:
    return HubFiles.of(source, files=files)


def pull(*wishes: HubFiles, reserve_bytes: int = 0) -> Fetched | Refused:
    command = Fetch(files=wishes or (wish(),), reserve_bytes=reserve_bytes)
    return asyncio.run(fetch_in_process(command, lambda progress: None))


def refused(*wishes: HubFiles, reserve_bytes: int = 0) -> Refused:
    outcome = pull(*wishes, reserve_bytes=reserve_bytes)
    assert isinstance(outcome, Refused)
    return outcome


async def cut_short(hub: Hub, wish: HubFiles) -> None:
    """Pull until half of the large file has arrived, then cancel."""
    hub.flowing.clear()
    half = asyncio.Event()

    def on_progress(progress: Progress) -> None:
        if progress.bytes_done >= len(WEIGHTS) // 3:
            half.set()

    pulling = asyncio.create_task(fetch_in_process(Fetch(files=(wish,), reserve_bytes=0), on_progress))
    await half.wait()
    pulling.cancel()
    with suppress(asyncio.CancelledError):
        await pulling
    hub.flowing.set()


def snapshot(repo: Repo) -> Path:
    return HubCache(NAME).folder / "snapshots" / repo.commit


# -- what comes ----------------------------------------------------------------------------------------------------


def test_only_needed_files_are_pulled(hub: Hub) -> None:
    assert pull() == Fetched()
    folder = snapshot(hub.repos[NAME])
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == sorted(NEEDED)
    assert all((folder / path).read_bytes() == FILES[path] for path in NEEDED)
    assert is_here(wish())
    assert (HubCache(NAME).folder / "refs" / "main").read_text() == hub.repos[NAME].commit


BOTH = FILES | {"vae/diffusion_pytorch_model.bf16.safetensors": WEIGHTS[:200]}


@pytest.mark.parametrize(
    ("dtype", "comes"),
    [
        ("float32", BIG),
        ("float16", "vae/diffusion_pytorch_model.fp16.safetensors"),
        ("bfloat16", "vae/diffusion_pytorch_model.bf16.safetensors"),
    ],
)
def test_of_several_copies_the_one_in_the_entrys_dtype_is_pulled(hub: Hub, dtype: Dtype, comes: str) -> None:
    hub.add(NAME, BOTH)
    wanted = HubFiles.of(NAME, dtype=dtype)
    assert pull(wanted) == Fetched()
    assert hub.sent == len(BOTH[comes])
    assert is_here(wanted)


@pytest.mark.parametrize("copy", ["fp16", "bf16"])
def test_a_repository_with_nothing_but_a_copy_comes_for_every_dtype(hub: Hub, copy: str) -> None:
    hub.add(NAME, {path: content for path, content in BOTH.items() if not path.startswith("vae/diff") or copy in path})
    assert pull() == Fetched()
    assert is_here(wish())


def test_a_tokenizer_that_a_newer_library_has_saved_comes(hub: Hub) -> None:
    index = b'{"tokenizer": ["transformers", "SentencePieceBackend"], "vae": ["diffusers", "AutoencoderKL"]}'
    files = {"model_index.json": index, "tokenizer/tokenizer_config.json": b"{}", "tokenizer/spiece.model": b"x"}
    hub.add(NAME, FILES | files)
    assert pull() == Fetched()
    assert (snapshot(hub.repos[NAME]) / "tokenizer" / "spiece.model").is_file()
    assert is_here(wish())


def test_a_checker_that_no_load_opens_is_not_fetched_and_refuses_nothing(hub: Hub) -> None:
    entry = {"name": "A", "type": "stable_diffusion", "pipeline_class": "StableDiffusionPipeline", "hf_path": NAME}
    index = b'{"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "vae": ["diffusers", "x"]}'
    hub.add(NAME, FILES | {"model_index.json": index, "safety_checker/pytorch_model.bin": WEIGHTS})
    assert pull(*StableDiffusionSpec.model_validate(entry).hub_files()) == Fetched()
    assert hub.sent == len(WEIGHTS)
    assert weights_here(StableDiffusionSpec.model_validate(entry), Path("none"))


@pytest.mark.parametrize("home", ["", "vae/"])
def test_a_part_is_pulled_alone_from_its_own_repository_or_from_a_pipelines(hub: Hub, home: str) -> None:
    part = {f"{home}config.json": b"{}", f"{home}diffusion_pytorch_model.safetensors": WEIGHTS[:500]}
    beside = {"README.md": b"#", "vae.safetensors": WEIGHTS, "unet/config.json": b"{}", "unet/x.safetensors": WEIGHTS}
    hub.add("org/vae", part | beside | ({"model_index.json": b"{}"} if home else {}))
    wanted = HubFiles.of("org/vae", part="vae")
    assert pull(wanted) == Fetched()
    assert hub.sent == 500
    assert is_here(wanted)


def test_a_pipeline_without_such_a_part_is_refused(hub: Hub) -> None:
    answer = refused(HubFiles.of(NAME, part="text_encoder"))
    assert answer.code is FailureCode.WEIGHTS_REFUSED
    assert "no complete part 'text_encoder'" in answer.message


def test_progress_is_reported_in_bytes_up_to_the_total(hub: Hub) -> None:
    told: list[Progress] = []
    asyncio.run(fetch_in_process(Fetch(files=(wish(),), reserve_bytes=0), told.append))
    total = sum(len(FILES[path]) for path in NEEDED)
    assert {progress.bytes_total for progress in told} == {total}
    assert told[-1].bytes_done == total
    assert [p.bytes_done for p in told] == sorted(p.bytes_done for p in told)


def test_present_files_are_not_downloaded_again(hub: Hub) -> None:
    pull()
    hub.asked.clear()
    assert pull() == Fetched()
    assert [asked.path for asked in hub.asked] == [f"/api/models/{NAME}"]


@pytest.mark.parametrize(("precision", "sent"), [("int4", 10), ("fp4", 20), (None, 30)])
def test_of_files_for_several_cards_only_the_one_for_this_card_is_pulled(
    hub: Hub, precision: str | None, sent: int
) -> None:
    hub.add("org/four", {"a-int4.safetensors": WEIGHTS[:10], "a-fp4.safetensors": WEIGHTS[:20]})
    names = (("int4", "a-int4.safetensors"), ("fp4", "a-fp4.safetensors"))
    wanted = HubFiles.of("org/four", by_precision=names).on_card(precision)
    assert pull(wanted) == Fetched()
    assert hub.sent == sent
    assert is_here(wanted)


def test_one_file_of_a_repository_and_of_several(hub: Hub) -> None:
    hub.add("org/gguf", {"a.gguf": b"GGUF" + WEIGHTS[:1000], "b.gguf": b"GGUF"})
    assert pull(wish("org/gguf", ("a.gguf",)), wish()) == Fetched()
    assert is_here(wish("org/gguf", ("a.gguf",)))
    assert not is_here(wish("org/gguf", ("b.gguf",)))
    assert is_here(wish())


def test_a_revision_is_found_under_its_own_name(hub: Hub) -> None:
    assert pull(wish(f"{NAME}@v1")) == Fetched()
    assert is_here(wish(f"{NAME}@v1"))
    assert is_here(wish(f"{NAME}@{hub.repos[NAME].commit}"))
    assert not is_here(wish())


def test_another_models_file_in_the_same_repository_stays_when_the_branch_moves_on(hub: Hub) -> None:
    hub.add("org/gguf", {"a.gguf": b"GGUF a"})
    pull(wish("org/gguf", ("a.gguf",)))
    hub.add("org/gguf", {"a.gguf": b"GGUF a", "b.gguf": b"GGUF b"})
    assert pull(wish("org/gguf", ("b.gguf",))) == Fetched()
    assert is_here(wish("org/gguf", ("a.gguf", "b.gguf")))
    assert len(hub.downloads("a.gguf")) == 1


# -- what is cut off -----------------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub) -> None:
    hub.cuts, hub.cut_after = 2, 1_000_000
    assert pull() == Fetched()
    begins = [asked.first_byte for asked in hub.downloads(BIG)]
    assert len(begins) == 3
    assert 0 == begins[0] < 700_000 < begins[1] < begins[2]
    assert hub.sent < len(WEIGHTS) * 1.5
    assert snapshot(hub.repos[NAME]).joinpath(BIG).read_bytes() == WEIGHTS


def test_a_cancelled_download_resumes_in_another_process(hub: Hub) -> None:
    asyncio.run(cut_short(hub, wish()))
    assert not is_here(wish())
    assert HubCache(NAME).snapshot(None) is None  # half a model is no model
    hub.asked.clear()
    assert pull() == Fetched()
    assert [asked.first_byte > 700_000 for asked in hub.downloads(BIG)] == [True]
    assert snapshot(hub.repos[NAME]).joinpath(BIG).read_bytes() == WEIGHTS


def test_an_older_snapshot_is_used_until_the_new_one_is_complete(hub: Hub) -> None:
    pull()
    older = snapshot(hub.repos[NAME])
    hub.add(NAME, FILES | {BIG: WEIGHTS[::-1]})
    asyncio.run(cut_short(hub, wish()))
    assert HubCache(NAME).snapshot(None) == older
    assert is_here(wish())


def test_two_processes_that_want_the_same_share_it(hub: Hub) -> None:
    async def both() -> list[Fetched | Refused]:
        command = Fetch(files=(wish(),), reserve_bytes=0)
        return await asyncio.gather(*(fetch_in_process(command, lambda progress: None) for _ in range(2)))

    assert asyncio.run(both()) == [Fetched(), Fetched()]
    assert hub.sent == len(WEIGHTS)


def test_a_hub_with_a_temporary_error_is_retried(hub: Hub) -> None:
    hub.stumbles = [503, 429]
    assert pull() == Fetched()
    assert len(hub.downloads(BIG)) == 3


def test_a_long_wait_during_a_download_is_reported_instead_of_slept(hub: Hub) -> None:
    hub.stumbles, hub.stumble_wait = [429], 120
    answer = refused()
    assert (answer.code, answer.retry_after) == (FailureCode.HUB_RATE_LIMITED, 120)
    assert pull() == Fetched()


def test_a_hub_that_is_down_is_not_retried_for_ever(hub: Hub) -> None:
    hub.stumbles = [503] * 9
    answer = refused()
    assert answer.code is FailureCode.HUB_UNREACHABLE
    assert "status 503" in answer.message


def test_an_unreachable_hub_is_reported(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    answer = refused()
    assert answer.code is FailureCode.HUB_UNREACHABLE
    assert "cannot be reached" in answer.message


@pytest.mark.parametrize("status", [None, 403, 503])
def test_a_mirror_may_need_a_password_which_nothing_shows(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int | None
) -> None:
    """`status`: what the mirror answers; None: what is asked for."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:canary@127.0.0.1:{hub.port}")
    monkeypatch.setenv("HF_DEBUG", "1")  # the library logs every request with its URL
    hub.status = status
    hub.stumbles = [503]
    outcome = pull()
    assert (outcome == Fetched()) == (status is None)
    assert hub.asked[0].password == "user:canary"
    assert "canary" not in outcome.model_dump_json() + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("HF_ENDPOINT", "http://user:canary@127.0.0.1:1"),
        ("HF_ENDPOINT", "http://user:canary@127.0.0.1:none"),
        ("HTTP_PROXY", "http://user:canary@127.0.0.1:1"),
        ("HTTP_PROXY", "socks9://user:canary@127.0.0.1:1"),
        ("ALL_PROXY", "http://user:canary@[127.0.0.1:1"),
    ],
)
def test_no_error_shows_the_password_of_a_mirror_or_a_proxy(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], variable: str, address: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv(variable, address)
    answer = refused()
    assert answer.code in (FailureCode.HUB_UNREACHABLE, FailureCode.PULL_CRASHED)
    assert "canary" not in answer.message + "".join(capfd.readouterr())


def test_offline_is_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refused().message
    assert hub.asked == []


# -- what is damaged -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["damaged", "truncated"])
@pytest.mark.parametrize("path", [BIG, "vae/config.json"])
def test_a_file_that_differs_from_its_description_is_removed(hub: Hub, fault: str, path: str) -> None:
    hub.add(NAME, FILES | {"vae/config.json": b"{}" * 100}, **{fault: {path}})
    answer = refused()
    assert answer.code is FailureCode.CHECKSUM_MISMATCH
    assert path in answer.message
    assert not is_here(wish())
    hub.add(NAME, FILES)
    assert pull() == Fetched()


def test_a_file_that_goes_on_behind_its_end_is_cut_off(hub: Hub) -> None:
    hub.add(NAME, FILES, longer={BIG})
    answer = refused()
    assert answer.code is FailureCode.CHECKSUM_MISMATCH
    assert f"'{BIG}' of '{NAME}' is longer than the hub has declared" in answer.message
    assert not list(HubCache(NAME).folder.glob("blobs/*.incomplete"))
    hub.add(NAME, FILES)
    assert pull() == Fetched()


def test_bytes_of_another_file_in_the_cache_do_not_survive(hub: Hub) -> None:
    """Like after a power cut: a partial file whose end is not what was written."""
    asyncio.run(cut_short(hub, wish()))
    (part,) = HubCache(NAME).folder.glob("blobs/*.incomplete")
    part.write_bytes(bytes(part.stat().st_size))
    assert refused().code is FailureCode.CHECKSUM_MISMATCH
    assert pull() == Fetched()


@pytest.mark.parametrize(
    "files",
    [
        {"model_index.json": b"not JSON"},
        {"../outside.json": b"{}"},
        {"vae//config.json": b"{}"},
    ],
)
def test_nonsense_in_a_repository_is_refused(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add(NAME, FILES | files)
    assert refused().code is FailureCode.HUB_UNREACHABLE


@pytest.mark.parametrize(
    ("gone", "words"),
    [(BIG, "no safetensors weights for its part 'vae'"), ("model_index.json", "no diffusers pipeline")],
)
def test_a_repository_that_cannot_be_loaded_is_not_fetched(hub: Hub, gone: str, words: str) -> None:
    left = {path: content for path, content in FILES.items() if path != gone and "fp16" not in path}
    hub.add(NAME, left | {"vae/weights.bin": WEIGHTS})
    answer = refused()
    assert answer.code is FailureCode.WEIGHTS_REFUSED
    assert words in answer.message
    assert hub.sent == 0


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "hf_stand_in_token"])
def test_a_gated_repository_is_refused_with_advice(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None
) -> None:
    set_home(monkeypatch, hub, tmp_path, token)
    hub.add(NAME, FILES, gated=True)
    answer = refused()
    assert answer.code is FailureCode.HUB_GATED
    assert "accept its licence" in answer.message
    assert "HF_TOKEN" in answer.message


def test_a_token_that_is_not_valid(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_home(monkeypatch, hub, tmp_path, "hf_of_yesterday")
    answer = refused()
    assert answer.code is FailureCode.HUB_UNAUTHORIZED
    assert "does not accept the token" in answer.message
    assert "hf_of_yesterday" not in answer.model_dump_json()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/nothing", "no repository 'org/nothing'"),
        ("org/private", "it is private and HF_TOKEN is not set"),
        (f"{NAME}@v9", "no such revision"),
        ("org/a--b", "not a valid name"),
    ],
)
def test_what_does_not_exist(hub: Hub, source: str, words: str) -> None:
    hub.add("org/private", FILES, private=True)
    answer = refused(wish(source))
    assert answer.code is FailureCode.HUB_NOT_FOUND
    assert words in answer.message


def test_a_file_that_does_not_exist(hub: Hub) -> None:
    answer = refused(wish(files=("a.gguf",)))
    assert answer.code is FailureCode.HUB_NOT_FOUND
    assert "'a.gguf'" in answer.message


def test_a_private_repository_is_downloaded_with_the_token_which_no_other_host_gets(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_home(monkeypatch, hub, tmp_path, hub.token)
    hub.add(NAME, FILES, private=True)
    assert pull() == Fetched()
    assert {asked.token for asked in hub.asked if not asked.path.startswith("/cdn/")} == {hub.token}
    assert [asked.token for asked in hub.downloads(BIG)] == [None]


def test_a_rate_limit_has_the_time_to_wait(hub: Hub) -> None:
    hub.rate_limit = 300
    answer = refused()
    assert (answer.code, answer.retry_after) == (FailureCode.HUB_RATE_LIMITED, 300)
    assert "in 300 seconds" in answer.message


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "hub_unauthorized"), (404, "hub_not_found"), (503, "hub_unreachable"), (200, "hub_unreachable")],
)
def test_other_refusals(hub: Hub, status: int, code: str) -> None:
    hub.status = status
    assert refused().code == code


# -- the disk ------------------------------------------------------------------------------------------------------


def test_room_is_looked_for_before_anything_is_fetched(hub: Hub) -> None:
    answer = refused(reserve_bytes=2**60)
    assert answer.code is FailureCode.STORAGE_FULL
    assert "GB" in answer.message
    assert hub.sent == 0


def test_a_disk_that_is_too_small_is_reported_before_the_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[int], Path]
) -> None:
    set_home(monkeypatch, hub, small_disk(2_000_000))
    assert refused().code is FailureCode.STORAGE_FULL
    assert hub.sent == 0


def test_a_disk_that_fills_up_keeps_the_arrived_bytes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[int], Path]
) -> None:
    home = small_disk(4_000_000)
    set_home(monkeypatch, hub, home)
    hub.flowing.clear()

    async def fill_the_disk() -> Fetched | Refused:
        half = asyncio.Event()

        def on_progress(progress: Progress) -> None:
            if progress.bytes_done >= len(WEIGHTS) // 3:
                half.set()

        pulling = asyncio.create_task(fetch_in_process(Fetch(files=(wish(),), reserve_bytes=0), on_progress))
        await half.wait()
        with suppress(OSError), (home / "other").open("wb") as other:
            while True:
                other.write(bytes(4096))
                other.flush()
        hub.flowing.set()
        return await pulling

    outcome = asyncio.run(fill_the_disk())
    assert isinstance(outcome, Refused)
    assert outcome.code is FailureCode.STORAGE_FULL
    assert str(home) not in outcome.message
    (home / "other").unlink()
    hub.asked.clear()
    assert pull() == Fetched()
    assert [asked.first_byte > 700_000 for asked in hub.downloads(BIG)] == [True]


def test_a_cache_that_cannot_be_written_to(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    set_home(monkeypatch, hub, tmp_path / "file")
    answer = refused()
    assert answer.code is FailureCode.STORAGE_FAILED
    assert str(tmp_path) not in answer.message
