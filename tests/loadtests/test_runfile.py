"""``run.json`` is read back as it was written, and nothing else passes for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.runfile import Run, RunError, Sample, Stage
from tests.loadtests.recordings import lognormal, run, told

SERVER = (Sample(1.0, {"17": 180.5}, {"sextant_batch_rows_sum": {"mnist_mlp": 12.0}}),)


def test_a_run_is_read_from_its_file_and_from_its_folder(tmp_path: Path):
    original = run({"image": lognormal(0.01)}, server=SERVER)
    (tmp_path / "run.json").write_text(json.dumps(told(original)))
    for path in (tmp_path, tmp_path / "run.json"):
        read = Run.load(path)
        assert read.recording.to_json() == original.recording.to_json()
        assert read.stages == (Stage(0.0, 10.0, 100.0, None),)
        assert read.server == SERVER
        assert read.valid
        assert (read.seconds, read.open_loop, read.about["shape"]) == (10.0, True, "steady")


def test_a_route_that_was_asked_for_and_never_answered_is_one_of_the_runs():
    assert run({"image": lognormal(0.01)}, weights={"image": 1, "vae": 2, "gan": 0}).routes == ["image", "vae"]


def test_an_invalid_run_says_why(tmp_path: Path):
    (tmp_path / "run.json").write_text(json.dumps(told(run({"vae": lognormal(0.01)}, invalid="sent 9 ms late"))))
    read = Run.load(tmp_path)
    assert (read.valid, read.invalid) == (False, "sent 9 ms late")


def test_a_run_that_was_not_sampled_has_no_samples(tmp_path: Path):
    content = told(run({"vae": lognormal(0.01)}))
    del content["server"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert Run.load(tmp_path).server == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "not the run.json"),
        ("[]", "not the run.json"),
        ('{"valid": true}', "no 'about'"),
        ('{"about": {"seconds": 0}, "valid": true}', "received 0"),
        ('{"about": {"seconds": 5}, "valid": true, "stages": [{}], "recording": {}}', "no 'start'"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line_that_names_the_file(tmp_path: Path, content: str | None, said: str):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=said) as caught:
        Run.load(tmp_path / "run.json")
    assert str(caught.value).startswith(f"{tmp_path / 'run.json'}: ")
    assert "\n" not in str(caught.value)
