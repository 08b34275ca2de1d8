"""Modules of whole models: made from a table, named as the model that it describes was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskattn import models
from maskattn.attention import KernelCannot
from maskattn.models import Inputs, Output, WholeModel, generate, leaves
from maskattn.models.adapters import Adapter
from maskattn.models.attention import Given
from maskattn.models.block import Block as BlockTable, Stack
from maskattn.models.exact import refuse
from maskattn.models.files import Origin
from maskattn.models.part import Run, find
from maskattn.typing import KernelName, NumPyArray
from maskattn_jax import rng
from maskattn_jax.cache import Cache
from maskattn_jax.models.exact import Exact, added_to
from maskattn_jax.models.meshes import Places
from maskattn_jax.models.ops import OPS, Plain
from maskattn_jax.models.writing import Writer
from maskattn_jax.types import Array, DType, Given as Numbers, RandomKey

__all__ = ["Block", "Group", "Loop", "Model", "Norm"]

#: (published name, what it is) -> its numbers, as Flax has them.
Start = Callable[[str, leaves.Tensor], Array]

jax.tree_util.register_dataclass(Output, [field.name for field in dataclasses.fields(Output)], [])


class Group(nnx.Module):
    """Modules by their names; those that are numbers by index, too."""

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(index))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __iter__(self) -> Iterator[Any]:
        return (module for name, module in vars(self).items() if isinstance(module, nnx.Module))


class Norm(nnx.Module):
    """Layer norm or RMS norm over the last axis; computed in float32 at least, rounded once."""

    def __init__(self, table: leaves.Norm, start: Callable[[str], Array]) -> None:
        self.table = table
        self.scale = nnx.data(nnx.Param(start("weight")) if table.scale else None)
        self.bias = nnx.data(nnx.Param(start("bias")) if table.bias else None)

    def __call__(self, x: Array) -> Array:
        """x [..., width] -> the same."""
        table = self.table
        wide = jnp.promote_types(x.dtype, jnp.float32)
        made = x.astype(wide)
        axis = -2 if table.kind == "frames" else -1
        if table.kind != "rms":
            made = made - made.mean(axis, keepdims=True)
        made = made * jax.lax.rsqrt(jnp.square(made).mean(axis, keepdims=True) + table.eps)
        if self.scale is not None:
            scale = self.scale[...].astype(wide)
            made = made * (scale + 1 if table.plus_one else scale)
        if self.bias is not None:
            made = made + self.bias[...].astype(wide)
        return made.astype(x.dtype)


class Block(Group):
    """A block of a model.

    Attributes:
        remat: whether gradients compute it again, in place of keeping what is within.
    """

    spans = 1

    def __init__(self, table: BlockTable, remat: bool = False) -> None:
        self.table, self.remat = table, remat

    def __call__(
        self, h: Array, run: Run[Array], number: int | Array, given: Given[Array], cache: Any = None
    ) -> tuple[Array, Any]:
        """h [B, L, E] -> [B, L, E], and the new cache where there is one."""
        if not self.remat:
            return self.table.apply(self, h, run.within(number), given, cache)
        graph, state = nnx.split(self)

        def again(state: Any, h: Array, cache: Any) -> tuple[Array, Any]:
            block = nnx.merge(graph, state)
            return block.table.apply(block, h, run.within(number), dataclasses.replace(given, states=None), cache)

        given.note(h)
        made: tuple[Array, Any] = jax.checkpoint(again)(state, h, cache)
        return made


class Loop(nnx.Module):
    """Blocks that are alike, as one loop (`jax.lax.scan`) over their stacked numbers: one is compiled.

    Attributes:
        phases: the blocks of one step, their numbers stacked along a first axis.
        spans: how many layers that is.
    """

    def __init__(self, phases: list[Block], times: int, remat: bool) -> None:
        self.phases = nnx.List(phases)
        self.times, self.remat = times, remat
        self.spans = times * len(phases)

    def __call__(
        self, h: Array, run: Run[Array], number: int | Array, given: Given[Array], cache: Any = None
    ) -> tuple[Array, Any]:
        """h [B, L, E] -> [B, L, E], and the new caches, stacked, where there are some."""
        parts = [nnx.split(block) for block in self.phases]
        width = len(parts)

        def step(h: Array, given_of: Any) -> tuple[Array, Any]:
            states, first, caches = given_of
            seen, grown = [], []
            own = dataclasses.replace(given, states=None)
            for place, ((graph, _), state) in enumerate(zip(parts, states, strict=True)):
                seen.append(h)
                block = nnx.merge(graph, state)
                h, new = block(h, run, first + place, own, None if caches is None else caches[place])
                grown.append(new)
            return h, (None if given.states is None else seen, None if caches is None else tuple(grown))

        numbers = number + width * jnp.arange(self.times)
        states = [state for _, state in parts]
        h, (seen, grown) = jax.lax.scan(jax.checkpoint(step) if self.remat else step, h, (states, numbers, cache))
        for at in range(self.spans if seen is not None else 0):
            given.note(seen[at % width][at // width])
        return h, grown


class Model(Group):
    """A whole model of a table (`maskattn.models.describe`); `maskattn_jax.models.load` makes one of a checkpoint.

    Args:
        table: the model.
        start: what each parameter begins with; None: what a new model has.
        config: of the checkpoint, its config.json.
        origin: what it was loaded from.
        dtype: of the computation; None: that of the parameters.
        remat: whether gradients compute each block again, in place of keeping what is within.
        scan_layers: whether blocks that are alike are one loop, whose numbers are stacked: it compiles in the time of
            one block. The first of them then holds all.
        adapter: whose layers the table has; its parameters are `nnx.LoRAParam`.
        places: where parameters and caches lie on a mesh; None: where `start` makes them.
    """

    def __init__(
        self,
        table: WholeModel,
        start: Start | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        origin: Origin | None = None,
        dtype: DType | None = None,
        remat: bool = False,
        scan_layers: bool = False,
        adapter: Adapter | None = None,
        places: Places | None = None,
    ) -> None:
        self.table, self.config = table, models.Configuration(config or {})
        self.origin, self.dtype, self.adapter, self.places = origin, dtype, adapter, places
        self.remat, self.scan_layers = remat, scan_layers
        start = start or _begin
        held = set()
        for stack in table.stacks() if scan_layers else ():
            first, period, times = stack.period()
            if times:
                held |= set(stack.places[first : first + period * times])
                _place(self, stack.places[first], _loop(stack, start, remat, places))
        for path, block in table.blocks():
            if path not in held:
                _place(self, path, Block(block, remat))
        for path, leaf in dict(table.leaves()).items():
            if not any(path.startswith(f"{place}.") for place in held):
                _hold(self, path, leaf, start, places)
        for _, module in nnx.iter_modules(self) if dtype is not None else ():
            if isinstance(module, nnx.Linear | nnx.Embed | nnx.Conv):
                module.dtype = dtype

    def __call__(
        self,
        tokens: Array | None = None,
        attention_mask: Numbers | None = None,
        *,
        token_types: Numbers | None = None,
        positions: Numbers | None = None,
        global_tokens: Numbers | None = None,
        decoder_tokens: Numbers | None = None,
        decoder_attention_mask: Numbers | None = None,
        memory: Array | None = None,
        images: Array | None = None,
        features: Array | None = None,
        noise: Array | None = None,
        cache: tuple[Any, ...] | None = None,
        valid: Numbers | None = None,
        logits_at: Numbers | None = None,
        hidden_states: bool = False,
        dropout_key: RandomKey | None = None,
        deterministic: bool | None = None,
        kernel: KernelName = "auto",
    ) -> Output[Array]:
        """What the model makes of tokens, images or sound: hidden states, logits, pooled vectors.

        Args:
            tokens: int [B, L].
            attention_mask: [B, L], 1 = keep, 0 = padding; None keeps all.
            token_types: int [B, L], of models that have several; None: all 0.
            positions: int [L] or [B, L]; None counts as the model's own code does. Of models with an encoder and a
                decoder, the decoder's.
            global_tokens: bool [B, L], True = global, of models with global attention.
            decoder_tokens, decoder_attention_mask: [B, T], of models with an encoder and a decoder.
            memory: [B, L, E], what such a model's encoder gave before, which is then not run. In a step whose cache
                holds its keys and values, neither it nor tokens are given, but the attention_mask.
            images: [B, channels, height, width]. features: of sound, [B, samples] or [B, channels, frames].
            noise: [B, patches], by which a masked autoencoder chooses what it sees.
            cache: of decoding, an entry for each layer (`cache`); the new one is in the output.
            valid: bool [B, L], which tokens enter the cache; the others are padding.
            logits_at: int [B], the one place of each row whose logits are wanted, [B, 1, V]; None: all.
            hidden_states: whether those of every layer are returned.
            dropout_key: a seed in [0, 2**31), two uint32 words, or a `jax.random.key`, needed where dropout is on.
            deterministic: True applies no dropout; None: where no key is given.
            kernel: as in `attention`.

        Raises:
            TypeError, ValueError: lists the inputs that are of another kind or shape. An id that no row has raises in
                PyTorch what PyTorch raises; in JAX, and with `kernel="exact"`, what reads it is NaN.
        """
        drawn = self.table.key_of(dropout_key, deterministic)
        key = None if drawn is None else rng.words(drawn)
        use: Any = OPS if self.dtype is None else Plain(self.dtype)
        if kernel == "exact":
            if self.dtype is not None:
                raise KernelCannot(
                    kernel, [f"it computes in the dtype of the parameters, and not in dtype {self.dtype}"]
                )
            refuse(self.table, added_to(self, _LAYERS, _GROUPS))
            use = Exact()
        given: Inputs[Any] = Inputs(
            tokens,
            attention_mask,
            token_types,
            positions,
            global_tokens,
            decoder_tokens,
            decoder_attention_mask,
            memory,
            images,
            features,
            noise,
            cache,
            valid,
            logits_at,
            hidden_states,
        )
        out = self.table.apply(self, given, Run(use, kernel, key))
        return use.outputs(out) if isinstance(use, Exact) else out

    def generate(
        self,
        tokens: Array | None = None,
        attention_mask: Numbers | None = None,
        *,
        features: Array | None = None,
        decoder_tokens: Numbers | None = None,
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        key: RandomKey | None = None,
        end_ids: Sequence[int] | int | None = None,
        kernel: KernelName = "auto",
        progress: Callable[[NumPyArray], None] | None = None,
    ) -> Array:
        """Write behind prompts [B, L]: the new tokens int [B, n], n at most `max_new_tokens`. A model with an encoder
        and a decoder reads them, or sound, and its decoder writes.

        The same in both twins: always with `kernel="exact"`; else wherever the two best logits, or a draw and the
        boundary of a token, lie further apart than the twins' difference.

        Args:
            tokens: int [B, L], the prompts; None where `features` stand for them.
            attention_mask: [B, L], 1 = keep, 0 = padding, on any side. Positions count what is kept.
            features: of sound, where the encoder reads that.
            decoder_tokens: int [B, T], what a decoder beside an encoder begins with; None: the start of its
                configuration.
            max_new_tokens: how many are written at most, the same for all rows.
            temperature: divides the logits before a token is drawn; 0 takes the likeliest.
            top_k, top_p: only the k likeliest, or those that together have the probability p, are drawn.
            key: of the draws: a seed in [0, 2**31), two uint32 words, or a `jax.random.key`.
            end_ids: behind which a row is finished, and then padded; None: `eos_token_id` of the configuration.
            kernel: as in `attention`.
            progress: called with the tokens int64 [B] of each step, NumPy's, as soon as they are chosen.

        Raises:
            TypeError, ValueError: lists every argument at fault; the model has no logits, or reads later tokens.
        """
        words = None if key is None else np.asarray(rng.words(key))
        written = generate.written(
            self.table,
            self.config,
            {} if self.origin is None else self.origin.generation,
            lambda given: Writer(self, self.table, kernel, given),
            {"tokens": tokens, "attention_mask": attention_mask, "features": features},
            decoder_tokens,
            new=max_new_tokens,
            ends=end_ids,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            key=words,
            progress=progress,
        )
        return jnp.asarray(written)

    def new_cache(self, batch: int, size: int) -> tuple[Any, ...]:
        """Caches without tokens, of `size` slots, an entry for each block, or loop of blocks: what a call takes as
        `cache`."""
        like = jax.tree.leaves(nnx.state(self, nnx.Param))[0]

        def empty(block: BlockTable) -> Cache:
            made = Cache.for_config(block.attention.config, batch, size, dtype=self.dtype or like.dtype)
            return made if self.places is None else jax.tree.map(self._lying, made)

        made: list[Any] = []
        for stack in self.table.stacks()[-1:]:
            number = 0
            while number < len(stack.places):
                module = find(self, stack.places[number])
                caches = [empty(block) for block in stack.blocks[number : number + module.spans]]
                if isinstance(module, Loop):
                    width = len(module.phases)
                    each = (jax.tree.map(lambda *x: jnp.stack(x), *caches[n::width]) for n in range(width))
                    made.append(tuple(each))
                else:
                    made += caches
                number += module.spans
        return tuple(made)

    def _lying(self, x: Array) -> Array:
        """An array of a cache, its heads divided as those of the keys are."""
        assert self.places is not None
        axes = (None, None, "kv_heads", None) if x.ndim == 4 else (None,) * x.ndim
        return jax.device_put(x, self.places.sharding(axes, x.shape))


def _begin(name: str, tensor: leaves.Tensor) -> Array:
    return jnp.asarray(models.first_numbers(name, tensor).transpose(tensor.order))


def _place(root: nnx.Module, path: str, module: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not isinstance(getattr(root, name, None), nnx.Module):
            _free(root, path, name)
            setattr(root, name, Group())
        root = getattr(root, name)
    _free(root, path, last)
    setattr(root, last, module)


def _free(root: nnx.Module, path: str, name: str) -> None:
    if hasattr(root, name):
        raise ValueError(f"{path}: a model in Flax has {name!r} for something else; give the tensors another name")


def _loop(stack: Stack, start: Start, remat: bool, where: Places | None) -> Loop:
    """Blocks that are alike as one loop."""
    first, period, times = stack.period()
    phases = []
    for phase in range(first, first + period):
        places = stack.places[phase : first + period * times : period]

        def stacked(name: str, tensor: leaves.Tensor, places: Sequence[str] = places) -> Array:
            return jnp.stack([start(f"{place}.{name}", tensor) for place in places])

        block = Block(stack.blocks[phase])
        for path, leaf in block.table.leaves():
            _hold(block, path, leaf, stacked, where)
        phases.append(block)
    return Loop(phases, times, remat)


def _hold(root: nnx.Module, path: str, leaf: leaves.Leaf, start: Start, where: Places | None) -> None:
    """Make the module of a leaf, with its parameters."""
    tensors = leaf.tensors()
    if isinstance(leaf, leaves.Array):
        kind = nnx.Variable if not tensors[""].trained else nnx.LoRAParam if leaf.adapter else nnx.Param
        _place(root, path, nnx.data(_put(kind(start(path, tensors[""])), tensors[""], where)))
        return

    def begin(name: str) -> Array:
        return start(f"{path}.{name}", tensors[name])

    made = _module(leaf, begin)
    for tensor in tensors.values():
        if leaf.adapter:
            setattr(made, tensor.flax, nnx.LoRAParam(getattr(made, tensor.flax)[...]))
        _put(getattr(made, tensor.flax), tensor, where)
    _place(root, path, made)


def _put(parameter: Any, tensor: leaves.Tensor, where: Places | None) -> Any:
    """The parameter, where it is to lie; the axes of a loop come before its own."""
    if where is not None:
        numbers = parameter[...]
        axes = (*[None] * (numbers.ndim - len(tensor.axes)), *tensor.axes)
        parameter.set_value(jax.device_put(numbers, where.sharding(axes, numbers.shape)))
        for name, value in where.metadata(axes, numbers.shape).items():
            parameter.set_metadata(name, value)
    return parameter


def _module(leaf: leaves.Leaf, begin: Callable[[str], Array]) -> nnx.Module:
    if isinstance(leaf, leaves.Norm):
        return Norm(leaf, begin)
    rngs = nnx.Rngs(0)
    weight = begin("weight")
    if isinstance(leaf, leaves.Embedding):
        table = nnx.Embed(leaf.rows, leaf.width, embedding_init=lambda *_: weight, rngs=rngs)
        table.dtype = None  # the one that its numbers have, as of the other layers
        return table
    bias = begin("bias") if "bias" in leaf.tensors() else None
    made: dict[str, Any] = {"use_bias": bias is not None, "rngs": rngs}
    made |= {"kernel_init": lambda *_: weight, "bias_init": lambda *_: bias}
    if isinstance(leaf, leaves.Linear):
        return nnx.Linear(leaf.inputs, leaf.outputs, **made)
    assert isinstance(leaf, leaves.Conv)
    padding = ((leaf.padding, leaf.padding),) * len(leaf.size)  # hashed, as all that a module holds
    options: dict[str, Any] = {"strides": leaf.stride, "padding": padding, "feature_group_count": leaf.groups}
    return nnx.Conv(leaf.inputs, leaf.outputs, leaf.size, **options, **made)


#: What layers are, and what holds them.
_LAYERS = (nnx.Linear, nnx.Embed, nnx.Conv, Norm)
_GROUPS = (Group, Loop, nnx.List)
