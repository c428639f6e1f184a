"""Rules and dashboard, held against each other, the promises of the load tests, and a real Prometheus."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry

from loadtests import slo
from serving.metrics import Metrics
from serving.tasks import discover
from tests.conftest import ROOT, Server, free_port, serve
from tests.models import digit_model
from tests.serving import pictures

PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
RULES = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))}
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
PROMISED = slo.load(slo.DEFAULT).objectives
DASHBOARD = json.loads((GRAFANA / "dashboards" / "sextant.json").read_text("utf-8"))
BROKEN = "digit_broken"
ROUTES = [endpoint.path for endpoint in discover()]
PATIENCE_SECONDS = 60.0

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="prometheus and promtool are not installed (Debian package prometheus)",
)


def rules() -> Iterator[dict[str, Any]]:
    for file in RULES.values():
        for group in file["groups"]:
            yield from group["rules"]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


@dataclass(frozen=True)
class DashboardQuery:
    """What the dashboard asks Prometheus, its variables filled in."""

    title: str
    expr: str
    legend: str = ""


def filled_in(expr: str) -> str:
    """Put in place of Grafana's variables what they hold when nothing is chosen."""
    for name, value in (("__rate_interval", "2m"), ("__range", "5m")):
        expr = expr.replace(f"${name}", value)
    return re.sub(r"\$(job|instance|route|model)\b", ".*", expr)


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def dashboard_queries() -> list[DashboardQuery]:
    asked = [
        DashboardQuery(panel["title"], filled_in(target["expr"]), target["legendFormat"])
        for panel in panels()
        for target in panel.get("targets", ())
    ]
    annotations = DASHBOARD["annotations"]["list"]
    return [*asked, *(DashboardQuery(one["name"], filled_in(one["expr"])) for one in annotations if "expr" in one)]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


class TestRules:
    @needs_prometheus
    def test_prometheus_takes_the_configuration_and_its_rules(self):
        checked = promtool("check", "config", PROMETHEUS / "prometheus.yml")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert f"{len(ALERTS)} rules found" in checked.stdout
        assert f"{len(RECORDED)} rules found" in checked.stdout

    @needs_prometheus
    @pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
    def test_alerts_fire_when_they_should_and_only_then(self, path: Path):
        tested = promtool("test", "rules", path)
        assert tested.returncode == 0, tested.stdout + tested.stderr

    @pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
    def test_groups_are_tested_in_the_order_in_which_they_build_on_each_other(self, path: Path):
        groups = [group["name"] for name in ("slo", "alerts") for group in RULES[name]["groups"]]
        assert yaml.safe_load(path.read_text("utf-8"))["group_eval_order"] == groups

    def test_every_alert_is_seen_to_fire(self):
        labels = [
            sample["labels"]
            for path in RULE_TESTS
            for test in yaml.safe_load(path.read_text("utf-8"))["tests"]
            for expected in test["promql_expr_test"]
            for sample in expected["exp_samples"]
        ]
        assert set(re.findall(r'alertname="(\w+)", alertstate="firing"', " ".join(labels))) == ALERTS.keys()

    @pytest.mark.parametrize("name", ALERTS)
    def test_an_alert_says_what_it_means_and_what_to_do(self, name: str):
        assert ALERTS[name]["labels"]["severity"] in {"page", "ticket"}
        annotations = ALERTS[name]["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook", "runbook_url"}
        assert annotations["runbook_url"] == f"docs/operating.md#{name.lower()}"
        assert f"\n### {name}\n" in (ROOT / "docs" / "operating.md").read_text("utf-8")
        # "Server errors" and the like are panels.
        for named in re.findall(r'"([^"]+)"', annotations["runbook"]):
            assert any(panel["title"].startswith(named) for panel in panels()), named

    def test_budgets_are_what_the_load_tests_promise(self):
        failing, slow = PROMISED["all"].error_share, 0.01  # a p99 leaves out one in a hundred
        spoken = {
            (promise, float(budget))
            for rule in ALERTS.values()
            if (promise := rule["labels"].get("slo"))
            for budget in re.findall(r"> [\d.]+ \* ([\d.]+)", rule["expr"])
        }
        assert spoken == {("availability", failing), ("latency", slow)}

    def test_burn_rates_and_windows_are_the_workbook_s(self):
        workbook = {
            "page": {("14.4", "1h", "5m"), ("6", "6h", "30m")},
            "ticket": {("3", "1d", "2h"), ("1", "3d", "6h")},
        }
        burning = [rule for rule in ALERTS.values() if "slo" in rule["labels"]]
        assert len(burning) == 4
        for rule in burning:
            terms = re.findall(r"ratio_rate(\w+) > ([\d.]+) \*", rule["expr"])
            pairs = {(rate, long, short) for (long, rate), (short, _) in zip(terms[::2], terms[1::2], strict=True)}
            assert pairs == workbook[rule["labels"]["severity"]]
            assert [rate for _, rate in terms[::2]] == [rate for _, rate in terms[1::2]]

    def test_slow_begins_at_the_first_bound_that_is_not_below_the_p99_promised(self):
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        metrics.answered("/", 200, 0.001)
        metrics.flush()
        samples = (sample for metric in registry.collect() for sample in metric.samples)
        bounds = [sample.labels["le"] for sample in samples if sample.name == "sextant_request_seconds_bucket"]
        selectors = re.findall(
            r'route=~"([^"]+)"(?:, route!~"([^"]+)")?, le="([^"]+)"', RECORDED["job_route:sextant_slow:rate2m"]
        )
        assert ROUTES
        for route in ROUTES:
            taken = [le for yes, no, le in selectors if re.fullmatch(yes, route) and not re.fullmatch(no, route)]
            group = route.split("/")[2]
            limit = max(one.p99_ms or 0 for name, one in PROMISED.items() if name.partition("-")[0] == group)
            assert taken == [next(le for le in bounds if float(le) * 1000 >= limit)], route


