"""The report of a load test: one file that needs nothing else, with the verdict, the figures and the pictures."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtests import figures, report
from loadtests.record import Histogram
from loadtests.runfile import Run, Sample
from loadtests.slo import Objective, Slo, SloError, checks
from tests.loadtests.recordings import Draw, lognormal, run, told

SLO = Slo({"all": Objective(p99_ms=200), "image": Objective(p50_ms=40, p99_ms=100, error_share=0.01)})
STEPS = [(50.0, 4.0), (100.0, 4.0), (150.0, 4.0), (200.0, 4.0)]


def saturating(_random: object, due: float) -> tuple[float, str | None]:
    """Slow from the third stage on."""
    return (0.01 if due < 8 else 0.3), None


def sampled(seconds: int) -> tuple[Sample, ...]:
    """A server that runs batches of 2 rows, and later of 4, and keeps them waiting for 3 ms."""
    rows = np.cumsum([0, *(100 if second < seconds / 2 else 200 for second in range(seconds))]).tolist()
    return tuple(
        Sample(
            float(second),
            {"17": 180.0 + second},
            {
                "sextant_batch_rows_sum": {"cifar10_cnn": rows[second]},
                "sextant_batch_rows_count": {"cifar10_cnn": 50.0 * second},
                "sextant_queue_seconds_sum": {"cifar10_cnn": 0.3 * second},
                "sextant_queue_seconds_count": {"cifar10_cnn": 100.0 * second},
            },
        )
        for second in range(seconds + 1)
    )


class Page(HTMLParser):
    """Tables as lists of rows, pictures, text, and whatever would be fetched or run."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[bytes] = []
        self.captions = 0
        self.verdict = ""
        self.text = ""
        self.foreign: list[str] = []
        self._open: list[str] = []
        self.html = path.read_text("utf-8")
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = dict(attributes)
        if tag not in {"meta", "br", "img"}:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
        elif tag == "img":
            kind, _, data = (told["src"] or "").partition(",")
            assert kind == "data:image/png;base64"
            assert told["alt"]
            self.images.append(base64.b64decode(data))
        elif "verdict" in (told.get("class") or ""):
            self.verdict = told["class"] or ""
        if tag in {"script", "link", "iframe", "object"} or told.keys() & {"href", "srcset", "onload", "onclick"}:
            self.foreign.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] in {"td", "th"}:
            self.tables[-1][-1][-1] += data

    def table(self, first: str) -> dict[str, list[str]]:
        """Rows by their first cell, of the table whose head begins so."""
        rows = next(rows for rows in self.tables if rows[0][:1] == [first])
        return {row[0]: row[1:] for row in rows}


def page(path: Path, of: Run, slo: Slo | None = SLO) -> Page:
    return Page(report.write(path, of, slo))


def test_the_report_is_one_file_that_fetches_and_runs_nothing(tmp_path: Path):
    found = page(tmp_path, run({"image": lognormal(0.02), "vae": lognormal(0.03)}, server=sampled(10)))
    assert found.foreign == []
    assert not re.search(r"url\(|@import|https?://(?!127\.0\.0\.1)", found.html)
    assert found._open == []


def test_its_pictures_lie_beside_it_and_in_it(tmp_path: Path):
    found = page(tmp_path, run({"image": lognormal(0.02), "vae": lognormal(0.03)}, server=sampled(10)))
    names = ["timeline", "routes", "distribution"]
    assert [(tmp_path / f"{name}.png").read_bytes() for name in names] == found.images
    for data in found.images:
        with Image.open(BytesIO(data)) as picture:
            assert picture.width > 600
            assert np.asarray(picture.convert("L")).std() > 5


def test_the_headline_is_the_verdict_and_the_figure_closest_to_its_limit(tmp_path: Path):
    found = page(tmp_path, run({"image": lambda _random, _due: (0.038, None)}))
    assert found.verdict == "verdict met"
    assert "SLO met" in found.text
    assert "Closest to its limit: image: p50 of 38.2 ms; at most 40 ms (96% of what is allowed)" in found.text


def test_a_rate_served_in_full_is_not_the_figure_that_matters(tmp_path: Path):
    slo = Slo({"image": Objective(p50_ms=1000, least_rate=500)})
    found = page(tmp_path, run({"image": lambda _random, _due: (0.01, None)}), slo)
    assert "Closest to its limit: image: p50 of 10.2 ms; at most 1000 ms (1% of what is allowed)" in found.text


