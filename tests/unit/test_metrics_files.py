"""The page about metrics, the dashboard, the rules and the alerts name what the service has, and nothing else."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.metrics import SUFFIXES, families, names_in

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "imagegen.json").read_text())
PAGE = (ROOT / "docs" / "metrics.md").read_text()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The kind of each metric by the name that the page has."""
    found = families(tmp_path_factory.mktemp("service"))
    return {it.name + ("_total" if it.type == "counter" else ""): it.type for it in found}


def samples(kinds: dict[str, str]) -> set[str]:
    """The names of all samples."""
    return {
        name.removesuffix("_total") + suffix for name, kind in kinds.items() for suffix in SUFFIXES.get(kind, ("",))
    }


def loaded(name: str) -> Any:
    return YAML(typ="safe").load(PROMETHEUS / name)


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in loaded(name)["groups"] for rule in group["rules"]]


def targets() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


EXPRESSIONS = {
    **{
        f"{rule.get('alert') or rule['record']}": rule["expr"]
        for it in ("alerts.yml", "recording.yml")
        for rule in rules(it)
    },
    **{f"panel {number}": expression for number, expression in enumerate(targets())},
}


def test_every_metric_has_a_line_on_the_page(kinds: dict[str, str]) -> None:
    listed = re.findall(r"^\| `(imagegen_[a-z0-9_]+)` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(name for name in kinds if name.startswith("imagegen_"))
    for name, kind in kinds.items():
        if name.startswith("imagegen_") and kind != "gauge":
            line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
            assert f"| {kind.capitalize()}: " in line


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_names_only_metrics_that_exist(expression: str, kinds: dict[str, str]) -> None:
    recorded = {rule["record"] for rule in rules("recording.yml")}
    plain = expression
    for name in recorded:
        plain = plain.replace(name, "")
    named = names_in(plain)
    assert named <= samples(kinds)
    assert named or plain != expression or "up{" in expression


def test_the_dashboard_shows_every_metric(kinds: dict[str, str]) -> None:
    shown = set().union(*map(names_in, targets()))
    hidden = {
        name
        for name, kind in kinds.items()
        if name.startswith("imagegen_")
        and not shown & {name.removesuffix("_total") + suffix for suffix in SUFFIXES[kind]}
    }
    assert hidden == set()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [it["gridPos"] for it in DASHBOARD["panels"]]
    cells = [
        (x, y) for it in places for x in range(it["x"], it["x"] + it["w"]) for y in range(it["y"], it["y"] + it["h"])
    ]
    assert len(cells) == len(set(cells))
    assert len({it["id"] for it in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert max(x for x, _ in cells) < 24


def test_every_alert_says_what_it_is_about_and_has_a_line_in_the_runbook() -> None:
    listed = re.findall(r"^\| `(Imagegen[A-Za-z]+)` \|", PAGE, re.MULTILINE)
    assert listed == [rule["alert"] for rule in rules("alerts.yml")]
    for rule in rules("alerts.yml"):
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/metrics.md#{rule['alert'].lower()}"


#: The functions and words of PromQL that the files use.
WORDS = {
    *("sum", "max", "min", "count", "by", "on", "unless", "rate", "increase", "histogram_quantile", "label_values"),
    *("up", "le", "instance"),
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_is_well_formed(expression: str) -> None:
    """What can be seen without Prometheus; the last test asks Prometheus itself."""
    without_texts = re.sub(r'"[^"]*"', "", expression)
    open_ones = []
    for character in without_texts:
        if character in "([{":
            open_ones.append({"(": ")", "[": "]", "{": "}"}[character])
        elif character in ")]}":
            assert open_ones.pop() == character
    assert not open_ones
    assert {word for word in re.findall(r"\b([a-z_]+)\(", without_texts)} <= WORDS
    # A counter or a histogram is read as a rate.
    for name in re.findall(r"imagegen_[a-z_]+_(?:total|bucket|sum|count)", without_texts):
        assert re.search(rf"(rate|increase)\({name}(\{{[^}}]*\}})?\[", without_texts), name


def test_the_configuration_names_the_rules() -> None:
    assert (
        loaded("prometheus.yml")["rule_files"]
        == loaded("alerts_test.yml")["rule_files"]
        == ["recording.yml", "alerts.yml"]
    )


@pytest.mark.parametrize(
    "command",
    [
        "check config --syntax-only prometheus.yml",
        "check rules --lint=all --lint-fatal recording.yml alerts.yml",
        "test rules alerts_test.yml",
    ],
)
def test_prometheus_reads_the_files_and_alerts_fire_when_they_should(command: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, *command.split()], cwd=PROMETHEUS, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
