"""Modules of whole models: made from a table, named as the model that it describes was published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree
from torch.utils.checkpoint import checkpoint

from maskattn import models
from maskattn.attention import KernelCannot
from maskattn.models import Inputs, Output, WholeModel, generate, leaves
from maskattn.models.adapters import Adapter
from maskattn.models.attention import Given
from maskattn.models.block import Block as BlockTable
from maskattn.models.exact import refuse
from maskattn.models.files import Origin
from maskattn.models.part import Run
from maskattn.typing import KernelName, NumPyArray
from maskattn_torch import rng
from maskattn_torch.cache import Cache
from maskattn_torch.models.exact import Exact, added_to
from maskattn_torch.models.ops import OPS, Plain
from maskattn_torch.models.writing import Writer
from maskattn_torch.types import Array, DType, Given as Numbers, RandomKey

__all__ = ["Block", "Group", "Model", "Norm"]

#: (published name, what it is) -> its numbers.
Start = Callable[[str, leaves.Tensor], Array]

_pytree.register_dataclass(Output, serialized_type_name="maskattn.models.Output")


class Group(nn.Module):
    """Modules by their names; those that are numbers by index, too."""

    def __getitem__(self, index: int) -> nn.Module:
        return self._modules[str(index)]  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())  # type: ignore[arg-type]


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis; computed in float32 at least, rounded once."""

    def __init__(self, table: leaves.Norm, start: Callable[[str], Array]) -> None:
        super().__init__()
        self.table = table
        self.weight = nn.Parameter(start("weight")) if table.scale else None
        self.bias = nn.Parameter(start("bias")) if table.bias else None

    def forward(self, x: Array) -> Array:
        """x [..., width] -> the same."""
        table, wide = self.table, x.dtype
        for held in (self.weight, self.bias):
            wide = wide if held is None else torch.promote_types(wide, held.dtype)
        wide = torch.promote_types(wide, torch.float32) if table.plus_one else wide
        weight, bias = (None if held is None else held.to(wide) for held in (self.weight, self.bias))
        if table.plus_one and weight is not None:
            weight = weight + 1
        if table.kind == "rms":
            return F.rms_norm(x.to(wide), (table.width,), weight, table.eps).to(x.dtype)
        if table.kind == "frames":
            made = F.group_norm(x.to(wide).swapaxes(-1, -2), table.width, weight, bias, table.eps)
            return made.swapaxes(-1, -2).to(x.dtype)
        return F.layer_norm(x.to(wide), (table.width,), weight, bias, table.eps).to(x.dtype)


class _Adapting(nn.Linear):
    """A linear layer of an adapter, whose dtype may be wider than its input's."""

    def forward(self, x: Array) -> Array:
        """x [..., in] -> [..., out]."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class _TurnedLinear(nn.Linear):
    """A linear layer whose published weight is [in, out], as GPT-2's is: so its state dict has it."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].T

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        name = prefix + "weight"
        turned = {**state_dict, name: state_dict[name].T} if name in state_dict else state_dict
        super()._load_from_state_dict(turned, prefix, *rest)


class Block(Group):
    """A block of a model.

    Attributes:
        remat: whether gradients compute it again, in place of keeping what is within.
    """

    spans = 1
    remat = False

    def __init__(self, table: BlockTable) -> None:
        super().__init__()
        self.table = table

    def forward(
        self, h: Array, run: Run[Array], number: int, given: Given[Array], cache: Any = None
    ) -> tuple[Array, Any]:
        """h [B, L, E] -> [B, L, E], and the new cache where there is one."""
        if self.remat and torch.is_grad_enabled():
            made: tuple[Array, Any] = checkpoint(self._run, h, run, number, given, cache, use_reentrant=False)
            return made
        return self._run(h, run, number, given, cache)

    def _run(self, h: Array, run: Run[Array], number: int, given: Given[Array], cache: Any) -> tuple[Array, Any]:
        return self.table.apply(self, h, run.within(number), given, cache)