def test_a_broken_promise_is_the_headline(tmp_path: Path):
    found = page(tmp_path, run({"image": lambda _random, _due: (0.5, None)}))
    assert found.verdict == "verdict broken"
    assert "image: p50 of 500 ms; at most 40 ms. 3 promises of 4 were broken" in found.text
    cells = found.table("route")
    assert cells.keys() >= {"image"}
    assert "✗ 500 ms > 100 ms" in [text for table in found.tables for row in table for text in row]


def test_an_invalid_run_is_never_called_met(tmp_path: Path):
    found = page(tmp_path, run({"image": lognormal(0.001)}, invalid="p99 of sent − due is 9 ms"))
    assert found.verdict == "verdict invalid"
    assert "p99 of sent − due is 9 ms" in found.text
    assert "SLO met" not in found.text
    assert "✓" not in found.text


def test_the_table_tells_the_figures_of_every_route_and_of_all(tmp_path: Path):
    mixed = run({"image": lognormal(0.02, errors=0.1), "vae": lognormal(0.03)})
    table = page(tmp_path, mixed).table("route")
    assert [name for name in table if name in {"image", "vae", "all"}] == ["image", "vae", "all"]
    cell = mixed.recording.total("image")
    expected = [500, cell.ok / 10, 100 * cell.failed / 500]
    for histogram in (cell.response, cell.service):
        expected += [1000 * histogram.percentile(q) for q in (50, 95, 99, 99.9)] + [1000 * histogram.max]
    expected.append(1000 * cell.late.percentile(99))
    shown = [float(text.removesuffix(" %")) for text in table["image"]]
    assert shown == pytest.approx(expected, rel=0.006)


def test_errors_are_told_by_reason_and_what_they_say_is_text(tmp_path: Path):
    odd: Draw = lambda _random, due: (0.01, "wrong <b>answer</b>" if due < 1 else None)  # noqa: E731
    found = page(tmp_path, run({"image": odd}))
    assert ["image", "100", "wrong <b>answer</b>"] in [row for table in found.tables for row in table]
    assert "<b>" not in found.html


def test_steps_show_their_knee(tmp_path: Path):
    steps = run({"image": saturating}, STEPS, shape="steps", server=sampled(16))
    found = page(tmp_path, steps)
    assert len(found.images) == 3
    assert (tmp_path / "throughput.png").exists()
    assert "Knee at 100 requests/s." in found.text
    assert "The knee lies at 100 requests/s" in found.text
    assert found.verdict == "verdict met"


def test_steps_without_a_knee_say_so(tmp_path: Path):
    found = page(tmp_path, run({"image": lambda _random, _due: (0.3, None)}, STEPS, shape="steps"))
    assert found.verdict == "verdict broken"
    assert "No rate was served within the SLO." in found.text
    assert "there is no knee" in found.text


def test_a_run_in_which_nothing_was_answered_is_reported_all_the_same(tmp_path: Path):
    empty = run({}, [(1e-9, 10.0)], weights={"image": 1}, invalid="no request was sent")
    found = page(tmp_path, empty)
    assert found.images == []
    assert found.table("route")["image"][0] == "0"
    failing = run({"image": lambda _random, _due: (0.01, "connection refused")})
    for cells in failing.recording._cells.values():
        for cell in cells.values():
            cell.response, cell.service = Histogram(), Histogram()  # nobody waited for them
    assert page(tmp_path, failing).verdict == "verdict broken"


def test_machine_versions_and_the_command_are_told(tmp_path: Path):
    found = page(tmp_path, run({"image": lognormal(0.02)}))
    rows = [row for table in found.tables for row in table]
    assert ["processor", "a <quick> one"] in rows
    assert ["locust", "2.47.0"] in rows
    assert (
        "locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:3000 --loop open --shape steady "
        "--route image --rate 100.0 --minutes 0.1667 --arrivals constant --seed 1 --processes 1 --record run.json"
    ) in found.text


