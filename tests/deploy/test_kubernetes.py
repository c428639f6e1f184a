"""The Kubernetes manifests: right by Kubernetes' schemas, in themselves, and for the service that they run."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import kubernetes_validate
import pytest
import yaml

from serving.repository import AVAILABLE, Repository, load_repository
from serving.settings import PREFIX, Settings, load_settings
from serving.tasks import Endpoint, Query, discover
from tests.conftest import ROOT, Server
from tests.deploy.manifests import (
    KUBERNETES,
    Manifest,
    bytes_of,
    cores,
    customized,
    environment,
    name_of,
    of_kind,
    overlay,
    pods,
    read,
    selects,
)

OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/split")
FOLDERS = (*OVERLAYS, "kserve")
OLDEST = "1.30"
NEWEST = kubernetes_validate.latest_version()
NOT_KUBERNETES = {"PodMonitor", "InferenceService"}
"""Kinds of other projects, whose schemas Kubernetes does not have."""
SUPERVISOR, WORKER = 120 * 10**6, 225 * 10**6
"""Resident bytes, as they were measured."""
WORKER_BACK_SECONDS = 5

T = TypeVar("T")

every_overlay = pytest.mark.parametrize("name", OVERLAYS)
every_folder = pytest.mark.parametrize("name", FOLDERS)


def validate(manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def only(found: list[T]) -> T:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("path", sorted((KUBERNETES / "base").glob("[!k]*.yaml")), ids=lambda path: path.stem)
def test_each_file_of_the_base_is_valid_by_itself(path: Path, version: str):
    for manifest in read(path.read_text()):
        validate(manifest, version)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@every_folder
def test_everything_rendered_is_valid(name: str, version: str):
    manifests = overlay(name)
    assert manifests
    for manifest in manifests:
        if manifest["kind"] not in NOT_KUBERNETES:
            validate(manifest, version)
    for labels, pod in pods(manifests):
        metadata = {"name": "sextant", "labels": labels}
        validate({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}, version)


def test_a_misspelt_field_is_not_valid():
    deployment = copy.deepcopy(read((KUBERNETES / "base" / "deployment.yaml").read_text())[0])
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        validate(deployment, NEWEST)


@every_folder
def test_everything_lies_in_one_namespace_that_comes_along(name: str):
    namespace = name_of(only(of_kind(overlay(name), "Namespace")))
    for manifest in overlay(name):
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == namespace


@every_folder
def test_the_image_is_the_version_of_this_project(name: str):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for _, pod in pods(overlay(name)):
        assert only(pod["containers"])["image"] == f"sextant:{version}{'-gpu' if 'gpu' in name else ''}"


@every_overlay
def test_each_deployment_has_one_of_everything_that_looks_after_it(name: str):
    manifests = overlay(name)
    deployments = of_kind(manifests, "Deployment")
    assert deployments
    for deployment in deployments:
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert selects(deployment["spec"]["selector"]["matchLabels"], labels)
        only([it for it in of_kind(manifests, "Service") if selects(it["spec"]["selector"], labels)])
        for kind, field in (
            ("PodDisruptionBudget", "selector"),
            ("NetworkPolicy", "podSelector"),
            ("PodMonitor", "selector"),
        ):
            only([it for it in of_kind(manifests, kind) if selects(it["spec"][field]["matchLabels"], labels)])
        scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name_of(deployment)}
        only([it for it in of_kind(manifests, "HorizontalPodAutoscaler") if it["spec"]["scaleTargetRef"] == scaled])
        assert deployment["spec"]["template"]["spec"]["serviceAccountName"] in map(
            name_of, of_kind(manifests, "ServiceAccount")
        )


@every_overlay
def test_nothing_looks_after_what_is_not_there(name: str):
    manifests = overlay(name)
    labels = [labels for labels, _ in pods(manifests)]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in map(name_of, of_kind(manifests, "Deployment"))
        elif manifest["kind"] == "Service":
            only([it for it in labels if selects(spec["selector"], it)])
        elif "selector" in spec or "podSelector" in spec:
            selector = (spec.get("selector") or spec["podSelector"])["matchLabels"]
            assert selector
            assert any(selects(selector, it) for it in labels), manifest["kind"]


@every_overlay
def test_pods_spread_by_labels_that_they_carry(name: str):
    for labels, pod in pods(overlay(name)):
        spread = pod["topologySpreadConstraints"]
        assert {it["topologyKey"] for it in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        for constraint in spread:
            assert constraint["labelSelector"]["matchLabels"] == labels


@every_folder
def test_every_port_is_the_one_that_the_service_listens_on(name: str):
    manifests = overlay(name)
    for _, pod in pods(manifests):
        port = only(only(pod["containers"])["ports"])
        assert port["containerPort"] == load_settings(environment(pod["containers"][0])).port
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert pod["containers"][0][probe]["httpGet"]["port"] == port["name"]
        for service in of_kind(manifests, "Service"):
            assert only(service["spec"]["ports"])["targetPort"] == port["name"]
        for policy in of_kind(manifests, "NetworkPolicy"):
            assert policy["spec"]["ingress"] == [{"ports": [{"port": port["name"], "protocol": "TCP"}]}]
        for monitor in of_kind(manifests, "PodMonitor"):
            assert only(monitor["spec"]["podMetricsEndpoints"])["port"] == port["name"]


@every_folder
def test_the_service_answers_where_it_is_probed_and_scraped(name: str, server: Server):
    manifests = overlay(name)
    for _, pod in pods(manifests):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.get(pod["containers"][0][probe]["httpGet"]["path"]).status_code == 200
    for monitor in of_kind(manifests, "PodMonitor"):
        answer = server.get(monitor["spec"]["podMetricsEndpoints"][0]["path"])
        assert "sextant_queue_seconds_sum{" in answer.text


@every_folder
def test_readiness_and_liveness_ask_different_questions(name: str):
    for _, pod in pods(overlay(name)):
        container = pod["containers"][0]
        assert (
            container["startupProbe"]["httpGet"]["path"] == container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        )
        alive = container["livenessProbe"]
        assert alive["httpGet"]["path"] == "/livez"
        assert alive["periodSeconds"] * (alive["failureThreshold"] - 1) > WORKER_BACK_SECONDS


@every_folder
def test_every_variable_is_a_setting_with_a_value_that_it_takes(name: str):
    known = {PREFIX + setting.upper() for setting in Settings.model_fields}
    for _, pod in pods(overlay(name)):
        variables = environment(pod["containers"][0])
        load_settings(variables)
        assert {it for it in variables if it.startswith(PREFIX)} <= known
        # With it BentoML would not replace a worker that died.
        assert "BENTOML_CONTAINERIZED" not in variables
        # Links to a Service named sextant would set SEXTANT_PORT to an address.
        assert pod["enableServiceLinks"] is False


@every_folder
def test_limits_match_workers_and_leave_room_for_memory(name: str):
    for _, pod in pods(overlay(name)):
        container = pod["containers"][0]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests["cpu"] == limits["cpu"]  # Guaranteed, see the README
        assert requests["memory"] == limits["memory"]
        assert cores(limits["cpu"]).is_integer()
        settings = load_settings(environment(container))
        if settings.device == "cpu":
            assert settings.workers == cores(limits["cpu"])
        else:
            assert settings.workers == 1
        tmp = only(pod["volumes"])["emptyDir"]
        assert tmp["medium"] == "Memory"
        needed = SUPERVISOR + WORKER * settings.workers + bytes_of(tmp["sizeLimit"])
        assert needed < bytes_of(limits["memory"])


def test_the_gpu_overlay_asks_for_a_gpu_and_uses_it():
    for _, pod in pods(overlay("overlays/gpu")):
        container = pod["containers"][0]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert load_settings(environment(container)).device == "cuda"


@every_folder
def test_a_pod_is_given_the_time_that_it_may_take_to_end(name: str):
    for _, pod in pods(overlay(name)):
        container = pod["containers"][0]
        settings = load_settings(environment(container))
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert before + settings.grace_seconds < pod["terminationGracePeriodSeconds"]
        # Whatever was accepted last is answered, or told 504, before it would be given up.
        assert settings.drain_seconds + settings.deadline_seconds < settings.grace_seconds


@every_overlay
def test_a_rollout_needs_no_gpu_to_spare_and_elsewhere_takes_no_capacity(name: str):
    for deployment in of_kind(overlay(name), "Deployment"):
        surge = {"maxUnavailable": 1, "maxSurge": 0} if "gpu" in name else {"maxUnavailable": 0, "maxSurge": 1}
        assert deployment["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": surge}
        assert "replicas" not in deployment["spec"]  # they are the autoscaler's


@every_overlay
def test_a_disruption_leaves_at_least_one_pod(name: str):
    manifests = overlay(name)
    fewest = min(it["spec"]["minReplicas"] for it in of_kind(manifests, "HorizontalPodAutoscaler"))
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        assert 0 < budget["spec"]["maxUnavailable"] < fewest


@every_folder
def test_pods_are_locked_down_as_the_image_allows(name: str):
    recipe = (ROOT / "deploy" / "container" / "Containerfile").read_text()
    user, group = map(int, re.search(r"^USER (\d+):(\d+)$", recipe, re.MULTILINE).groups())  # type: ignore[union-attr]
    for _, pod in pods(overlay(name)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
            "fsGroup": group,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        container = only(pod["containers"])
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


@every_overlay
def test_pods_may_be_asked_and_ask_nobody(name: str):
    for policy in of_kind(overlay(name), "NetworkPolicy"):
        assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        assert "egress" not in policy["spec"]


def test_the_inference_service_runs_the_pod_of_the_cpu_overlay():
    (_, theirs), (_, ours) = only([*pods(overlay("kserve"))]), only([*pods(overlay("overlays/cpu"))])
    theirs, ours = copy.deepcopy(dict(theirs)), copy.deepcopy(dict(ours))
    assert theirs["containers"][0]["name"] == "kserve-container"
    assert theirs["containers"][0]["ports"][0]["name"] == "http1"
    del ours["serviceAccountName"]  # KServe's namespaces have their own
    renamed = yaml.safe_load(yaml.safe_dump(theirs).replace("kserve-container", "sextant").replace("http1", "http"))
    assert renamed == ours


def test_components_reach_every_deployment(tmp_path: Path):
    manifests = customized(
        tmp_path,
        "{namespace: vision, resources: [@/overlays/split], components: [@/components/otlp, @/components/models],"
        " images: [{name: sextant, newName: team/sextant}]}",
    )
    recipe = (ROOT / "deploy" / "container" / "Containerfile").read_text()
    (folders,) = re.findall(r"SEXTANT_MODELS_DIR=(\S+)", recipe)
    deployments, policies = of_kind(manifests, "Deployment"), of_kind(manifests, "NetworkPolicy")
    assert len(deployments) == len(policies) == 4
    for deployment in deployments:
        validate(deployment, OLDEST)
        pod = deployment["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert container["image"].startswith("team/sextant:")
        assert load_settings(environment(container)).otlp_endpoint.endswith(":4318")
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"] if mount.get("readOnly")}
        assert mounted == {"models": folders.split(":")[0]}
        assert "models" in [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    for policy in policies:
        validate(policy, OLDEST)
        open_ports = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]]
        assert open_ports == [53, 53, 4318]
    assert name_of(only(of_kind(manifests, "Namespace"))) == "vision"


@pytest.fixture(scope="module")
def tasks() -> Iterator[dict[str, Repository]]:
    """What each Deployment of the split loads of the committed models, by the name of its Service."""
    manifests = overlay("overlays/split")
    repositories = {}
    for labels, pod in pods(manifests):
        service = only([it for it in of_kind(manifests, "Service") if selects(it["spec"]["selector"], labels)])
        repositories[name_of(service)] = load_repository(load_settings(environment(pod["containers"][0])), None)
    yield repositories
    for repository in repositories.values():
        repository.close()


def routes() -> list[tuple[str, bool, str]]:
    """The paths of the Ingress, whether only the path itself is meant, and the Service that it goes to."""
    ingress = only(of_kind(overlay("overlays/split"), "Ingress"))
    found = []
    for rule in only(ingress["spec"]["rules"])["http"]["paths"]:
        service = rule["backend"]["service"]
        assert service["port"] == {"name": "http"}
        found.append((rule["path"], rule["pathType"] == "Exact", service["name"]))
    return found


def routed(path: str) -> str | None:
    """The Service that the Ingress sends a path to, if any."""
    fitting = [it for it in routes() if path == it[0] or (not it[1] and path.startswith(it[0] + "/"))]
    return max(fitting, key=lambda it: len(it[0]))[2] if fitting else None


def test_each_part_of_the_split_serves_all_that_it_names(tasks: dict[str, Repository]):
    for repository in tasks.values():
        assert repository.ready
        assert [record.reason for record in repository.records if record.state != AVAILABLE] == []


@pytest.mark.parametrize("endpoint", discover(), ids=lambda endpoint: endpoint.name)
def test_the_split_sends_each_route_to_models_that_answer_it(endpoint: Endpoint[Any], tasks: dict[str, Repository]):
    service = routed(endpoint.path)
    assert service is not None
    assert endpoint.select(tasks[service], Query())


def test_the_split_tells_of_each_model_where_it_is_served(tasks: dict[str, Repository]):
    served = {(model, service) for service, repository in tasks.items() for model in repository.predictors}
    models = "/v1/models/"
    assert served == {(path.removeprefix(models), service) for path, _, service in routes() if path.startswith(models)}


@pytest.mark.parametrize("path", ["/", "/metrics", "/readyz", "/livez", "/v1/models"])
def test_the_split_keeps_to_itself_what_is_not_for_clients_or_not_whole(path: str):
    assert routed(path) is None


@every_overlay
def test_pods_are_scaled_by_a_metric_that_the_adapter_makes_of_one_of_ours(name: str, server: Server):
    rule = adapter_rule()
    (series,) = re.findall(r"^\w+", rule["seriesQuery"])
    assert f"{series}{{" in server.get("/metrics").text
    assert re.fullmatch(rule["name"]["matches"], series)
    for scaler in of_kind(overlay(name), "HorizontalPodAutoscaler"):
        metrics = {metric["type"]: metric for metric in scaler["spec"]["metrics"]}
        assert metrics.keys() == {"Resource", "Pods"}
        assert metrics["Resource"]["resource"]["name"] == "cpu"
        assert metrics["Pods"]["pods"]["metric"]["name"] == rule["name"]["as"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_the_adapters_metric_is_how_many_rows_wait_in_a_pod(tmp_path: Path):
    rule = adapter_rule()
    (series,) = re.findall(r"^\w+", rule["seriesQuery"])
    query = (
        rule["metricsQuery"]
        .replace("<<.Series>>", series)
        .replace("<<.LabelMatchers>>", 'namespace="sextant",pod=~"one|two"')
        .replace("<<.GroupBy>>", "pod")
    )
    labels = 'namespace="sextant",pod="{}",model="{}"'
    waits = {("one", "imdb_lstm"): 22.5, ("one", "mnist_mlp"): 7.5, ("two", "imdb_lstm"): 0, ("three", "imdb_lstm"): 9}
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f"{series}{{{labels.format(*of)}}}", "values": f"0+{gathered}x20"}
                    for of, gathered in waits.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "5m",
                        # 22.5 s and 7.5 s of waiting gathered in 15 s
                        "exp_samples": [{"labels": '{pod="one"}', "value": 2}, {"labels": '{pod="two"}', "value": 0}],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def adapter_rule() -> Manifest:
    values = yaml.safe_load((KUBERNETES / "components" / "prometheus" / "adapter-values.yaml").read_text())
    return only(values["rules"]["custom"])


def test_the_readme_names_folders_that_are_there():
    readme = (KUBERNETES / "README.md").read_text()
    table = re.findall(r"^\| `([\w/]+)` \|", readme, re.MULTILINE)
    assert {"base", *FOLDERS} <= set(table)
    for folder in table:
        assert (KUBERNETES / folder / "kustomization.yaml").is_file()
    for path in re.findall(r"deploy/kubernetes/([\w/-]+)", readme):
        assert (KUBERNETES / path).is_dir()
