"""What a release consists of agrees with itself: version, citation, extras in the Dockerfile, the systemd unit."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from pages import ROOT

import taskedge
from taskedge.cli.main import main

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNIT = ROOT / "deploy" / "taskedge-serve.service"


def test_the_version_stands_in_one_place():
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == taskedge.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", taskedge.__version__)


def test_the_citation_has_the_keys_that_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert {"type", "title", "authors"} <= citation["preferred-citation"].keys()
    assert citation["license"] == PROJECT["license"]


def test_the_dockerfile_names_extras_and_files_that_exist():
    text = (ROOT / "Dockerfile").read_text()
    extras = re.search(r"'\.\[([\w,]+)\]'", text)[1].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert "-c constraints.txt" in text


def test_the_unit_runs_a_command_that_exists(capsys):
    command = re.search(r"^ExecStart=\S+/taskedge (.*)$", UNIT.read_text(), flags=re.MULTILINE)[1].split()
    assert main([command[0], "--help"]) == 0
    told = capsys.readouterr().out
    assert all(flag in told for flag in command if flag.startswith("--"))


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/taskedge/bin/taskedge", "/bin/true"))
    ended = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
