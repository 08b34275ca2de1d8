"""Every public name is documented: its arguments, their shapes and dtypes, which way a mask is meant, what is raised,
and the source.

`problems_of` is the tool; what it says of functions and classes written badly on purpose shows that it looks.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import textwrap
from typing import NamedTuple

import pytest
from jaxtyping import Bool

from maskattn._problems import Problems
from maskattn.typing import NumPyArray as Array
from tests.frameworks import in_both

MODULES = [
    *("maskattn", "maskattn.masks", "maskattn.biases", "maskattn.recipes", "maskattn.corruption", "maskattn.schedule"),
    *("maskattn.convert", "maskattn.convert.layouts", "maskattn.checkpoints", "maskattn.optimizers", "maskattn.show"),
    *("maskattn.numerics.rng", "maskattn.numerics.exact", "maskattn.numerics.dropout"),
]
OF_TWINS = [
    *("maskattn_jax.linen", "maskattn_jax", "maskattn_torch", "maskattn_torch.mha"),
    *(
        f"maskattn_{twin}.{module}"
        for twin in ("jax", "torch")
        for module in ("losses", "lower", "optimizers", "params", "rng", "dropout")
    ),
]
#: What is exported for the twins, and is no one else's to call.
INTERNAL = {
    "maskattn.corruption.Ops": "the operations that a framework brings",
    "maskattn.numerics.exact.Ops": "the operations that a framework brings",
    "maskattn.numerics.exact.NumpyOps": "the operations that NumPy brings",
    "maskattn.numerics.exact.Arrays": "a call in the terms of attend.py",
    "maskattn.numerics.exact.Options": "a call in the terms of attend.py",
}
#: Where patterns and formulas of others are taken up, and of which of the names there the source is to be said.
SOURCED = {
    "maskattn.recipes": inspect.isfunction,
    "maskattn.corruption": lambda thing: "apply" in vars(thing),
    "maskattn.biases": lambda thing: dataclasses.is_dataclass(thing),
    "maskattn.optimizers": inspect.isfunction,
    "maskattn.numerics.rng": inspect.isfunction,
    "maskattn_jax.losses": inspect.isfunction,
    "maskattn_torch.losses": inspect.isfunction,
}
OWN = {
    "maskattn.biases.DenseBias": "an array that the caller has",
    "maskattn.optimizers.convert": "this library's own layouts",
    **{
        f"maskattn_{twin}.losses.{name}": "a definition, nobody's invention"
        for twin in ("jax", "torch")
        for name in ("accuracy", "masked_mean")
    },
}
#: A paper with its year, an identifier, or whose code it is.
_SOURCE = re.compile(
    r"\b(19|20)\d\d\b|arXiv:\d|https://|Hugging Face's|\b(optax|timm)\b|`jax\.random|seed module"
    r"|`optimizer\.state_dict|PyTorch's ``load_state_dict"
)
_SHAPE = re.compile(r"\[[^\]\n]*\]|\bscalars?\b|\bshapes?\b|\bbroadcast", re.IGNORECASE)
_DTYPE = re.compile(r"\b(u?int(eger)?s?\d*|bools?|b?float(ing)?s?\d*|dtypes?|numbers?|masks?)\b", re.IGNORECASE)
_POLARITY = re.compile(
    r"\b(True|False|1) (or True )?=|\b0 (where|may)|-inf (forbids|and)|\(1 - (mask|allowed)\)|may attend|True with prob"
)
#: Arguments that say which places count, and by whose convention is not to be guessed.
_MASKS = {"mask", "attention_mask", "attn_mask", "key_padding_mask", "keep", "allowed", "special", "valid", "removed"}
_AN_ARRAY = re.compile(r"(tuple\[)?(None \| |int \| |float \| )*(Array|Operand|Given)\b")
_A_SHAPED_ARRAY = re.compile(r"(Bool|U?Int\d*|Integer|Float\d*|Num|Shaped)\[\w+, ?['\"]")
#: "Arguments and errors as in `name`", "Methods take `a`, `b`": said once, for many.
_AS_IN = re.compile(
    r"\b(Arg(?:ument)?s(?:\sand\serrors)?|Errors)\s(?:are\s)?(?:as\s(?:in|for|of)|those\sof)\s`+([\w.]+)`+"
)
_METHODS = re.compile(r"^Methods take .*?(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
_FIELDS = re.compile(r"^(?:Args|Attributes):\n(?P<entries>(?:[ \t]+.*\n?|\n)+)", re.MULTILINE)


class Said(NamedTuple):
    """What is said of a name: by itself, where it refers for its arguments or its errors, and by its class."""

    own: str
    arguments: str
    errors: str
    of_class: str


def public(module):
    """(dotted name, object, its class) of each public function, class, and method or property of a public class."""
    names = importlib.import_module(module)
    for name in names.__all__:
        thing = getattr(names, name)
        if f"{module}.{name}" in INTERNAL or not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        yield f"{module}.{name}", thing, None
        for method, function in vars(thing).items() if inspect.isclass(thing) else ():
            function = getattr(function, "fget", None) or getattr(function, "func", None) or function
            function = inspect.unwrap(getattr(function, "__func__", function))
            bases = [base for base in thing.__mro__[1:] if base.__module__.startswith("maskattn")]
            field = method in getattr(thing, "__dataclass_fields__", ())  # whose default is a function
            inherited = field or any(method in vars(base) for base in bases)  # documented where it is introduced
            shown = not method.startswith("_") or (method == "__call__" and module in OF_TWINS)
            if inspect.isfunction(function) and shown and not inherited:
                yield f"{module}.{name}.{method}", function, thing


def problems_of(thing, of_class=None, sourced=False):
    """What the documentation of a function, a class or a method leaves out."""
    own = text_of(thing)
    if not own:
        return ["no docstring"]
    try:
        said = all_that_is_said(thing, own, of_class)
    except LookupError as error:
        return [str(error)]
    given, returned = arguments_of(thing)
    found = list(unnamed(thing, given, said))
    for name, annotation in given.items():
        found += [f"no {what} of {name}" for what in missing_of(annotation, where_named(name, said.arguments))]
    found += [f"no {what} of what is returned" for what in missing_of(returned, own)]
    masks = [n for n, of in given.items() if n in _MASKS or re.search(r"\bMask\b|\bBool\[", of)]
    masks += ["what is returned"] if re.search(r"^Mask$|^Bool\[", returned) else []
    if masks and not _POLARITY.search(said.arguments + said.of_class):
        found.append(f"which way {', '.join(masks)} is meant: True = may attend, or what")
    errors = raised_by(thing)
    if errors and "Raises:" not in said.errors:
        found.append("no Raises")
    else:
        own_errors = raised_by(thing, depth=0)
        found += [f"{error} is not among what it raises" for error in sorted(own_errors) if error not in said.errors]
    if sourced and not _SOURCE.search(own):
        found.append("no source")
    return found


def text_of(thing):
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    if dataclasses.is_dataclass(thing) and (text or "").startswith(f"{thing.__name__}("):
        return ""  # made by @dataclass
    return inspect.cleandoc(text or "")


def all_that_is_said(thing, own, of_class):
    arguments = errors = own
    for what, name in _AS_IN.findall(own):
        other = text_of(named(name, thing, of_class))
        arguments += f"\n\n{other}" if what.startswith("Arg") else ""
        errors += f"\n\n{other}" if what.lower().endswith("errors") else ""
    around = "\n\n".join(text_of(base) for base in of_class.__mro__[:-1]) if of_class else ""
    return Said(own, arguments, errors, around)


def named(name, thing, of_class):
    """What a docstring calls by this name: a member of the class, of the module, or of the library."""
    package = name.split(".")[0]
    if package.startswith("maskattn"):
        spaces, path = [importlib.import_module(package)], name.split(".")[1:]
    else:
        spaces, path = [of_class, sys.modules[thing.__module__], importlib.import_module("maskattn")], name.split(".")
    for space in spaces:
        found = functools.reduce(lambda held, part: getattr(held, part, None), path, space)
        if found is not None:
            return found
    raise LookupError(f"refers to {name}, which there is not")


def arguments_of(thing):
    """The arguments, or for a class its fields, and what is returned: names -> annotations as text."""
    if inspect.isclass(thing) and issubclass(thing, tuple):
        return {name: getattr(of, "__forward_arg__", str(of)) for name, of in thing.__annotations__.items()}, ""
    if inspect.isclass(thing) and not callable(vars(thing).get("__init__")):
        return {}, ""
    signature = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing)
    hidden = {"self", "cls", "ops"}  # `ops`: what a twin passes for its own arrays
    if inspect.isclass(thing) and any(base.__module__.startswith("flax") for base in thing.__mro__):
        hidden |= {"parent", "name"}  # fields of every module of Linen
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    shown = [p for p in signature.parameters.values() if p.kind not in variadic and p.name not in hidden]
    returned = "" if signature.return_annotation is signature.empty else str(signature.return_annotation)
    return {p.name: "" if p.annotation is p.empty else str(p.annotation) for p in shown}, returned


def unnamed(thing, given, said):
    """The arguments of a function that are not named; the fields of a class that have no entry of their own."""
    if inspect.isclass(thing) and (issubclass(thing, tuple) or dataclasses.is_dataclass(thing)):
        entries = "".join(match["entries"] for match in _FIELDS.finditer(said.arguments))
        for name in given:
            if not re.search(rf"(?<![\w.]){name}(, \w+)*( \([^\n]*)?:", entries):
                yield f"no entry of {name} under Args or Attributes"
        return
    for name in given:
        once = "".join(_METHODS.findall(said.of_class))
        if not re.search(rf"(?<![\w.]){name}\b", said.arguments + once):
            yield f"{name} is not named"


def where_named(name, text):
    """The paragraphs, or sections, that name an argument."""
    return "\n\n".join(part for part in re.split(r"\n\n", text) if re.search(rf"(?<![\w.]){name}\b", part))


def missing_of(annotation, text):
    """What is said of an array neither by its annotation nor in words."""
    if not _AN_ARRAY.match(annotation) or _A_SHAPED_ARRAY.match(annotation):
        return []
    return [what for what, words in (("shape", _SHAPE), ("dtype", _DTYPE)) if not words.search(text)]


def raised_by(thing, depth=1):
    """The errors that its own code raises, itself, through `Problems`, or in a function of the library it calls."""
    if inspect.isclass(thing):
        made = [inspect.unwrap(vars(thing)[name]) for name in ("__init__", "__post_init__") if name in vars(thing)]
        written = [f for f in made if inspect.isfunction(f) and not f.__code__.co_filename.startswith("<")]
        return set().union(*(raised_by(function, depth) for function in written))
    errors, calls = named_in(thing)
    if depth:
        known = [called_by(thing, *call) for call in calls]
        library = [f for f in known if inspect.isfunction(f) and is_of_library(f)]
        errors = errors.union(*(raised_by(function, depth - 1) for function in library if function is not thing))
    return errors


def is_of_library(function):
    return (function.__module__ or "").startswith("maskattn")


def called_by(function, name, attribute=None):
    """What a function calls by this name, or by this name in a module."""
    found = inspect.unwrap(function).__globals__.get(name)
    if attribute is None:
        return found
    return getattr(found, attribute, None) if inspect.ismodule(found) else None


@functools.cache
def named_in(function):
    """The errors that a function raises by name, and the functions that it calls by name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    nodes = list(ast.walk(tree))
    made = [node.exc.func for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    made += [node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name)]
    errors = {name.id for name in made if isinstance(name, ast.Name) and name.id.endswith("Error")}
    handlers = [node.type for node in nodes if isinstance(node, ast.ExceptHandler) and node.type]
    caught = {name.id for handler in handlers for name in ast.walk(handler) if isinstance(name, ast.Name)}
    functions = [node.func for node in nodes if isinstance(node, ast.Call)]
    called = {(name.id,) for name in functions if isinstance(name, ast.Name)}
    if (Problems.__name__,) in called or any(getattr(node, "attr", "") == "raise_if_any" for node in nodes):
        errors.add("ValueError")
    called |= {
        (name.value.id, name.attr)
        for name in functions
        if isinstance(name, ast.Attribute) and hasattr(name.value, "id")
    }
    never = {"NotImplementedError", "AssertionError"}  # what a subclass leaves out, and what cannot be
    return frozenset(errors - never - caught), frozenset(called)


