"""A verdict as CI systems read it: JUnit XML, a test case for each promise.

The time of a latency's case is the latency, so that a CI system's trend of test durations is the trend of the service.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from loadtests.runfile import Run
from loadtests.slo import Breach, Check, Slo, checks

SUITE = "slo"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold; reasons of errors may come from anywhere."""


def write(path: Path, slo: Slo, run: Run, breaches: Sequence[Breach]) -> None:
    """Write one suite: a case for each promise, and one for the generator's own timing.

    In an invalid run that one is an error, and the promises are skipped: neither kept nor broken.

    Args:
        breaches: what `loadtests.slo.judge` found.
    """
    broken = {(breach.route, breach.figure): _text(breach) for breach in breaches}
    suite = Element("testsuite", name=SUITE, time=f"{run.seconds:.3f}")
    if started := run.about.get("started"):
        suite.set("timestamp", str(started)[:19])  # the schema knows no time zone
    properties = SubElement(suite, "properties")
    for name, value in run.about.items():
        SubElement(properties, "property", name=name, value=_text(value))
    generator = SubElement(suite, "testcase", classname="generator", name="kept_up", time="0.000")
    if not run.valid:
        SubElement(generator, "error", type="InvalidRun", message=_text(run.invalid)).text = _text(run.invalid)
    for check in checks(slo, run):
        case = SubElement(suite, "testcase", classname=check.route, name=check.figure, time=f"{_seconds(check):.6f}")
        if not run.valid:
            SubElement(case, "skipped", message="the run is invalid")
        elif breach := broken.get((check.route, check.figure)):
            SubElement(case, "failure", type="SloBreach", message=breach).text = breach
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(list(suite.iter(tag)))))
    suites = Element("testsuites")
    suites.append(suite)
    indent(suites)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree(suites).write(path, "utf-8", xml_declaration=True)


def _seconds(check: Check) -> float:
    return check.measured / 1000 if check.figure.endswith("_ms") and math.isfinite(check.measured) else 0.0


def _text(value: object) -> str:
    return _NOT_XML.sub("\ufffd", str(value))
