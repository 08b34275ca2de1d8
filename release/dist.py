"""The wheel and the sdist of what is committed, into dist/, built and checked: `make dist`.

They are built twice, each time from a fresh copy of the commit, in other folders and with other times and permissions,
and must be the same bytes. What is in them is compared with what git tracks. Needs `build`, `twine` and `hatchling`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from email.parser import BytesParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("maskattn", "maskattn_jax", "maskattn_torch")
#: What a wheel says of itself, in maskattn-VERSION.dist-info.
INFO = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


class Refused(Exception):
    """What was built must not be published; the text says everything that is wrong."""


def main() -> None:
    """Builds, checks, and leaves both files in dist/."""
    commit, tracked = _git("rev-parse", "HEAD").strip(), _git("ls-tree", "-r", "--name-only", "HEAD").splitlines()
    for line in _git("status", "--porcelain").splitlines():
        print(f"not committed, so left out: {line}")
    print(f"building {commit[:12]} twice, and its sdist once more", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ("one", "another")]
        for place, mode in zip(places, (0o022, 0o077), strict=True):
            _export(commit, place / "maskattn", mode)
            _build(place / "maskattn", place / "built", "--sdist", "--wheel", mode=mode)
        unpacked = _unpacked(_one(places[0] / "built", "*.tar.gz"), Path(folder) / "unpacked")
        _build(unpacked, Path(folder) / "again", "--wheel")
        built = sorted((places[0] / "built").iterdir())
        wheel, sdist = _one(places[0] / "built", "*.whl"), _one(places[0] / "built", "*.tar.gz")
        faults = [
            f"{path.name}: a second build has other bytes" for path in built if not _same(path, places[1] / "built")
        ]
        faults += (
            [] if _same(wheel, Path(folder) / "again") else [f"{wheel.name}: built from the sdist it has other bytes"]
        )
        faults += of_wheel(wheel, tracked) + of_sdist(sdist, tracked) + of_versions(wheel, ROOT)
        twine = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
        checked = subprocess.run(twine, capture_output=True, text=True, check=False)
        faults += [] if checked.returncode == 0 else [checked.stdout + checked.stderr]
        if faults:
            raise Refused("\n".join(faults))
        target = ROOT / "dist"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in built:
            shutil.copy(path, target)
            size = f"{path.stat().st_size / 1e6:.2f} MB"
            print(f"dist/{path.name}: {size}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    print(f"built twice from {commit[:12]}: the same bytes, and the same wheel from the sdist")


def of_wheel(wheel: Path, tracked: Iterable[str]) -> list[str]:
    """What a wheel lacks of the files that git tracks in the packages, or has beyond them."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    stem = "-".join(wheel.name.split("-")[:2])
    expected = {name for name in tracked if name.split("/")[0] in PACKAGES} | {
        f"{stem}.dist-info/{name}" for name in INFO
    }
    return _differences(wheel.name, names, expected)


def of_sdist(sdist: Path, tracked: Iterable[str]) -> list[str]:
    """What an sdist lacks of the files that git tracks, or has beyond them."""
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    return _differences(sdist.name, names, {*tracked, "PKG-INFO"})


def of_versions(wheel: Path, root: Path) -> list[str]:
    """Where another version is said than the wheel's: in the changelog, as its newest entry, and for those who cite."""
    with zipfile.ZipFile(wheel) as file:
        metadata = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        version = BytesParser().parsebytes(file.read(metadata))["Version"]
    changelog, citation = ((root / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    newest = re.search(r"^## \[(\d[^\]]*)\] - (\d{4}-\d{2}-\d{2})$", changelog, re.MULTILINE)
    cited = dict(re.findall(r'^(version|date-released): "?([^"\n]+)"?$', citation, re.MULTILINE))
    told = (None, None) if newest is None else newest.groups()
    faults = [] if told[0] == version else [f"CHANGELOG.md: its newest version is {told[0]}, the wheel's {version}"]
    said = (cited.get("version"), cited.get("date-released"))
    return faults + ([] if said == told else [f"CITATION.cff: {said}, but CHANGELOG.md says {told}"])


def _differences(name: str, found: set[str], expected: set[str]) -> list[str]:
    lacks = [f"{name}: lacks {path}" for path in sorted(expected - found)]
    return lacks + [f"{name}: has {path}, which git does not track there" for path in sorted(found - expected)]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _export(commit: str, folder: Path, mode: int) -> None:
    """What is committed, with permissions as the umask `mode` leaves them and the present time."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as file:
        file.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & ~mode)
        os.utime(path)


def _unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    return next(folder.iterdir())


def _build(source: Path, target: Path, *what: str, mode: int = 0o022) -> None:
    """With the time of the commit, where times are written at all."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": _git("log", "-1", "--format=%ct").strip()}
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(target), str(source)]
    built = subprocess.run(command, env=environment, umask=mode, capture_output=True, text=True, check=False)
    if built.returncode:
        raise Refused(f"{' '.join(command)}:\n{built.stdout}{built.stderr}")


def _one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def _same(path: Path, folder: Path) -> bool:
    return path.read_bytes() == (folder / path.name).read_bytes()


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(str(error))