def of_framework(module):
    twin = module.split(".")[0].removeprefix("maskattn_")
    return pytest.param(module, marks=getattr(pytest.mark, twin))


@pytest.mark.parametrize("module", [*MODULES, *map(of_framework, OF_TWINS)])
def test_public_names_are_documented(module):
    found = {}
    for name, thing, of_class in public(module):
        sourced = of_class is None and module in SOURCED and name not in OWN and SOURCED[module](thing)
        problems = problems_of(thing, of_class, sourced)
        if problems:
            found[name] = problems
    assert found == {}


@in_both
def test_what_is_excepted_is_there():
    for name in {**INTERNAL, **OWN}:
        module, _, attribute = name.rpartition(".")
        assert attribute in importlib.import_module(module).__all__, f"{name} is no public name any more"
    names = [name for module in [*MODULES, *OF_TWINS] for name, _, _ in public(module)]
    assert len(names) > 300  # it looks at what is there
    assert {
        "maskattn.masks.Mask.dense",
        "maskattn.show.Statistics.density",
        "maskattn_torch.MultiHeadAttention.forward",
    } <= {*names}


def undocumented(query):
    pass


def half(query, attention_mask, rate):
    """The query, dropped at a rate."""
    if rate > 1:
        raise ValueError(rate)


def whole(query, attention_mask, rate):
    """The query [B, L, D], dropped at a rate (Srivastava et al. 2014).

    Args:
        query: float [B, L, D]. attention_mask: bool [B, L]; True = kept. rate: in [0, 1].

    Raises:
        ValueError: rate is above 1.
    """
    if rate > 1:
        raise ValueError(rate)


