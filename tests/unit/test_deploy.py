"""The files that run the service elsewhere: what they name exists, and what they promise is in them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from imagegen import __version__
from imagegen.api.native.tasks.waiting import MAX_WAIT_S
from imagegen.cli.common import EX_CANTCREAT, EX_CONFIG, EX_DATAERR
from imagegen.settings import CLIENT_VARIABLES, Settings
from tests.commands import command

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

#: What operators run or copy.
FILES = [
    *(ROOT / name for name in ("Dockerfile", "compose.yaml", "Makefile", "README.md", ".dockerignore")),
    *sorted((ROOT / ".github" / "workflows").iterdir()),
    *sorted(it for it in DEPLOY.rglob("*") if it.is_file()),
    *(ROOT / "docs" / f"{name}.md" for name in ("proxy", "docker", "kubernetes", "systemd")),
]


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def yaml_of(*path: str) -> Any:
    return YAML(typ="safe").load(ROOT.joinpath(*path).read_text())


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=named)
def test_every_variable_that_is_named_is_a_setting(file: Path) -> None:
    known = {f"IMAGEGEN_{name.upper()}" for name in (*Settings.model_fields, *CLIENT_VARIABLES)}
    assert set(re.findall(r"IMAGEGEN_[A-Z_]+[A-Z]", file.read_text())) <= known


#: Paths of this repository: below these folders, or at its top with one of these names.
_PATH = re.compile(
    r"(?<![\w./-])(?:\.\./|\./)*((?:deploy|config|docs|scripts|src|\.github|\.ci)/[\w./-]*\w"
    r"|constraints\.txt|pyproject\.toml|compose\.yaml|Dockerfile|Makefile|CHANGELOG\.md|LICENSE|README\.md)(?![\w/])"
)

#: What a command makes before it is read.
MADE = {"deploy/prometheus/imagegen.key"}


@pytest.mark.parametrize("file", FILES, ids=named)
def test_every_file_that_is_named_exists(file: Path) -> None:
    found = set(_PATH.findall(file.read_text())) - MADE
    if file.suffix == ".md" and file.parent.name == "docs":  # relative to the page
        found = {it for it in found if not (file.parent / it).exists()}
    assert [it for it in sorted(found) if not (ROOT / it).exists()] == []


#: A command line of the program: after a shell's prompt, a path, or the name of a container.
_COMMAND = re.compile(
    r"""(?:^|[\s/"'`$=])imagegen ((?:serve|run|keys|models|health|doctor|config|backup)\b[^`|<>;&\n"']*)"""
)


def commands(file: Path) -> list[str]:
    text = re.sub(r"\\\n\s*#?", " ", file.read_text())
    return [it.strip(" ,.") for it in _COMMAND.findall(text)]


def test_every_command_line_is_one() -> None:
    found = {(named(file), line) for file in FILES if file.name != "Makefile" for line in commands(file)}
    assert len(found) > 8
    for file, line in sorted(found):
        words = line.split()
        # Of a group, the second word is the command. With its help nothing is run, but what is unknown is refused.
        place = 2 if words[0] in ("keys", "models", "config") else 1
        shown = command(*words[:place], "--help", *words[place:])
        assert shown.exit_code == 0, f"{file}: imagegen {line}\n{shown.output}"


def test_the_commands_of_the_image_are_commands() -> None:
    said = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["imagegen"]\nCMD ["serve"]' in said
    assert 'CMD ["imagegen", "health"]' in said
    assert command("health", "--help").exit_code == 0


def test_every_target_of_make_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in FILES:
        if file.name != "Makefile":
            assert set(re.findall(r"(?:^|run: |[$#`] )make ([a-z]+)", file.read_text(), re.MULTILINE)) <= targets, file


# -- the image and compose.yaml ----------------------------------------------------------------------------------------


def test_the_images_user_is_not_root_and_owns_what_it_writes() -> None:
    last = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last
    variables = dict(re.findall(r"(\w+)=(/\S+)", last))
    volumes = ("/data", "/models")
    for name in ("IMAGEGEN_DATA_DIR", "IMAGEGEN_MODELS_DIR", "HF_HOME", "XDG_CACHE_HOME"):
        assert variables[name].startswith(volumes), name


def test_what_docker_copies_is_what_the_build_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for path in " ".join(copied).split():
        assert f"!{path}" in ignored
        assert (ROOT / path).exists()


def test_composes_service_is_confined_and_edits_its_models() -> None:
    services = yaml_of("compose.yaml")["services"]
    for name in ("imagegen", "imagegen-cuda"):
        it = services[name]
        assert it["read_only"] is True
        assert it["tmpfs"] == ["/tmp"]
        assert (it["cap_drop"], it["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
        assert it["ports"] == ["127.0.0.1:${PORT:-5050}:5050"]
        mounted = dict(reversed(volume.rsplit(":", 1)) for volume in it["volumes"])
        config = Path(it["environment"]["IMAGEGEN_CONFIG"])
        # A folder: a file that is mounted alone cannot be replaced.
        assert mounted[str(config.parent)] == "${CONFIG_DIR:-./config}"
        assert (ROOT / "config" / config.name).is_file()
        assert int(it["stop_grace_period"].removesuffix("s")) > Settings().drain_timeout_s
    assert services["imagegen"]["build"]["args"]["TORCH"] == "cpu"
    assert services["imagegen-cuda"]["build"]["args"]["TORCH"] == "cuda"
    assert services["imagegen-cuda"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert "profiles" not in services["imagegen"]


def test_the_profile_monitoring_finds_the_service_and_its_files() -> None:
    services = yaml_of("compose.yaml")["services"]
    watched = {name: it for name, it in services.items() if it.get("profiles") == ["monitoring"]}
    assert set(watched) == {"prometheus", "grafana"}
    scraped = yaml_of("deploy/prometheus/prometheus.yml")
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    for name in ("imagegen", "imagegen-cuda"):
        it = services[name]
        assert f"{it['networks']['default']['aliases'][0]}:5050" == target
        assert target.partition(":")[0] in it["environment"]["IMAGEGEN_ALLOWED_HOSTS"].split(",")
    for file in scraped["rule_files"]:
        assert (DEPLOY / "prometheus" / file).is_file()
    for it in watched.values():
        for volume in it["volumes"]:
            if volume.startswith("./"):
                assert (ROOT / volume.partition(":")[0]).exists()
    source = yaml_of("deploy/grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    folder = yaml_of("deploy/grafana/provisioning/dashboards/imagegen.yaml")["providers"][0]["options"]["path"]
    assert any(volume.endswith(f":{folder}/imagegen.json:ro") for volume in watched["grafana"]["volumes"])


# -- proxies -----------------------------------------------------------------------------------------------------------


def test_traefik_routes_the_prefix_to_the_service_and_takes_no_prefix_of_callers() -> None:
    static, http = yaml_of("deploy/traefik/traefik.yaml"), yaml_of("deploy/traefik/imagegen.yaml")["http"]
    router = http["routers"]["imagegen"]
    assert router["rule"] == "Host(`img.example.com`) && PathPrefix(`/imagegen`)"
    assert set(router["entryPoints"]) <= set(static["entryPoints"])
    assert router["tls"]["certResolver"] in static["certificatesResolvers"]
    assert set(router["middlewares"]) == set(http["middlewares"])
    # `buffering` would hold event streams back.
    assert [*http["middlewares"].values()] == [{"headers": {"customRequestHeaders": {"X-Forwarded-Prefix": ""}}}]
    balancer = http["services"][router["service"]]["loadBalancer"]
    assert balancer["serversTransport"] in http["serversTransports"]
    assert balancer["servers"] == [{"url": f"http://127.0.0.1:{Settings().port}"}]
    timeouts = http["serversTransports"]["imagegen"]["forwardingTimeouts"]
    assert int(timeouts["idleConnTimeout"].removesuffix("s")) < Settings().keep_alive_s
    assert int(timeouts["responseHeaderTimeout"].removesuffix("s")) > MAX_WAIT_S


def test_the_limits_of_the_proxies_are_those_of_the_service() -> None:
    settings = Settings()
    mib = settings.max_upload_bytes // 2**20
    for name in ("imagegen", "basic-auth", "forward-auth"):
        said = (DEPLOY / "nginx" / f"{name}.conf").read_text()
        assert f"client_max_body_size {mib}m;" in said
        (wait,) = re.findall(r"proxy_read_timeout (\d+)s;", said)
        assert int(wait) > MAX_WAIT_S
        # What a caller may not say itself.
        for header in ("For", "Proto", "Host", "Prefix"):
            assert f"proxy_set_header X-Forwarded-{header} " in said
    assert f"max_size {mib}MiB" in (DEPLOY / "caddy" / "Caddyfile").read_text()


# -- systemd -----------------------------------------------------------------------------------------------------------

UNIT = (DEPLOY / "systemd" / "imagegen.service").read_text()


def test_the_unit_gives_the_drain_its_time_and_knows_the_exit_codes_that_no_start_mends() -> None:
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert int(stop) > Settings().drain_timeout_s
    assert f"RestartPreventExitStatus={EX_DATAERR} {EX_CANTCREAT} {EX_CONFIG}\n" in UNIT


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze: apt install systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    # Its command must exist, and its user too.
    unit = tmp_path / "imagegen.service"
    unit.write_text(UNIT.replace("/opt/imagegen/bin/imagegen", sys.executable).replace("=imagegen\n", "=root\n"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "imagegen.service" in line]) == (0, [])


# -- the chart: Helm itself renders it in `make conformance` ---------------------------------------------------------

CHART = DEPLOY / "helm" / "imagegen"


def test_every_value_of_the_chart_is_in_its_values_with_a_default() -> None:
    values = yaml_of("deploy/helm/imagegen/values.yaml")
    text = "".join(it.read_text() for it in sorted((CHART / "templates").iterdir()))
    used = set(re.findall(r"\$?\.Values((?:\.\w+)+)", text))
    assert len(used) > 30
    for path in used:
        part = values
        for name in path.removeprefix(".").split("."):
            assert name in part, path
            part = part[name]
    # And the other way: nothing in it is without effect.
    assert {name for name in values if f".Values.{name}" not in text} == set()


def test_the_charts_version_is_that_of_the_package() -> None:
    about = yaml_of("deploy/helm/imagegen/Chart.yaml")
    assert (about["version"], about["appVersion"]) == (__version__, __version__)


def test_the_charts_rules_are_those_of_prometheus() -> None:
    for name in ("alerts.yml", "recording.yml"):
        assert (CHART / name).resolve() == DEPLOY / "prometheus" / name


# -- the release -------------------------------------------------------------------------------------------------------


def test_workflows_run_what_people_run_and_pin_the_actions() -> None:
    for name in ("ci.yml", "release.yml"):
        text = (ROOT / ".github" / "workflows" / name).read_text()
        assert ".ci/run" in text
        # A tag can be moved, a commit cannot.
        assert set(re.findall(r"uses: \S+@(\S+)", text)) == set(re.findall(r"uses: \S+@([0-9a-f]{40})", text))
    jobs = yaml_of(".github/workflows/release.yml")["jobs"]
    assert {name for name, job in jobs.items() if "check" in job.get("needs", ())} == {"wheel", "image", "docs"}
    assert jobs["publish"]["needs"] == ["wheel", "image", "docs"]
