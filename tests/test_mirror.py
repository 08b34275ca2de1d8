"""tests/ mirrors the packages: a folder or a file names the room or the module whose tests it holds.

What `maskattn_jax` and `maskattn_torch` have in common is tested in `twins`, once for both.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: What is about all packages together.
WHOLE = {
    "bad_input",
    "contributing",
    "docstrings",
    "docstring_errors",
    "frameworks",
    "guide",
    "imports",
    "without",
    "mirror",
    "browser",
    "figures",
    "notebook",
    "pages",
    "readme",
    "site",
    "release",
    "tolerances",
    "twins",
}
#: What is about one twin as a whole, in `twins`.
ONE_TWIN = {"works_wherever_jax", "works_wherever_torch"}
TWINS = ("jax", "torch")
#: Rooms whose tests are elsewhere.
ELSEWHERE = {"losses": "twins/losses"}  # the room checks arguments, for both twins


#: What tests are made with, in a folder of its own.
HELPERS = {Path("diagnose/ports")}


def exists(root, place):
    """Whether there is a room or a module of this path, in `maskattn` or, below `twins`, in both twins."""
    homes = [root / "maskattn" / place]
    if place.parts[0] == "twins":
        homes = [root.joinpath(twin, *place.parts[1:]) for twin in ("maskattn_jax", "maskattn_torch")]
    return all(home.is_dir() or home.with_name(home.name + ".py").is_file() for home in homes)


def misplaced(root):
    """Folders and files of tests that name nothing in the packages; rooms without tests."""
    found = []
    tests = root / "tests"
    for folder in sorted({path.parent.relative_to(tests) for path in tests.rglob("*.py")}):
        if folder.parts and folder not in HELPERS and not exists(root, folder):
            found.append(f"tests/{folder.as_posix()}: no such room")
    for place in (Path(), Path("twins")):
        for path in sorted((tests / place).glob("test_*.py")):
            words = path.stem.removeprefix("test_").split("_")
            names = ["_".join(words[: i + 1]) for i in range(len(words))]
            known = any(exists(root, place / f"{private}{name}") for name in names for private in ("", "_"))
            if words[-1] in TWINS and place.parts:  # of a module that this twin alone has
                home = root / f"maskattn_{words[-1]}" / "_".join(words[:-1])
                known = known or home.is_dir() or home.with_name(home.name + ".py").is_file()
            if not known and names[-1] not in (WHOLE if place == Path() else ONE_TWIN):
                found.append(f"{path.relative_to(root).as_posix()}: no such module")
    for room in sorted(path.parent.name for path in (root / "maskattn").glob("*/__init__.py")):
        if not list((tests / ELSEWHERE.get(room, room)).rglob("test_*.py")):
            found.append(f"maskattn/{room}: no tests")
    return found


def test_every_test_is_where_the_packages_have_its_subject():
    assert misplaced(ROOT) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("tests/kernels/test_more.py", "tests/kernels: no such room"),
        ("tests/twins/schedule/test_tiles.py", "tests/twins/schedule: no such room"),
        ("tests/test_more_cases.py", "tests/test_more_cases.py: no such module"),
        ("tests/twins/test_masks.py", "tests/twins/test_masks.py: no such module"),
        ("tests/twins/test_pallas.py", "tests/twins/test_pallas.py: no such module"),  # a module of one twin only
        ("tests/twins/test_pallas_torch.py", "tests/twins/test_pallas_torch.py: no such module"),  # it is the other's
        ("maskattn/ring/__init__.py", "maskattn/ring: no tests"),
    ],
)
def test_what_is_elsewhere_is_found(tmp_path, path, line):
    made = ["maskattn/masks/__init__.py", "tests/masks/test_json.py", "maskattn/config.py", "tests/test_config.py"]
    made += ["maskattn_jax/rng.py", "maskattn_torch/rng.py", "tests/twins/test_rng_draws.py", "tests/test_readme.py"]
    for name in (*made, "maskattn/_moved.py", "tests/test_moved.py", "maskattn_jax/pallas.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert misplaced(tmp_path) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert misplaced(tmp_path) == [line]
