"""maskattn_jax and maskattn_torch have the same files, the same names in the same order, and the same signatures.

Where they must differ, the difference is listed with its reason; an entry that no longer describes one fails, too.
"""

import ast
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest

from tests.frameworks import in_both

DEVICE = "PyTorch places each array where it is told; in JAX arrays follow their inputs, or shardings"
RNGS = "NNX draws initial parameters from explicit streams, PyTorch from its global generator"
DTYPE = "Flax separates the dtype of computation from that of parameters; a PyTorch module has one"
DEVICES = "JAX names several devices by an axis of their mesh, PyTorch by a process group"
PARTS = "JAX's compiler divides programs, with rules of kernels/blockwise; PyTorch divides calls"
TPU = "Splash attention is a function of JAX alone"
KERNELS = "on a GPU PyTorch has FlexAttention; JAX has kernels of its own"
LOOPS = "one compiled program walks all tiles here; in PyTorch each tile or run of tiles is a call"
MESHES = "XLA divides whole programs over a mesh; PyTorch's tensors say themselves how they lie (_sharded.py)"
PLATFORM = "JAX traces for a platform; PyTorch runs where its tensors are"
OWN = "each framework has modules and optimizers of its own"
FUNCTIONAL = "parameters of Linen, and states of optax, are values: new ones are returned"
TARGETS = "each framework has attention functions of its own, with mask objects of their own"
CALLS = "the PyTorch twin hands large rectangles to operators of PyTorch: another list, and no loop of its own"
FLEX = "on CUDA the PyTorch twin's tiles are FlexAttention's; JAX has kernels of its own"
AS_FLAX = "as Flax's own layers and modules have it"
STANDS_IN = "it has the arguments of a function or module of that framework, in whose place it is put"
TRANSFORMERS = "transformers is a library of PyTorch models"
SCAN = "XLA compiles a loop in the time of one block; PyTorch runs one block after the other"
CACHE = "PyTorch's are views of tensors with one slot more, where what takes no slot is written: JAX drops it"
ALLOWED = {
    "__init__: __all__ ['Attention', 'MultiHeadAttention', 'attention', 'attention_fn', 'corrupt', 'explain', 'linen', "
    "'losses', 'lower', 'merge', 'models', 'optimizers', 'params'] in maskattn_jax, ['Attention', "
    "'MultiHeadAttention', 'attention', 'compile_flex', 'corrupt', 'explain', 'losses', 'lower', 'merge', 'mha', "
    "'models', 'optimizers', 'params', 'register', 'scaled_dot_product_attention'] in maskattn_torch": "see linen.py; "
    "JAX compiles everything; what stands in for each framework's own attention",
    "flax.py: only in maskattn_jax": STANDS_IN,
    **{
        f"multihead.MultiHeadAttention.{name} only in maskattn_jax": AS_FLAX
        for name in (
            "__call__: sow_weights",
            "__call__: qkv_sharding",
            "__call__: out_sharding",
            "__init__: precision",
            "__init__: deterministic",
            "__init__: keep_rngs",
            "__init__: kernel_init",
            "__init__: bias_init",
            "__init__: out_kernel_init",
            "__init__: out_bias_init",
            "__init__: part_inits",
            "__init__: kernel_metadata",
            "__init__: bias_metadata",
            "__init__: out_kernel_metadata",
            "__init__: out_bias_metadata",
            "__init__: qkv_promote_dtype",
            "__init__: out_promote_dtype",
        )
    },
    "multihead.MultiHeadAttention: reset_parameters only in maskattn_torch": "as PyTorch's layers have it",
    "_called: __all__ ['CallOptions', 'Called'] in maskattn_jax, ['CallOptions', 'Called', 'called'] in "
    "maskattn_torch": ("JAX's own decorator takes Flax's names too"),
    "_called: called only in maskattn_torch": "JAX's own decorator takes Flax's names too",
    "_flax_calls.py: only in maskattn_jax": AS_FLAX,
    "_precision.py: only in maskattn_jax": AS_FLAX,
    "flax_linen.py: only in maskattn_jax": STANDS_IN,
    "flax_nnx.py: only in maskattn_jax": STANDS_IN,
    "mha.py: only in maskattn_torch": STANDS_IN,
    "hugging_face/__init__.py: only in maskattn_torch": TRANSFORMERS,
    "hugging_face/_attention.py: only in maskattn_torch": TRANSFORMERS,
    "hugging_face/_functions.py: only in maskattn_torch": TRANSFORMERS,
    "hugging_face/_masks.py: only in maskattn_torch": TRANSFORMERS,
    "hugging_face/_refused.py: only in maskattn_torch": TRANSFORMERS,
    "hugging_face/_trial.py: only in maskattn_torch": TRANSFORMERS,
    "sdpa.py: only in maskattn_torch": STANDS_IN,
    "optimizers.dump: optimizer: nnx.Optimizer | PyTree in maskattn_jax, torch.optim.Optimizer in maskattn_torch": OWN,
    "optimizers.load: optimizer: nnx.Optimizer | PyTree in maskattn_jax, torch.optim.Optimizer in maskattn_torch": OWN,
    "optimizers.load -> PyTree | None in maskattn_jax, None in maskattn_torch": FUNCTIONAL,
    "params.config_of: module: nnx.Module in maskattn_jax, torch.nn.Module in maskattn_torch": OWN,
    "params.dump: module: nnx.Module | Mapping[str, PyTree] in maskattn_jax, torch.nn.Module in maskattn_torch": OWN,
    "params.load: module: nnx.Module | flax.linen.Module | AttentionConfig in maskattn_jax, torch.nn.Module in "
    "maskattn_torch": OWN,
    "params.load -> dict[str, PyTree] | None in maskattn_jax, None in maskattn_torch": FUNCTIONAL,
    "testing.training.make_optimizer -> nnx.Optimizer in maskattn_jax, torch.optim.Optimizer in maskattn_torch": OWN,
    "testing.adapter.from_numpy -> jax.Array in maskattn_jax, torch.Tensor in maskattn_torch": "the framework's own",
    "types: __all__ ['Answer', 'Array', 'DType', 'Given', 'Initializer', 'Operand', 'Positions', 'RandomKey', "
    "'Sharding'] in maskattn_jax, ['Answer', 'Array', 'DType', 'Device', 'Given', 'Operand', 'Positions', 'RandomKey'] "
    "in maskattn_torch": DEVICE,
    "testing.adapter.Adapter.__init__: mode = 'jit' in maskattn_jax, 'eager' in maskattn_torch": "as most do",
    "corruption.corrupt: device only in maskattn_torch": DEVICE,
    "kernels/blockwise/additions.py: only in maskattn_torch": CALLS,
    "kernels/blockwise/patches.py: only in maskattn_torch": CALLS,
    "kernels/blockwise/flash.py: only in maskattn_torch": CALLS,
    "kernels/blockwise/flex/__init__.py: only in maskattn_torch": FLEX,
    "kernels/blockwise/flex/blocks.py: only in maskattn_torch": FLEX,
    "kernels/blockwise/flex/compiled.py: only in maskattn_torch": FLEX,
    "kernels/blockwise/flex/plans.py: only in maskattn_torch": FLEX,
    "kernels/blockwise/flex/rows.py: only in maskattn_torch": FLEX,
    "kernels/blockwise/flex/scores.py: only in maskattn_torch": FLEX,
    "kernels/blockwise/flex/traced.py: only in maskattn_torch": FLEX,
    "kernels/fused/cuda.py: only in maskattn_torch": "jax.nn chooses among its implementations by itself",
    "_hosted.py: only in maskattn_torch": "JAX places arrays, and keeps them, by itself",
    "auto: __all__ ['choose'] in maskattn_jax, ['choose', 'compiles_flex', 'give_up'] in maskattn_torch": FLEX,
    "auto: compiles_flex only in maskattn_torch": FLEX,
    "auto: give_up only in maskattn_torch": FLEX,
    "kernels/blockwise/products.py: only in maskattn_torch": CALLS,
    "kernels/blockwise/packing.py: only in maskattn_torch": CALLS,
    "kernels/blockwise/walk.py: only in maskattn_torch": CALLS,
    "kernels/blockwise/windows.py: only in maskattn_torch": CALLS,
    "kernels/blockwise/backward.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/shards.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/automatic.py: only in maskattn_jax": MESHES,
    "kernels/blockwise/own.py: only in maskattn_jax": MESHES,
    "_mesh.py: only in maskattn_jax": MESHES,
    "_partition.py: only in maskattn_jax": MESHES,
    "_gathered.py: only in maskattn_jax": MESHES,
    "kernels/blockwise/arrays.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/forward.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/tiled_call.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/steps.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/tile.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/tiling.py: only in maskattn_jax": LOOPS,
    "kernels/blockwise/gpu.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/sizes.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/__init__.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/backward.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/bias.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/bias_call.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/call.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/formulas.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/forward.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/lists.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/loops.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/operands.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/pairs.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/passes.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/sides.py: only in maskattn_jax": KERNELS,
    "kernels/blockwise/pallas/states.py: only in maskattn_jax": KERNELS,
    "kernels.merging: merge_into only in maskattn_torch": "JAX's arrays are not written to",
    "_platform.py: only in maskattn_jax": PLATFORM,
    "kernels/fused/cudnn.py: only in maskattn_jax": "PyTorch calls cuDNN itself, from SDPA",
    "kernels/fused/splash.py: only in maskattn_jax": TPU,
    "_operators.py: only in maskattn_torch": "JAX's operations bring their rules for vmap",
    "_autocast.py: only in maskattn_torch": "JAX has no autocast",
    "_modes.py: only in maskattn_torch": "JAX's tracers are their own modes",
    "_slots.py: only in maskattn_torch": "JAX calls are compiled, where nothing is checked at a call",
    "_short.py: only in maskattn_torch": "JAX calls are compiled, where nothing is checked at a call",
    "_apart.py: only in maskattn_torch": OWN,
    "_additions.py: only in maskattn_torch": OWN,
    "_devices.py: only in maskattn_torch": PARTS,
    "_parts.py: only in maskattn_torch": PARTS,
    "_sharded.py: only in maskattn_torch": PARTS,
    "parallel.py: only in maskattn_torch": "JAX's modules follow the shardings of their parameters",
    "_symbolic.py: only in maskattn_torch": "JAX's symbolic sizes answer for themselves",
    "_scope.py: only in maskattn_jax": "PyTorch has no modes of promotion",
    "_linear.py: only in maskattn_jax": "a function of PyTorch has a rule for each mode of differentiation",
    "kernels.reference.by_rows: first only in maskattn_jax": "a device has a part of the call",
    "kernels.reference.by_rows: whole only in maskattn_jax": "a device has a part of the call",
    "kernels.fused: Settled only in maskattn_torch": "SDPA is given the whole mask, jax.nn the mask's own words",
    "_derivatives.py: only in maskattn_torch": "as _linear.py, for PyTorch's kind of rule",
    "_placed.py: only in maskattn_jax": "what is loaded fills a tensor of PyTorch; an array of JAX is replaced",
    "_varying.py: only in maskattn_jax": "PyTorch's types say nothing of the devices over which an array varies",
    "kernels/fused/trimmed.py: only in maskattn_torch": "sizes of arrays are fixed in a compiled program of JAX",
    "cache.Cache.__init__: key only in maskattn_jax": CACHE,
    "cache.Cache.__init__: stored only in maskattn_torch": CACHE,
    "cache.Cache.__init__: value only in maskattn_jax": CACHE,
    "kernels/fused/finite.py: only in maskattn_torch": "jax.nn is given keys that are finite: values cannot be read",
    "kernels/fused/again.py: only in maskattn_torch": "jax.nn's attention has second derivatives of its own",
    "_held.py: only in maskattn_torch": "what is said of its two module systems in _layers.py, and in each of them",
    "_layers.py: only in maskattn_jax": "what its two module systems share",
    "linen.py: only in maskattn_jax": "Linen is a second module system of JAX; PyTorch has one",
    "losses.accuracy: axis_name only in maskattn_jax": DEVICES,
    "losses.accuracy: group only in maskattn_torch": DEVICES,
    "losses.contrastive: axis_name only in maskattn_jax": DEVICES,
    "losses.contrastive: group only in maskattn_torch": DEVICES,
    "losses.cross_entropy: axis_name only in maskattn_jax": DEVICES,
    "losses.cross_entropy: group only in maskattn_torch": DEVICES,
    "losses.mae_loss: axis_name only in maskattn_jax": DEVICES,
    "losses.mae_loss: group only in maskattn_torch": DEVICES,
    "losses.masked_mean: axis_name only in maskattn_jax": DEVICES,
    "losses.masked_mean: group only in maskattn_torch": DEVICES,
    "losses.simmim_loss: axis_name only in maskattn_jax": DEVICES,
    "losses.simmim_loss: group only in maskattn_torch": DEVICES,
    "models/divided.py: only in maskattn_torch": MESHES,
    "models/meshes.py: only in maskattn_jax": MESHES,
    "models/held.py: only in maskattn_jax": "a module of PyTorch has its state dict",
    "models.files.load: mesh: Mesh | None in maskattn_jax, DeviceMesh | None in maskattn_torch": OWN,
    "models.files.load: scan_layers only in maskattn_jax": SCAN,
    "models.modules.Block.__call__: number: int | Array in maskattn_jax, int in maskattn_torch": SCAN,
    "models.modules.Block.__init__: remat only in maskattn_jax": "an attribute of PyTorch's, which may be set later",
    "models.modules.Model.__init__: places only in maskattn_jax": MESHES,
    "models.modules.Model.__init__: scan_layers only in maskattn_jax": SCAN,
    "models.modules: Loop only in maskattn_jax": SCAN,
    "models.modules: __all__ ['Block', 'Group', 'Loop', 'Model', 'Norm'] in maskattn_jax, ['Block', 'Group', 'Model', "
    "'Norm'] in maskattn_torch": SCAN,
    "lower: __all__ ['allowed', 'bias', 'bind', 'check', 'opaque', 'register', 'to_additive', 'to_dense', "
    "'to_dot_product_attention', 'to_splash_mask'] in maskattn_jax, ['allowed', 'bias', 'bind', 'check', 'register', "
    "'to_additive', 'to_block_mask', 'to_dense'] in maskattn_torch": TARGETS,
    "lower.backends: __all__ ['to_dot_product_attention', 'to_splash_mask'] in maskattn_jax, ['to_block_mask'] in "
    "maskattn_torch": TARGETS,
    "lower.backends: DotProductKeywords only in maskattn_jax": TARGETS,
    "lower.backends: to_block_mask only in maskattn_torch": TARGETS,
    "lower.backends: to_dot_product_attention only in maskattn_jax": TARGETS,
    "lower.backends: to_splash_mask only in maskattn_jax": TARGETS,
    "lower/words.py: only in maskattn_jax": TARGETS,
    "lower._binding.arange: device only in maskattn_torch": DEVICE,
    "lower._binding.bind: device only in maskattn_torch": DEVICE,
    "lower._binding: opaque only in maskattn_jax": "PyTorch's compilers fold nothing from a large constant",
    "lower._binding: device_of only in maskattn_torch": DEVICE,
    "lower._dense.allowed: device only in maskattn_torch": DEVICE,
    "lower._dense.bias: device only in maskattn_torch": DEVICE,
    "lower._dense.to_additive: device only in maskattn_torch": DEVICE,
    "lower._dense.to_dense: device only in maskattn_torch": DEVICE,
    "multihead.MultiHeadAttention.__call__: dropout_key: RandomKey | nnx.Rngs | None in maskattn_jax, RandomKey | None "
    "in maskattn_torch": RNGS,
    "multihead.MultiHeadAttention.__init__: device only in maskattn_torch": DEVICE,
    "multihead.MultiHeadAttention.__init__: param_dtype only in maskattn_jax": DTYPE,
    "multihead.MultiHeadAttention.__init__: rngs only in maskattn_jax": RNGS,
    "multihead.MultiHeadAttention: extra_repr only in maskattn_torch": "what torch.nn.Module calls to print a module",
    "multihead.MultiHeadAttention: set_view only in maskattn_jax": "what nnx.view calls; PyTorch has train()",
    "rng.words: device only in maskattn_torch": DEVICE,
    "seed.Attention.__init__: rngs only in maskattn_jax": RNGS,
    "testing.adapter.Adapter.__init__: name = 'jax' in maskattn_jax, 'torch' in maskattn_torch": "each says who it is",
}