class TestDashboard:
    def test_panels_have_each_a_place_an_id_and_a_word_of_what_they_show(self):
        ids = [panel["id"] for panel in panels()]
        assert len(set(ids)) == len(ids)
        for panel in panels():
            assert panel["title"]
            assert panel["type"] == "row" or panel["description"]
        for first, second in itertools.combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
            beside = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
            above = first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]
            assert beside or above, (first, second)

    def test_every_query_goes_to_the_data_source_chosen(self):
        asking = [target for panel in panels() for target in panel.get("targets", ())]
        variables = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
        annotations = [one for one in DASHBOARD["annotations"]["list"] if "expr" in one]
        assert asking
        for one in (*asking, *variables, *annotations):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert {"datasource", "job", "instance", "route", "model"} == {
            one["name"] for one in DASHBOARD["templating"]["list"]
        }

    def test_grafana_is_told_how_often_prometheus_scrapes(self):
        (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())[
            "datasources"
        ]
        scraping = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
        assert source["jsonData"]["timeInterval"] == scraping


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 (whatever JSON holds)
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=20)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    @property
    def scrapes(self) -> int:
        """How often the service has been scraped, about."""
        found = self.get("query", query='count_over_time(up{job="sextant"}[10m])')["result"]
        return int(found[0]["value"][1]) if found else 0

    def query(self, expr: str) -> list[dict[str, str]]:
        """Labels of the series that a query gives a number for."""
        found = self.get("query", query=expr)["result"]
        return [series["metric"] for series in found if not math.isnan(float(series["value"][1]))]