class Model(Group):
    """A whole model of a table (`maskattn.models.describe`); `maskattn_torch.models.load` makes one of a checkpoint.

    Args:
        table: the model.
        start: what each parameter begins with; None: what a new model has.
        config: of the checkpoint, its config.json.
        origin: what it was loaded from.
        dtype: of the computation; None: that of the parameters.
        remat: whether gradients compute each block again, in place of keeping what is within.
        adapter: whose layers the table has; its parameters alone are trained then.
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
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.table, self.config = table, models.Configuration(config or {})
        self.origin, self.dtype, self.remat, self.adapter = origin, dtype, remat, adapter
        for path, block in table.blocks():
            _place(self, path, made := Block(block))
            made.remat = remat
        held = dict(table.leaves())
        for path, leaf in held.items():
            _hold(self, path, leaf, start or _begin)
        if adapter is not None:
            for name, parameter in self.named_parameters():
                leaf = held.get(name) or held[name.rpartition(".")[0]]
                parameter.requires_grad_(leaf.adapter)

    def forward(
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
            dropout_key: a seed in [0, 2**31) or two uint32 words, needed where dropout is on.
            deterministic: True applies no dropout; None: not while training.
            kernel: as in `attention`.

        Raises:
            TypeError, ValueError: lists the inputs that are of another kind or shape. An id that no row has raises in
                PyTorch what PyTorch raises; in JAX, and with `kernel="exact"`, what reads it is NaN.
        """
        if deterministic is None:
            deterministic = not self.training
        drawn = self.table.key_of(dropout_key, deterministic)
        key = None if drawn is None else rng.words(drawn, _device(self))
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
            key: of the draws: a seed in [0, 2**31) or two uint32 words.
            end_ids: behind which a row is finished, and then padded; None: `eos_token_id` of the configuration.
            kernel: as in `attention`.
            progress: called with the tokens int64 [B] of each step, NumPy's, as soon as they are chosen.

        Raises:
            TypeError, ValueError: lists every argument at fault; the model has no logits, or reads later tokens.
        """
        words = None if key is None else rng.words(key).cpu().numpy()
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
        return torch.as_tensor(written, device=_device(self))

    def new_cache(self, batch: int, size: int) -> tuple[Any, ...]:
        """Caches without tokens, of `size` slots, an entry for each block: what a call takes as `cache`."""
        like = next(self.parameters())
        made = (block.attention.config for block in self.table.stacks()[-1].blocks)
        return tuple(
            Cache.for_config(one, batch, size, dtype=self.dtype or like.dtype, device=like.device) for one in made
        )


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _begin(name: str, tensor: leaves.Tensor) -> Array:
    return torch.tensor(models.first_numbers(name, tensor))


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            _free(root, path, name)
            root.add_module(name, Group())
        root = root._modules[name]  # type: ignore[assignment]
    _free(root, path, last)
    root.add_module(last, module)


def _free(root: nn.Module, path: str, name: str) -> None:
    if hasattr(root, name):
        raise ValueError(f"{path}: a model in PyTorch has {name!r} for something else; give the tensors another name")


def _hold(root: nn.Module, path: str, leaf: leaves.Leaf, start: Start) -> None:
    """Make the module of a leaf, with its parameters."""
    if isinstance(leaf, leaves.Array):
        parent, _, last = path.rpartition(".")
        if parent and not _has(root, parent):
            _place(root, parent, Group())
        owner = root.get_submodule(parent)
        tensor = leaf.tensors()[""]
        number = start(path, tensor)
        if tensor.trained:
            owner.register_parameter(last, nn.Parameter(number))
        else:
            owner.register_buffer(last, number)
        return
    tensors = leaf.tensors()

    def begin(name: str) -> Array:
        return start(f"{path}.{name}", tensors[name])

    _place(root, path, _module(leaf, begin))


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def _module(leaf: leaves.Leaf, begin: Callable[[str], Array]) -> nn.Module:
    if isinstance(leaf, leaves.Norm):
        return Norm(leaf, begin)
    with torch.device("meta"):
        made = _empty(leaf)
    for name in leaf.tensors():
        number = begin(name)
        turned = isinstance(leaf, leaves.Linear) and leaf.turned and name == "weight"
        made.register_parameter(name, nn.Parameter(number.T if turned else number))
    return made


def _empty(leaf: leaves.Leaf) -> nn.Module:
    """A module of PyTorch's own."""
    if isinstance(leaf, leaves.Linear):
        kind: type[nn.Linear] = _TurnedLinear if leaf.turned else _Adapting if leaf.adapter else nn.Linear
        return kind(leaf.inputs, leaf.outputs, leaf.bias)
    if isinstance(leaf, leaves.Embedding):
        return nn.Embedding(leaf.rows, leaf.width)
    assert isinstance(leaf, leaves.Conv)
    conv: Any = {1: nn.Conv1d, 2: nn.Conv2d}[len(leaf.size)]
    sizes = (leaf.inputs, leaf.outputs, leaf.size, leaf.stride, leaf.padding)
    made: nn.Module = conv(*sizes, groups=leaf.groups, bias=leaf.bias)
    return made


#: What layers are, and what holds them.
_LAYERS = (nn.Linear, _Adapting, _TurnedLinear, nn.Embedding, nn.Conv1d, nn.Conv2d, Norm)
_GROUPS = (Group,)
