"""Process settings: only from IMAGEGEN_*, each within its bounds."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from imagegen.builtin import default_config
from imagegen.settings import Settings
from tests.receiver import OLDER_SECRET, SECRET


@pytest.fixture(autouse=True)
def _a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("IMAGEGEN_"):
            monkeypatch.delenv(name)


def test_without_settings_the_service_is_reachable_from_this_machine_only() -> None:
    assert (Settings().host, Settings().port) == ("127.0.0.1", 5050)


def test_without_settings_models_run_in_a_process_of_their_own() -> None:
    assert Settings().isolation == "process"
    assert Settings().device == "auto"


def test_without_settings_the_file_that_ships_is_read() -> None:
    assert Settings().config == default_config()
    assert Settings().config.is_file()


def test_allowed_hosts_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEGEN_ALLOWED_HOSTS", "gpu.internal, GPU-7")
    assert Settings().allowed_hosts == {"gpu.internal", "gpu-7"}
    assert Settings(allowed_hosts=["a"]).allowed_hosts == {"a"}


def test_variables_have_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEGEN_PORT", "8080")
    monkeypatch.setenv("IMAGEGEN_DATA_DIR", "data/here")
    assert Settings().port == 8080
    assert Settings().data_dir == Path("data/here")


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGEGEN_PORT", "IMAGEGEN_DATA_DIR", "IMAGEGEN_CONFIG"):
        monkeypatch.setenv(name, "")
    assert Settings() == Settings(port=5050, config=default_config())
    assert Settings().data_dir.is_absolute()


def test_variables_without_the_prefix_are_someone_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PORT", "1"), ("HOST", "0.0.0.0"), ("DEVICE", "tpu"), ("CONFIG", "x")):
        monkeypatch.setenv(name, value)
    assert Settings() == Settings(host="127.0.0.1", port=5050)


def test_what_kubernetes_sets_for_a_service_called_imagegen_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {
        "IMAGEGEN_PORT": "tcp://10.0.0.1:5050",
        "IMAGEGEN_PORT_5050_TCP": "tcp://10.0.0.1:5050",
        "IMAGEGEN_PORT_5050_TCP_ADDR": "10.0.0.1",
        "IMAGEGEN_SERVICE_HOST": "10.0.0.1",
        "IMAGEGEN_SERVICE_PORT": "5050",
        "IMAGEGEN_SERVICE_PORT_HTTP": "5050",
        "IMAGEGEN_PROBE_PORT": "tcp://10.0.0.2:9090",
        "IMAGEGEN_PROBE_SERVICE_HOST": "10.0.0.2",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert (Settings().port, Settings().probe_port) == (5050, None)
    assert Settings.linked_variables(links) == sorted(links)
    assert Settings.unknown_variables(links | {"IMAGEGEN_SERVICE_HOTS": "x"}) == {"IMAGEGEN_SERVICE_HOTS": ""}
    ours = {"IMAGEGEN_PORT": "8080", "IMAGEGEN_HOST": "::"}
    assert Settings.linked_variables(ours) == []
    monkeypatch.setenv("IMAGEGEN_PORT", "tcp:8080")
    with pytest.raises(ValidationError):
        Settings()


def test_the_command_line_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEGEN_PORT", "8080")
    assert Settings(port=9090).port == 9090


def test_settings_are_fixed_for_the_life_of_the_process() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"prot": 5050})


# -- folders -----------------------------------------------------------------------------------------------------------


def test_weights_are_in_the_data_directory_by_default() -> None:
    settings = Settings(data_dir=Path("data"))
    assert settings.models_path == Path("data/models")
    assert settings.loras_path == Path("data/models/loras")


def test_each_folder_can_be_somewhere_else() -> None:
    settings = Settings(data_dir=Path("data"), models_dir=Path("weights"))
    assert (settings.models_path, settings.loras_path) == (Path("weights"), Path("weights/loras"))
    settings = Settings(data_dir=Path("data"), loras_dir=Path("styles"))
    assert (settings.models_path, settings.loras_path) == (Path("data/models"), Path("styles"))


def test_pictures_are_kept_in_a_folder_unless_a_bucket_is_named_then_they_only_pass_through_one() -> None:
    assert Settings(data_dir=Path("data")).images_path == Path("data/images")
    assert Settings(data_dir=Path("data"), store="s3://pictures").images_path == Path("data/spool")


def test_urls_of_a_bucket_need_one() -> None:
    with pytest.raises(ValidationError, match="IMAGEGEN_STORE"):
        Settings(store_urls="presigned")
    assert Settings(store="s3://pictures", store_urls="presigned").store_url_s == 3600


def test_a_public_url_has_the_prefix_of_all_paths() -> None:
    assert Settings().prefix == ""
    assert Settings(root_path="/imagegen").prefix == "/imagegen"
    assert Settings(public_url="https://example.com/a/b").prefix == "/a/b"
    assert Settings(public_url="https://example.com/a", root_path="/a").prefix == "/a"
    with pytest.raises(ValidationError, match="IMAGEGEN_ROOT_PATH must be the path of IMAGEGEN_PUBLIC_URL"):
        Settings(public_url="https://example.com", root_path="/a")


def test_trusted_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEGEN_TRUSTED_PROXIES", "127.0.0.1, 10.1.0.0/16,::1")
    assert [str(network) for network in Settings().trusted_proxies] == ["127.0.0.1/32", "10.1.0.0/16", "::1/128"]
    for wrong in ("proxy", "10.1.0.1/16", "*"):
        monkeypatch.setenv("IMAGEGEN_TRUSTED_PROXIES", wrong)
        with pytest.raises(ValidationError):
            Settings()


# -- bounds ------------------------------------------------------------------------------------------------------------

BOUNDS: dict[str, tuple[list[str], list[str]]] = {
    "port": (["0", "65535"], ["-1", "65536", "http", "5050.5"]),
    "device": (
        [
            *("auto", "cpu", "cuda", "cuda:0", "cuda:15", "GPU-8932f937", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"),
            *("MIG-6de6a9a3-9b07-5b0c-a5a2-1e1a1d9ad1f5", "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"),
        ],
        ["gpu", "cuda:", "cuda:100", "cuda:1;x", "CPU", "GPU-", "GPU-x,1", "MIG-1/2", "MIG-6de6a9a3,0", "0"],
    ),
    "isolation": (["process", "thread"], ["none", "Process"]),
    "root_path": (["/imagegen", "/a/b.c"], ["imagegen", "/imagegen/", "/", "//a", "/a b", "https://a/b"]),
    "store": (["s3://abc", "s3://a-b.c/d/e_f"], ["https://x/y", "s3://", "s3:///x", "pictures", "s3://a b/c"]),
    "store_urls": (["proxied"], ["public"]),
    "store_url_s": (["60", "604800"], ["59", "604801", "nan"]),
    "store_down": (["wait", "fail"], ["retry"]),
    "max_queue": (["1", "100000"], ["0", "100001", "-5"]),
    "max_batch_size": (["1", "64"], ["0", "65"]),
    "max_pixels": (["4096", "67108864"], ["4095", "67108865"]),
    "max_pixel_steps": (["1000000", "1000000000000000"], ["999999", "1000000000000001"]),
    "max_input_pixels": (["4096", "178956970"], ["4095", "178956971"]),
    "max_body_bytes": (["1024", "268435456"], ["1023", "268435457"]),
    "retention_days": (["0", "0.5", "36500"], ["-1", "36501", "nan", "inf"]),
    "drain_timeout_s": (["0", "3600"], ["-1", "3601", "nan"]),
    "load_timeout_s": (["0.1", "86400"], ["0", "86401", "nan"]),
    "step_timeout_s": (["0.1", "86400"], ["0", "86401", "nan"]),
    "webhook_timeout_s": (["0.1", "60"], ["0", "61", "nan"]),
    "housekeeping_s": (["0.1", "3600"], ["0", "3601", "nan"]),
}


def both(index: int) -> list[Any]:
    return [(name, value) for name, values in BOUNDS.items() for value in values[index]]


@pytest.mark.parametrize(("name", "value"), both(0))
def test_a_value_within_its_bounds_is_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMAGEGEN_{name.upper()}", value)
    taken = getattr(Settings(), name)
    assert str(taken) == value or float(taken) == float(value)


@pytest.mark.parametrize(("name", "value"), both(1))
def test_a_value_out_of_its_bounds_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMAGEGEN_{name.upper()}", value)
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert [error["loc"] for error in raised.value.errors()] == [(name,)]


def test_the_default_input_picture_fits_the_default_body() -> None:
    # 24 megapixels of JPEG at a byte a pixel, in base64.
    assert Settings().max_input_pixels * 4 / 3 <= Settings().max_upload_bytes


# -- webhooks ----------------------------------------------------------------------------------------------------------


def test_without_a_secret_there_are_no_webhooks_and_without_a_word_they_stay_outside() -> None:
    settings = Settings()
    assert (settings.webhook_secrets, settings.webhook_networks, settings.webhook_http) == ((), (), False)
    assert settings.webhook_ports == {80, 443}


def test_secrets_of_webhooks_are_a_list_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEGEN_WEBHOOK_SECRETS", f"{SECRET}, {OLDER_SECRET}")
    assert [each.get_secret_value() for each in Settings().webhook_secrets] == [SECRET, OLDER_SECRET]
    assert SECRET[6:] not in repr(Settings())


@pytest.mark.parametrize("bad", ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_short", "whsec_", "whsec_!" + "A" * 40])
def test_an_invalid_secret_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("IMAGEGEN_WEBHOOK_SECRETS", f"{SECRET},{bad}")
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert SECRET not in str(raised.value)
    assert bad not in str(raised.value).replace("must be whsec_ and", "") or bad == "whsec_"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("webhook_networks", "10.0.0.0/33"),
        ("webhook_networks", "64:ff9b::/96"),  # stands for all of IPv4
        ("webhook_hosts", "*"),
        ("webhook_hosts", "a.*.example.com"),
        ("webhook_ports", "0"),
        ("webhook_ports", ","),
        ("webhook_delays_s", "-1"),
        ("webhook_delays_s", "soon"),
    ],
)
def test_where_and_when_is_checked_at_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMAGEGEN_{name.upper()}", value)
    with pytest.raises(ValidationError) as raised:
        Settings()
    assert raised.value.errors()[0]["loc"][0] == name
