"""No test, and no check of the packages, has a tolerance of its own: `maskattn/standards.py` has it, and says why."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("maskattn", "maskattn_jax", "maskattn_torch", "parity_tests", "tests")
WORDS = {"rtol", "atol", "tol", "tolerance"}
CLOSE = {"allclose", "approx", "assert_allclose", "assert_almost_equal", "assert_close", "isclose"}
#: Small numbers that are no tolerance, and why.
ALLOWED = {
    ("maskattn/diagnose/search.py", "0 < error <= ROUNDED"): "what rounding to float32 is",
    ("maskattn/diagnose/matching.py", "np.count_nonzero(steps > 1e-06 * size) >= DISTINCT - 1"): "numbers that differ",
    ("maskattn/diagnose/parameters.py", "np.ptp(moved) <= 1e-06 * float(np.abs(other.ordered).max())"): "all are one",
    ("maskattn/diagnose/parameters.py", "np.ptp(ratio) <= 1e-06 * np.abs(ratio).max()"): "all are one",
    (
        "maskattn/diagnose/tables.py",
        "np.allclose(exact, wide, rtol=2.0 ** (-22), atol=0)",
    ): "what rounding to float32 is",
    (
        "maskattn_torch/tracing/edits/activations.py",
        "float((function(x) - torch.from_numpy(y)).abs().max()) <= _SAME * float(x.abs().max())",
    ): "one function, computed in two ways",
    ("maskattn_torch/tracing/edits/constants.py", "0 < abs(mine) < 0.01"): "what an eps is",
    (
        "tests/diagnose/test_parameters.py",
        "np.testing.assert_allclose(whole[pair.places], part, rtol=0.01 if pair.rounded else 0)",
    ): "what rounding to bfloat16 is",
    ("maskattn/numerics/exact/bits.py", "ops.absolute(x) < SMALLEST_FLOAT64"): "the smallest normal number",
    ("maskattn/numerics/rng.py", "chance < 2.0 ** (-126)"): "the smallest normal float32",
    ("maskattn_torch/rng.py", "chance < 2.0 ** (-126)"): "the smallest normal float32",
    ("tests/convert/test_engine.py", "np.allclose(x, 0)"): "one of the ways to look at numbers that are not there",
}


def is_small(node):
    """Whether a number this small stands in the expression, or a multiple of eps."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, float) and 0 < part.value < 0.1:
            return True
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow) and isinstance(part.right, ast.UnaryOp):
            return True
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult) and names(part) & {"eps", "finfo"}:
            if any(isinstance(side, ast.Constant) for side in (part.left, part.right)):
                return True
    return False


def names(node):
    """The names and the attributes in an expression."""
    found = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def limits(node):
    """The expressions that say how much is allowed, in a call or a comparison."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        words = WORDS | ({"abs", "rel", "delta"} if name in CLOSE else set())
        yield from (keyword.value for keyword in node.keywords if keyword.arg in words)
        yield from node.args[2:] if name in CLOSE else ()
    if isinstance(node, ast.Compare):
        sides = (node.left, *node.comparators)
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            if isinstance(operator, ast.Lt | ast.LtE):
                yield right
            if isinstance(operator, ast.Gt | ast.GtE):
                yield left
                # a >= b * (1 - 1e-12)
                yield from (p for p in ast.walk(right) if isinstance(p, ast.BinOp) and isinstance(p.op, ast.Sub))


def is_left_open(node):
    """Whether a call compares within whatever its library takes where nothing is said."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    said = {keyword.arg for keyword in node.keywords}
    if name == "approx":
        return not said & {"abs", "rel"}
    return name in CLOSE and ("atol" in said) + ("rtol" in said) + max(0, len(node.args) - 2) < 1


def tolerances(text):
    """(line, what stands there) of each tolerance in this Python."""
    tree = ast.parse(text)
    given = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            given.setdefault(node.targets[0].id, []).append(node.value)
    found = set()
    for node in ast.walk(tree):
        for limit in limits(node):
            # a number that the limit is called by, in this file
            meant = [limit, *(value for name in names(limit) for value in given.get(name, ()) if plain(value))]
            if any(map(is_small, meant)):
                found.add((node.lineno, ast.unparse(node)))
        if is_left_open(node):
            found.add((node.lineno, ast.unparse(node)))
    return sorted(found)


def plain(value):
    """Whether a value is a number, or one times eps, and not an expression of many things."""
    return not any(isinstance(part, ast.Subscript | ast.Compare | ast.Lambda | ast.List) for part in ast.walk(value))


def test_tolerances_stand_in_standards():
    found, used = [], set()
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name in ("maskattn/standards.py", "tests/test_tolerances.py"):
            continue
        for line, text in tolerances(path.read_text(encoding="utf-8")):
            if (name, text) in ALLOWED:
                used.add((name, text))
            else:
                found.append(f"{name}:{line}: {text}")
    assert not found, "\n".join(found)
    assert used == ALLOWED.keys()


@pytest.mark.parametrize(
    "text",
    [
        "np.testing.assert_allclose(x, y, rtol=1e-6)",
        "np.testing.assert_allclose(x, y, 1e-6)",
        "np.testing.assert_allclose(x, y)",
        "assert x == pytest.approx(y)",
        "assert x == pytest.approx(y, rel=1e-12)",
        "assert abs(x - y) < 1e-5",
        "assert (abs(x - y) <= 2.0**-22).all()",
        "assert 1e-5 > error",
        "assert abs(x - y).max() <= 64 * standards.eps('float32') * size",
        "assert error < 3 * np.finfo(np.float32).eps",
        "assert bound >= value * (1 - 1e-12)",
        "LIMIT = 1e-5\nassert error <= LIMIT * size",
        "torch.testing.assert_close(x, y)",
        "assert torch.allclose(x, y)",
        "run(tolerance=0.01)",
    ],
)
def test_a_tolerance_is_found(text):
    assert tolerances(text)


@pytest.mark.parametrize(
    "text",
    [
        "optax.adam(1e-3)",
        "assert abs(x - y).max() > 0.01",
        "assert x == 1 + 2.0**-23",
        "np.testing.assert_allclose(x, y, rtol=0, atol=standards.value('same.tiles'))",
        "assert error <= limit",
        "assert error <= standards.tier2_limit('float32', size, logit, 7)",
        "assert 0 < rate < 1",
    ],
)
def test_other_numbers_are_none(text):
    assert not tolerances(text)