@pytest.mark.parametrize(
    ("routes", "about", "said"),
    [
        (["digit-raw", "digit-png"], {}, "--route digit --rate"),
        (["digit-raw", "vae"], {}, "--route all --rate"),
        (["vae"], {"loop": "closed", "rate": None, "users": 8, "arrivals": None}, "--route vae --clients 8 --minutes"),
    ],
)
def test_the_command_asks_for_the_same_again(routes: list[str], about: dict[str, object], said: str):
    assert said in report.command(run(dict.fromkeys(routes, lognormal(0.02)), **about))


def test_the_repositorys_own_slo_is_taken_unless_another_is_given(tmp_path: Path):
    assert page(tmp_path, run({"image": lognormal(0.001)}), None).verdict == "verdict met"
    with pytest.raises(SloError, match="promises nothing for vae"):
        report.write(tmp_path, run({"vae": lognormal(0.001)}), Slo({"image": Objective(p50_ms=1)}))


def test_batches_and_queues_are_means_between_samples():
    one = run({"image": lognormal(0.02)}, server=sampled(10))
    times, rows = figures.by_model(one, "sextant_batch_rows")["cifar10_cnn"]
    assert times.tolist() == [second + 0.5 for second in range(10)]
    assert rows.tolist() == [2.0] * 5 + [4.0] * 5
    _, queue = figures.by_model(one, "sextant_queue_seconds")["cifar10_cnn"]
    assert queue == pytest.approx([0.003] * 10)


def test_counters_that_began_anew_leave_a_gap():
    first, second = sampled(4)[:3], sampled(4)[:2]
    anew = tuple(Sample(float(place), one.resident_mb, one.metrics) for place, one in enumerate((*first, *second)))
    _, rows = figures.by_model(run({"image": lognormal(0.02)}, server=anew), "sextant_batch_rows")["cifar10_cnn"]
    assert [math.isnan(value) for value in rows] == [False, False, True, False]


def test_a_sample_that_was_not_answered_is_passed_over():
    samples = list(sampled(4))
    samples[2] = Sample(2.0, {}, {})
    times, rows = figures.by_model(run({"image": lognormal(0.02)}, server=tuple(samples)), "sextant_batch_rows")[
        "cifar10_cnn"
    ]
    assert times.tolist() == [0.5, 2.0, 3.5]
    assert rows.tolist() == [2.0, 3.0, 4.0]


def test_memory_is_told_by_process_the_largest_first():
    samples = (Sample(0.0, {"5": 60.0, "6": 180.0}, {}), Sample(1.0, {"6": 181.0}, {}))
    found = figures.resident(run({"image": lognormal(0.02)}, server=samples))
    assert {name: sizes.tolist() for name, (_, sizes) in found.items()} == {
        "process 6": [180.0, 181.0],
        "process 5": [60.0],
    }
    assert list(found) == ["process 6", "process 5"]


def test_the_distribution_reaches_from_all_requests_to_the_single_longest():
    histogram = Histogram()
    for seconds in [0.01] * 90 + [0.1] * 9 + [1.0]:
        histogram.add(seconds)
    rarity, seconds = figures.by_rarity(histogram)
    assert rarity == pytest.approx([1, 10, 100, 100])  # from p0, p90 and p99 on
    assert seconds == pytest.approx([0.01, 0.1, 1, 1], rel=0.01)


def test_long_runs_are_drawn_in_steps_that_lose_nothing():
    long = run({"image": lognormal(0.02)}, [(2, 1000)])
    starts, cells = figures._steps(long, "image")
    assert len(starts) <= figures.BINS
    assert sum(cell.count for cell in cells) == 2000


def test_the_command_writes_the_report_of_a_run_that_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.json").write_text(json.dumps(told(run({"image": lognormal(0.02)}))))
    own = tmp_path / "own.toml"
    own.write_text("[image]\np50_ms = 1\n")
    assert report.main([str(tmp_path), "--slo", str(own)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert Page(tmp_path / "report.html").verdict == "verdict broken"
    own.write_text("[image]\np90_ms = 1\n")
    with pytest.raises(SystemExit) as caught:
        report.main([str(tmp_path), "--slo", str(own)])
    assert caught.value.code == 2
    assert 'unknown key "p90_ms"' in capsys.readouterr().err.splitlines()[-1]


def test_the_check_of_the_headline_is_one_of_the_checks():
    one = run({"image": lognormal(0.02)})
    _, _, figure = report.headline(one, SLO, checks(SLO, one))
    assert any(str(check) in figure for check in checks(SLO, one))
