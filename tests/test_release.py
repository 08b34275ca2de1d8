"""What is released: the files in it, the versions that it says, and the environments that it is tried in."""

import importlib.util
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import maskattn

ROOT = Path(__file__).parents[1]


def program(name):
    """A file of release/ as a module."""
    spec = importlib.util.spec_from_file_location(f"release_{name}", ROOT / f"release/{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dist, environments = program("dist"), program("environments")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What git tracks, a wheel and an sdist of the working tree."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    sdist, wheel = (pytest.importorskip(f"hatchling.builders.{kind}") for kind in ("sdist", "wheel"))
    folder = str(tmp_path_factory.mktemp("dist"))
    versions = {sdist.SdistBuilder: "standard", wheel.WheelBuilder: "standard"}
    paths = [next(builder(str(ROOT)).build(directory=folder, versions=[one])) for builder, one in versions.items()]
    there = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    return there, Path(paths[1]), Path(paths[0])


def test_wheel_and_sdist_have_what_git_tracks(built):
    tracked, wheel, sdist = built
    new = r"which git does not track"  # what is not added yet, on the machine of who works on it
    assert [
        fault for fault in dist.of_wheel(wheel, tracked) + dist.of_sdist(sdist, tracked) if not re.search(new, fault)
    ] == []
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {name.split("/")[0] for name in names} == {*dist.PACKAGES, f"maskattn-{maskattn.__version__}.dist-info"}
    assert {f"{package}/py.typed" for package in dist.PACKAGES} <= set(names)
    assert any(name.endswith(".toml") for name in names)


def test_what_a_wheel_or_an_sdist_lacks_or_has_beyond_is_named(tmp_path):
    wheel, sdist = tmp_path / "maskattn-1.0-py3-none-any.whl", tmp_path / "maskattn-1.0.tar.gz"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in (
            "maskattn/__init__.py",
            "tests/test_it.py",
            *(f"maskattn-1.0.dist-info/{one}" for one in dist.INFO),
        ):
            file.writestr(name, "")
    (tmp_path / "scratch.py").write_text("")
    with tarfile.open(sdist, "w:gz") as file:
        file.add(tmp_path / "scratch.py", "maskattn-1.0/scratch.py")
    tracked = ["maskattn/__init__.py", "maskattn/py.typed", "Makefile"]
    assert dist.of_wheel(wheel, tracked) == [
        f"{wheel.name}: lacks maskattn/py.typed", f"{wheel.name}: has tests/test_it.py, which git does not track there"
    ]  # fmt: skip
    assert dist.of_sdist(sdist, tracked) == [
        *(
            f"{sdist.name}: lacks {name}"
            for name in ("Makefile", "PKG-INFO", "maskattn/__init__.py", "maskattn/py.typed")
        ),
        f"{sdist.name}: has scratch.py, which git does not track there",
    ]


def test_the_changelog_and_the_citation_say_the_version(built, tmp_path):
    _, wheel, _ = built
    assert dist.of_versions(wheel, ROOT) == []
    for name in ("CHANGELOG.md", "CITATION.cff"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(maskattn.__version__, "9.9.9"), encoding="utf-8")
    (fault,) = dist.of_versions(wheel, tmp_path)
    assert fault == f"CHANGELOG.md: its newest version is 9.9.9, the wheel's {maskattn.__version__}"
    (tmp_path / "CITATION.cff").write_text("version: 9.9.9\ndate-released: 2000-01-01\n", encoding="utf-8")
    assert (
        "CITATION.cff: ('9.9.9', '2000-01-01'), but CHANGELOG.md says ('9.9.9', '20"
        in dist.of_versions(wheel, tmp_path)[1]
    )


def test_an_interpreter_that_does_not_start_is_passed_over(tmp_path, monkeypatch):
    for name, says in (("python3.13", 127), ("python3.12", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {says}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert {row.python for row in environments.rows("newest *", [])} == {"python3.12"}


def test_environments_are_those_that_are_asked_for(tmp_path):
    asked = list(environments.rows("* torch", ["* torch=one", "newest *=another"]))
    assert [(row.name, row.python) for row in asked] == [("oldest torch", "one"), ("newest torch", "another")]
    assert len(list(environments.rows("*", []))) == 8
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\ndependencies = ["numpy>=2.4", "click>=8.1,<9"]\n[project.optional-dependencies]\n'
        'jax = ["jax>=0.10.2"]\ntorch = ["torch>=2.11"]\nplot = []\norbax = []\ngguf = []\n'
        'all = ["maskattn[jax,torch]", "safetensors>=0.5"]\ndev = ["pytest>=9.0", "tool"]\n'
    )
    assert environments.floors(project) == {
        "numpy": "2.4", "click": "8.1", "jax": "0.10.2", "torch": "2.11", "safetensors": "0.5", "pytest": "9.0"
    }  # fmt: skip


def test_an_environment_that_cannot_be_made_has_not_held(tmp_path):
    row = environments.Row("oldest", "core", "no-such-python")
    failed, said = environments.tried(row, tmp_path / "no.whl", None)
    assert failed.result == "not made" and "no-such-python" in said