# How the twins name what is called when a module is called.
CALL = {"forward": "__call__"}


def files(package):
    root = Path(importlib.import_module(package).__path__[0])
    found = {str(file.relative_to(root)): file for file in sorted(root.rglob("*.py"))}
    # tracing: what a framework does when a program runs, which has nothing of the other's
    return {name: file for name, file in found.items() if not name.startswith("tracing")}


def only(where, first, second, packages):
    """The names that one of the twins lacks; then, where the shared ones come in a different order, that."""
    prefix = f"{where}: " if where else ""
    for names, others, package in [(first, second, packages[0]), (second, first, packages[1])]:
        yield from (f"{prefix}{name}{'' if where else ':'} only in {package}" for name in names if name not in others)
    shared = [[name for name in names if name in others] for names, others in [(first, second), (second, first)]]
    if shared[0] != shared[1]:
        yield f"{prefix}order {shared[0]} in {packages[0]}, {shared[1]} in {packages[1]}"


def public(file):
    """The public functions and classes a file defines, in its order."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def methods(cls):
    """The public methods a class defines itself, and how it is made and called, in its order: name -> function."""
    named = {CALL.get(name, name): value for name, value in vars(cls).items() if inspect.isfunction(value)}
    return {name: f for name, f in named.items() if not name.startswith("_") or name in ("__init__", "__call__")}


def plain(default):
    """A default as both frameworks can say it: a dtype by its name, anything else as it prints."""
    try:
        return np.dtype(default).name if default not in (None, inspect.Parameter.empty) else repr(default)
    except TypeError:
        return repr(default).removeprefix("torch.")


def compare_signatures(where, first, second, packages):
    parameters = [inspect.signature(function).parameters for function in (first, second)]
    yield from only(where, list(parameters[0]), list(parameters[1]), packages)
    for name in parameters[0].keys() & parameters[1].keys():
        one, two = (p[name] for p in parameters)
        if one.kind != two.kind:
            yield f"{where}: {name} is {one.kind.description} in {packages[0]}, {two.kind.description} in {packages[1]}"
        if plain(one.default) != plain(two.default):
            yield f"{where}: {name} = {plain(one.default)} in {packages[0]}, {plain(two.default)} in {packages[1]}"
        if one.annotation != two.annotation:
            yield f"{where}: {name}: {one.annotation} in {packages[0]}, {two.annotation} in {packages[1]}"
    returned = [inspect.signature(function).return_annotation for function in (first, second)]
    if returned[0] != returned[1]:
        yield f"{where} -> {returned[0]} in {packages[0]}, {returned[1]} in {packages[1]}"


def differences(*packages):
    """Every difference between two packages that should be twins, in words."""
    trees = [files(package) for package in packages]
    yield from only("", list(trees[0]), list(trees[1]), packages)
    for path in trees[0].keys() & trees[1].keys():
        suffix = path.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")
        stem = suffix or "__init__"
        modules = [importlib.import_module(f"{package}.{suffix}".rstrip(".")) for package in packages]
        exported = [getattr(module, "__all__", None) for module in modules]
        if exported[0] != exported[1]:
            yield f"{stem}: __all__ {exported[0]} in {packages[0]}, {exported[1]} in {packages[1]}"
        names = [public(tree[path]) for tree in trees]
        yield from only(stem, *names, packages)
        for name in names[0]:
            if name not in names[1]:
                continue
            one, two = (getattr(module, name) for module in modules)
            if inspect.isclass(one) and inspect.isclass(two):
                own = [methods(cls) for cls in (one, two)]
                yield from only(f"{stem}.{name}", list(own[0]), list(own[1]), packages)
                for method in own[0].keys() & own[1].keys():
                    yield from compare_signatures(f"{stem}.{name}.{method}", own[0][method], own[1][method], packages)
            else:
                yield from compare_signatures(f"{stem}.{name}", one, two, packages)


@in_both
def test_the_twins_differ_only_where_it_is_said_and_why():
    assert {"functional.py", "lower/__init__.py", "kernels/exact/__init__.py"} <= files("maskattn_jax").keys()
    found = set(differences("maskattn_jax", "maskattn_torch"))
    assert sorted(found - ALLOWED.keys()) == []
    assert sorted(ALLOWED.keys() - found) == [], "these are no differences any more: take them from the list"


TWIN = """
__all__ = ["Module", "attend"]