def other_error(rate):
    """Half of the rate.

    Raises:
        TypeError: rate is above 1.
    """
    if rate > 1:
        raise ValueError(rate)


def by_a_checker(rate):
    """Half of the rate."""
    other_error(rate)


def referring(query, attention_mask, rate):
    """The same again. Arguments and errors as in `whole`."""
    return whole(query, attention_mask, rate)


def astray(query):
    """Arguments as in `no_such_function`."""


class Drawn(NamedTuple):
    """What is drawn: the kept ones.

    Attributes:
        kept: bool [B, L].
    """

    kept: Bool[Array, "B L"]
    places: Array


class Kept(NamedTuple):
    """What is drawn.

    Attributes:
        kept: bool [B, L], True = kept. places: int [B, K], where they are.
    """

    kept: Bool[Array, "B L"]
    places: Array


class Store:
    """Where arrays are.

    Methods take `name`, the array's.
    """

    def read(self, name: str, start: int) -> Array:
        """The array."""

    def write(self, name: str, array: Array) -> None:
        """Keep `array`, of any shape and dtype."""


@pytest.mark.parametrize(
    ("thing", "of_class", "problems"),
    [
        (undocumented, None, ["no docstring"]),
        (
            half,
            None,
            [
                "attention_mask is not named",
                "which way attention_mask is meant: True = may attend, or what",
                "no Raises",
                "no source",
            ],
        ),
        (whole, None, []),
        (other_error, None, ["ValueError is not among what it raises", "no source"]),
        (by_a_checker, None, ["no Raises", "no source"]),
        (referring, None, ["no source"]),
        (astray, None, ["refers to no_such_function, which there is not"]),
        (
            Drawn,
            None,
            [
                "no entry of places under Args or Attributes",
                "no shape of places",
                "no dtype of places",
                "which way kept is meant: True = may attend, or what",
                "no source",
            ],
        ),
        (Kept, None, ["no source"]),
        (
            Store.read,
            Store,
            ["start is not named", "no shape of what is returned", "no dtype of what is returned", "no source"],
        ),
        (Store.write, Store, ["no source"]),
    ],
)
def test_what_is_left_out_is_seen(monkeypatch, thing, of_class, problems):
    monkeypatch.setattr(f"{__name__}.is_of_library", lambda function: True)
    assert problems_of(thing, of_class, sourced=True) == problems