@contextlib.contextmanager
def prometheus(home: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus as configured here, but for what it scrapes and the pace, until the block ends."""
    shutil.copytree(PROMETHEUS / "rules", home / "rules")
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    configuration["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s")
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    (home / "prometheus.yml").write_text(yaml.safe_dump(configuration), "utf-8")
    address = f"127.0.0.1:{free_port()}"
    log = home / "log.txt"
    command = ["prometheus", f"--config.file={home / 'prometheus.yml'}", f"--storage.tsdb.path={home / 'data'}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        for _ in waiting():
            assert process.poll() is None, log.read_text(errors="replace")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://{address}/-/ready").status_code == 200:
                    break
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def waiting(step: float = 0.2) -> Iterator[None]:
    """Turns to look again, as long as there is hope."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < ends:
        yield
        time.sleep(step)
    pytest.fail(f"still waiting after {PATIENCE_SECONDS:g} s")


def send_some_of_everything(server: Server) -> None:
    """Ask every route, so that each kind of answer comes: good, the client's fault, ours, refused."""
    raw, drawn = pictures.mnist_like().tobytes(), pictures.file(pictures.digit())
    asked = {
        "/v1/digit": server.post("/v1/digit", raw, "application/octet-stream"),
        "/v1/image": server.post("/v1/image", drawn, "image/png"),
        "/v1/sentiment": server.post("/v1/sentiment", "a good film", "text/plain"),
        "/v1/gan/sample": server.get("/v1/gan/sample?n=2"),
        "/v1/vae/sample": server.get("/v1/vae/sample?n=2&seed=1"),
        "/v1/vae/reconstruct": server.post("/v1/vae/reconstruct", drawn, "image/png"),
        "/v1/vae/anomaly": server.post("/v1/vae/anomaly", drawn, "image/png"),
    }
    assert {route: answer.status_code for route, answer in asked.items()} == dict.fromkeys(ROUTES, 200)
    assert server.get("/v1/models").status_code == 200
    assert server.post("/v1/digit", "seven", "text/plain").status_code == 415
    assert server.post(f"/v1/digit?model={BROKEN}", raw, "application/octet-stream").status_code == 503
    photos = json.dumps({"images": [pictures.photo(side=48).tolist()] * 4})
    with ThreadPoolExecutor(24) as clients:
        dear = "/v1/image?model=vgg16_transfer"
        answers = clients.map(lambda _: server.post(dear, photos, "application/json").status_code, range(24))
        assert 429 in set(answers)


@pytest.fixture(scope="module")
def watched(small_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has seen all that the service does."""
    home = tmp_path_factory.mktemp("watched")
    models = shutil.copytree(small_models, home / "models")
    with (digit_model(models, BROKEN) / "model.onnx").open("ab") as graph:
        graph.write(b"x")  # not what the manifest says any more: never served
    with (
        serve(models, home / "log.txt", max_requests="2") as server,
        prometheus(home / "prometheus", server.url) as running,
    ):
        # A counter that comes into being with what it counts is seen to rise only when it rises again.
        for _ in range(2):
            send_some_of_everything(server)
            seen = running.scrapes
            for _ in waiting():
                if running.scrapes > seen + 1:
                    break
        yield running


@needs_prometheus
class TestWatched:
    def test_every_rule_is_evaluated_and_recorded(self, watched: Prometheus):
        for _ in waiting():
            told = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
            if all(rule["health"] != "unknown" for rule in told):
                break
        assert {rule["name"] for rule in told} == ALERTS.keys() | RECORDED.keys()
        assert [rule for rule in told if rule["health"] != "ok" or rule.get("lastError")] == []
        for _ in waiting():
            missing = [name for name in RECORDED if not watched.query(name)]
            if not missing:
                break

    def test_every_route_has_its_objectives_and_nothing_else_has(self, watched: Prometheus):
        for name in ("requests:rate2m", "failures:ratio_rate5m", "timed:rate2m", "slow:ratio_rate5m"):
            assert sorted(series["route"] for series in watched.query(f"job_route:sextant_{name}")) == sorted(ROUTES)

    @pytest.mark.parametrize("asked", dashboard_queries(), ids=lambda asked: asked.title)
    def test_every_query_of_the_dashboard_finds_a_series(self, watched: Prometheus, asked: DashboardQuery):
        for _ in waiting():
            if found := watched.query(asked.expr):
                break
        for label in re.findall(r"{{(\w+)}}", asked.legend):
            assert any(label in series for series in found), f"{label} in none of {found}"

    def test_every_variable_of_the_dashboard_has_something_to_choose(self, watched: Prometheus):
        variables = {one["name"]: one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"}
        values = {}
        for name, variable in variables.items():
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", filled_in(variable["query"]["query"]))
            assert match
            values[name] = watched.get(f"label/{match[2]}/values", **{"match[]": match[1]})
        assert values["job"] == ["sextant"]
        assert len(values["instance"]) == 1
        assert set(values["route"]) >= set(ROUTES)
        assert {BROKEN, "mnist_mlp", "vgg16_transfer"} <= set(values["model"])

    def test_refusals_page_and_say_where(self, watched: Prometheus):
        for _ in waiting():
            alerts = [one for one in watched.get("alerts")["alerts"] if one["labels"].get("route") == "/v1/image"]
            if any(one["state"] == "firing" for one in alerts):
                break
        told = {one["labels"]["alertname"]: one for one in alerts}
        told_of = told["SextantErrorBudgetBurningFast"]
        assert told_of["labels"]["severity"] == "page"
        assert re.match(
            r"[\d.]+% of the requests to /v1/image of sextant failed", told_of["annotations"]["description"]
        )
        for one in watched.get("alerts")["alerts"]:
            assert "error expanding template" not in json.dumps(one), one

    def test_a_version_that_cannot_be_served_is_about_to_be_told(self, watched: Prometheus):
        for _ in waiting():
            alerts = [one for one in watched.get("alerts")["alerts"] if one["labels"].get("model") == BROKEN]
            if alerts:
                break
        (alert,) = alerts
        assert (alert["labels"]["alertname"], alert["state"]) == ("SextantModelUnavailable", "pending")
        assert alert["annotations"]["description"].startswith(f"1 replica(s) of sextant found version 1 of {BROKEN}")

    def test_whatever_rules_and_dashboard_name_is_there(self, watched: Prometheus):
        names = set(watched.get("label/__name__/values"))
        expressions = [*(rule["expr"] for rule in rules()), *(one.expr for one in dashboard_queries())]
        named = {
            name
            for expr in expressions
            for name in re.findall(r"(?:job_\w+:)?sextant_\w+(?::\w+)?", re.sub(r'"[^"]*"', "", expr))
        }
        assert len(named) > 20
        assert named - names == set()