def attend(query, key, *, scale=None, dtype="float32"):
    pass

class Module:
    def __init__(self, config):
        pass

    def __call__(self, query):
        pass
"""


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("query, key, *", "query, key, *"), None),
        (("def __call__", "def forward"), None),
        (('"float32"', "__import__('numpy').float32"), None),
        (("def attend", "def attends"), "functional: attend only in planted_0"),
        (("query, key, *", "key, query, *"), "functional.attend: order"),
        (
            ("key, *, scale", "key, scale"),
            "functional.attend: scale is keyword-only in planted_0, positional or keyword in",
        ),
        (("scale=None", "scale=1.0"), "functional.attend: scale = None in planted_0, 1.0 in planted_1"),
        (
            ("scale=None", "scale"),
            "functional.attend: scale = None in planted_0, <class 'inspect._empty'> in planted_1",
        ),
        (("key, *", "key, mask, *"), "functional.attend: mask only in planted_1"),
        (('"Module", ', ""), "functional: __all__"),
        (
            ("__call__(self, query)", "__call__(self, query, mask)"),
            "functional.Module.__call__: mask only in planted_1",
        ),
        (("__call__", "apply"), "functional.Module: __call__ only in planted_0"),
        (("self, config", "self, config, rngs"), "functional.Module.__init__: rngs only in planted_1"),
        (("\nclass Module", "\nclass _Module"), "functional: Module only in planted_0"),
        ((TWIN, "\n".join(["class Module: pass", TWIN.partition("class")[0]])), "functional: order"),
    ],
)
def test_a_planted_difference_is_seen(tmp_path, monkeypatch, change, difference):
    assert TWIN.count(change[0]) == 1
    packages = [f"planted_{i}" for i in (0, 1)]
    for package, text in zip(packages, [TWIN, TWIN.replace(*change)], strict=True):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "functional.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [f"{package}{module}" for package in packages for module in ("", ".functional")]:
        monkeypatch.delitem(importlib.sys.modules, name, raising=False)
    found = list(differences(*packages))
    if difference is None:
        assert found == []
    else:
        assert any(line.startswith(difference) for line in found), found


def test_a_file_in_one_twin_alone_is_seen(tmp_path, monkeypatch):
    for package in ("alone_0", "alone_1"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "alone_1" / "extra.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert list(differences("alone_0", "alone_1")) == ["extra.py: only in alone_1"]
