"""geosam2 doctor: a report that finds what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from geosam2.commands import doctor


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEOSAM2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "_model", lambda name: [doctor.Finding("model", "ok", name)])
    for name in ("PYTHONHOME", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)


def test_a_healthy_machine_gives_zero_and_says_what_to_enter_in_qgis(quick: None) -> None:
    done = CliRunner().invoke(doctor.command, ["--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 0, done.output
    assert report["ok"] is True
    found = {entry["name"]: entry for entry in report["findings"]}
    assert found["device cpu"]["state"] == "ok"
    assert "Python = " in found["QGIS engine"]["text"]
    assert "torch" in found["packages"]["text"]


def test_a_package_that_does_not_import_is_a_problem_with_a_remedy(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    done = CliRunner().invoke(doctor.command)
    assert done.exit_code == 1
    assert "PROBLEM  no-such-package: cannot be imported" in done.output
    assert "-> pip install --force-reinstall no-such-package" in done.output


def test_a_device_that_computes_wrong_numbers_is_found(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    real = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a: real(*a) * 1.5)
    assert doctor._run_kernel("cpu").state == "problem"


def test_a_device_that_fails_is_a_warning_and_not_the_end(quick: None) -> None:
    finding = doctor._run_kernel("cuda:77")
    assert finding.state == "warning"
    assert "cpu" in finding.remedy


def test_a_check_that_breaks_is_reported(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[doctor.Finding]:
        raise OSError("library not loaded")

    monkeypatch.setattr(doctor, "_devices", broken)
    found = doctor.as_dict(doctor.examine())
    assert found["device"].state == "problem"
    assert "library not loaded" in found["device"].text


def test_a_cache_that_cannot_be_written_is_a_warning(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    finding = doctor._writable("cache", tmp_path / "file")
    assert finding.state == "warning"
    assert "GEOSAM2_CACHE" in finding.remedy


def test_unknown_weights_are_a_problem() -> None:
    (finding,) = doctor._model("no-such-weights")
    assert finding.state == "problem"
    assert "no-such-weights" in finding.text
