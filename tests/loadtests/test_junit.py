"""The verdict as JUnit XML, read back as a CI system would."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from loadtests import junit
from loadtests.runfile import Run
from loadtests.slo import Objective, Slo, judge
from tests.loadtests.recordings import lognormal, run

SLO = Slo({"image": Objective(p50_ms=100, p99_ms=5, error_share=0.5), "vae": Objective(p50_ms=100)})
# What the common schemas (Jenkins', Maven Surefire's) know; order counts for a suite's children.
KNOWN = {
    "testsuites": {"name", "time", "tests", "failures", "errors", "disabled"},
    "testsuite": {
        *(
            "name",
            "tests",
            "failures",
            "errors",
            "skipped",
            "disabled",
            "time",
            "timestamp",
            "hostname",
            "id",
            "package",
        )
    },
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time", "status", "assertions"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "skipped": {"message", "type"},
}


def written(path: Path, of: Run, slo: Slo = SLO) -> ET.Element:
    junit.write(path / "new" / "slo.xml", slo, of, judge(slo, of))
    return ET.parse(path / "new" / "slo.xml").getroot()  # noqa: S314 (written just above)


def cases(root: ET.Element) -> dict[tuple[str, str], list[str]]:
    return {
        (case.attrib["classname"], case.attrib["name"]): [child.tag for child in case] for case in root.iter("testcase")
    }


def test_every_promise_is_a_case_and_the_broken_ones_fail_with_their_line(tmp_path: Path):
    root = written(tmp_path, run({"image": lognormal(0.02), "vae": lognormal(0.02)}))
    assert cases(root) == {
        ("generator", "kept_up"): [],
        ("image", "p50_ms"): [],
        ("image", "p99_ms"): ["failure"],
        ("image", "error_share"): [],
        ("vae", "p50_ms"): [],
    }
    (failure,) = root.iter("failure")
    assert re.fullmatch(r"image: p99 of [\d.]+ ms; at most 5 ms", failure.attrib["message"])
    assert failure.text == failure.attrib["message"]
    suite = root.find("testsuite")
    assert suite is not None
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time", "timestamp")} == {
        "tests": "5",
        "failures": "1",
        "errors": "0",
        "skipped": "0",
        "time": "10.000",
        "timestamp": "2024-05-01T12:00:00",
    }


def test_the_time_of_a_latencys_case_is_the_latency_in_seconds(tmp_path: Path):
    root = written(tmp_path, run({"image": lambda _random, _due: (0.25, None), "vae": lognormal(0.02)}))
    times = {(case.get("classname"), case.get("name")): float(case.get("time", "")) for case in root.iter("testcase")}
    assert times["image", "p50_ms"] == times["image", "p99_ms"] == 0.2502  # sent 0.2 ms after they were due
    assert times["image", "error_share"] == 0


def test_an_invalid_run_neither_keeps_nor_breaks_a_promise(tmp_path: Path):
    root = written(tmp_path, run({"image": lognormal(0.02), "vae": lognormal(0.02)}, invalid="sent 9 ms late"))
    found = cases(root)
    assert found.pop(("generator", "kept_up")) == ["error"]
    assert set(map(tuple, found.values())) == {("skipped",)}
    (error,) = root.iter("error")
    assert error.attrib["message"] == "sent 9 ms late"


def test_only_elements_and_attributes_of_the_common_schemas_are_written(tmp_path: Path):
    for invalid in ("", "late"):
        root = written(tmp_path, run({"image": lognormal(0.02), "vae": lognormal(0.02)}, invalid=invalid))
        for element in root.iter():
            assert set(element.attrib) <= KNOWN[element.tag]
        (suite,) = root
        assert [child.tag for child in suite] == ["properties", *["testcase"] * 5]
        assert all(len(case) <= 1 for case in suite.iter("testcase"))


def test_reasons_that_xml_cannot_hold_and_missing_answers_are_written_all_the_same(tmp_path: Path):
    odd = run({"image": lambda _random, _due: (0.01, "wrong <answer>: \x00\ud800 'é'")}, weights={"image": 1, "vae": 1})
    root = written(tmp_path, odd)
    failures = [failure.attrib["message"] for failure in root.iter("failure")]
    assert "image: 100 % errors (wrong <answer>: \ufffd\ufffd 'é': 1000); at most 50 %" in failures
    assert "vae: no answer to take the p50 of; at most 100 ms" in failures
