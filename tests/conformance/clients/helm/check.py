"""The chart in deploy/helm, rendered by Helm itself: Kubernetes' schemas take every object, strictly.

The schemas come with kubernetes-validate. It has none of the Prometheus operator, so of its objects the names are
checked that Prometheus needs.
"""

from pathlib import Path

import helm_python
import kubernetes_validate
import yaml

ROOT = next(it for it in Path(__file__).resolve().parents if (it / "deploy" / "helm").is_dir())
CHART = ROOT / "deploy" / "helm" / "imagegen"

EVERYTHING = {
    "models": "models:\n  tiny: {name: Tiny, type: diffusers}\n",
    "runtimeClassName": "nvidia",
    "imagePullSecrets": [{"name": "registry"}],
    "secrets": {"environment": "imagegen", "keys": "imagegen-keys"},
    "ingress": {"enabled": True, "path": "/imagegen", "tlsSecret": "tls"},
    "serviceMonitor": {"enabled": True, "keySecret": "imagegen-prometheus", "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "persistence": {"data": {"storageClass": "fast"}, "models": {"existingClaim": "weights"}},
    "service": {"annotations": {"a": "b"}},
    "podAnnotations": {"a": "b"},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
SETS = {
    "nothing": {},
    "everything": EVERYTHING,
    "a CPU": {"gpu": {"enabled": False}, "persistence": {"models": {"enabled": False}}},
}


def objects(values):
    """The objects of the chart by kind."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="one", namespace="pictures")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    found = [it for text in texts for it in yaml.safe_load_all(text) if it]
    by_kind = {}
    for it in found:
        by_kind.setdefault(it["kind"], []).append(it)
    return by_kind


linted = helm_python.lint(str(CHART), EVERYTHING, strict=True)
assert linted["errors"] == [], linted
for about, values in SETS.items():
    rendered = objects(values)
    for some in rendered.values():
        for it in some:
            if not it["apiVersion"].startswith("monitoring.coreos.com/"):
                kubernetes_validate.validate(it, "1.37", strict=True)
    print(f"{about}: {', '.join(f'{len(some)} {kind}' for kind, some in sorted(rendered.items()))}")

    (deployment,) = rendered["Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    variables = {it["name"]: it["value"] for it in container["env"]}
    assert len(variables) == len(container["env"])
    assert pod["terminationGracePeriodSeconds"] > int(variables["IMAGEGEN_DRAIN_TIMEOUT_S"])
    assert {it["name"] for it in container["volumeMounts"]} == {it["name"] for it in pod["volumes"]}
    ports = {it["name"]: it["containerPort"] for it in container["ports"]}
    assert ports["probes"] == int(variables["IMAGEGEN_PROBE_PORT"])
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "probes"
    wants_gpu = values.get("gpu", {}).get("enabled", True)
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == wants_gpu
    assert container["image"].endswith("-cuda") == wants_gpu
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (service,) = rendered["Service"]
    assert service["spec"]["selector"].items() <= labels.items()

whole = objects(EVERYTHING)
assert {it["metadata"]["name"] for it in whole["PersistentVolumeClaim"]} == {"one-imagegen-data"}
assert [it["data"] for it in whole["ConfigMap"]] == [{"models.yaml": EVERYTHING["models"]}]
(monitor,) = whole["ServiceMonitor"]
assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/name"
assert monitor["spec"]["selector"]["matchLabels"].items() <= whole["Service"][0]["metadata"]["labels"].items()
assert {it["metadata"]["name"] for it in whole["PrometheusRule"]} == {"one-imagegen-recording", "one-imagegen-alerts"}
for name, rule in zip(("recording", "alerts"), whole["PrometheusRule"], strict=True):
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy" / "prometheus" / f"{name}.yml").read_text())
