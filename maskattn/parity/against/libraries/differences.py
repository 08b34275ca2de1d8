"""Where the peers do something else on purpose or by accident: what each does, checked."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskattn.parity.against.libraries.answer import Theirs
from maskattn.typing import NumPyArray as Array

#: Query 2 may attend to nothing, and no query to the last key. True = may attend.
KEEP = np.ones((5, 7), bool)
KEEP[2] = KEEP[:, -1] = False


@dataclass(frozen=True)
class Difference:
    """What a peer does, and what we do in its place.

    Attributes:
        peer, about: whose, and of what.
        theirs, ours: what each does, in words.
        seen: whether (theirs, ours) do so.
    """

    peer: str
    about: str
    theirs: str
    ours: str
    seen: Callable[[], tuple[bool, bool]]

    @property
    def held(self) -> bool:
        """Whether both do what is said here."""
        return all(self.seen())


def _numbers(*shape: int) -> Array:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def _heads(poisoned: bool = False) -> list[Array]:
    """query [2, 5, 4, 3], key and value [2, 7, 4, 3]; the last key and value may be NaN."""
    found = [_numbers(2, 5, 4, 3), _numbers(2, 7, 4, 3), _numbers(2, 7, 4, 3)[::-1].copy()]
    if poisoned:
        found[1][:, -1] = found[2][:, -1] = np.nan
    return found


def _nan(x: Theirs) -> Array:
    return np.isnan(np.asarray(x, np.float32))


# PyTorch


def _mha(**options: Theirs) -> tuple[Theirs, Theirs]:
    """PyTorch's module, and ours of it."""
    import torch

    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(12, 4, batch_first=True, **options)
    return theirs, importlib.import_module("maskattn_torch.mha").MultiheadAttention.of(theirs)


def _called(module: Theirs, poisoned: bool = False, **options: Theirs) -> tuple[Theirs, Theirs, Theirs]:
    """Output, weights and the gradient of the query."""
    import torch

    query, key = torch.tensor(_numbers(2, 5, 12), requires_grad=True), torch.tensor(_numbers(2, 7, 12))
    if poisoned:
        key[:, -1] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, weights = module(query, key, key, **options)
        (gradient,) = torch.autograd.grad(found.sum(), query)
    return found.detach().numpy(), None if weights is None else weights.detach().numpy(), gradient.numpy()


def _not_kept() -> Theirs:
    import torch

    return torch.tensor(~KEEP)


def _empty_with_weights() -> tuple[bool, bool]:
    theirs, ours = (_called(module, attn_mask=_not_kept(), need_weights=True) for module in _mha(bias=False))
    return bool(_nan(theirs[0])[:, 2].all() and _nan(theirs[1])[:, 2].all()), bool(
        (ours[0][:, 2] == 0).all() and (ours[1][:, 2] == 0).all()
    )


def _empty_gradients() -> tuple[bool, bool]:
    theirs, ours = (_called(module, attn_mask=_not_kept(), need_weights=True)[2] for module in _mha())
    return bool(_nan(theirs)[:, 2].all()), bool((ours[:, 2] == 0).all())


def _masked_nan_of_mha() -> tuple[bool, bool]:
    theirs, ours = (_called(m, True, attn_mask=_not_kept(), need_weights=False)[0] for m in _mha())
    return bool(_nan(theirs).any()), not _nan(ours).any()


def _hint() -> tuple[bool, bool]:
    import torch

    nothing_dropped = torch.zeros(5, 7, dtype=torch.bool)
    causal = torch.tensor(~np.tri(5, 7, dtype=bool))
    found = []
    for module in _mha():
        hinted = _called(module, attn_mask=nothing_dropped, is_causal=True, need_weights=False)[0]
        right = _called(module, attn_mask=causal, need_weights=False)[0]
        found.append(bool(np.abs(hinted - right).max() <= _near()))
    return found[0], found[1]


def _hint_with_weights() -> tuple[bool, bool]:
    import torch

    nothing_dropped = torch.zeros(5, 7, dtype=torch.bool)
    found = []
    for module in _mha():
        hinted = _called(module, attn_mask=nothing_dropped, is_causal=True, need_weights=True)[1]
        found.append(bool((hinted > 0).all()))
    return found[0], found[1]


def _hint_with_added_keys() -> tuple[bool, bool]:
    import torch

    causal = torch.tensor(~np.tri(5, 7, dtype=bool))
    theirs, ours = _mha(add_zero_attn=True)
    plain, _ = _mha()
    hinted, own = (_called(m, attn_mask=causal, is_causal=True, need_weights=False)[0] for m in (theirs, ours))
    without, right = (_called(m, attn_mask=causal, need_weights=False)[0] for m in (plain, theirs))
    hidden = np.abs(hinted - without).max() <= _near() < np.abs(hinted - right).max()
    return bool(hidden), bool(np.abs(own - right).max() <= _near())


def _polarity() -> tuple[bool, bool]:
    import torch

    module, _ = _mha()
    only_first = np.zeros((5, 7), bool)
    only_first[:, 0] = True
    weights = _called(module, attn_mask=torch.tensor(only_first), need_weights=True)[1]
    ours = importlib.import_module("maskattn_torch")
    own = ours.MultiHeadAttention(12, 4)
    query, key = torch.tensor(_numbers(2, 5, 12)), torch.tensor(_numbers(2, 7, 12))
    _, found = own(query, key, mask=torch.tensor(only_first), return_weights=True)
    return bool((weights[..., 0] == 0).all()), bool((found[..., 0] == 1).all())


def _draw() -> tuple[bool, bool]:
    import torch

    found = []
    for module in _mha(dropout=0.5):
        torch.manual_seed(7)
        found.append(_called(module, need_weights=True)[1] == 0)
    return bool((found[0] != found[1]).any()), bool(found[1].any() and not found[1].all())


def _sdpa(function: Theirs, heads: list[Array], **options: Theirs) -> Array:
    import torch

    made: Array = function(*(torch.tensor(x).transpose(1, 2) for x in heads), **options).numpy()
    return made


def _sdpas() -> tuple[Theirs, Theirs]:
    import torch

    ours = importlib.import_module("maskattn_torch").scaled_dot_product_attention
    return torch.nn.functional.scaled_dot_product_attention, ours


def _masked_nan_of_sdpa() -> tuple[bool, bool]:
    import torch

    theirs, ours = (_sdpa(f, _heads(poisoned=True), attn_mask=torch.tensor(KEEP)) for f in _sdpas())
    return bool(_nan(theirs).any()), not _nan(ours).any()


def _draw_of_sdpa() -> tuple[bool, bool]:
    import torch

    query, key, _ = _heads()
    value = np.broadcast_to(np.eye(7, dtype=np.float32)[None, :, None], (2, 7, 4, 7)).copy()
    found = []
    for function in _sdpas():
        torch.manual_seed(7)
        found.append(_sdpa(function, [query, key, value], dropout_p=0.5) == 0)
    return bool((found[0] != found[1]).any()), bool(found[1].any() and not found[1].all())


# JAX


def _jax(name: str) -> tuple[Theirs, Theirs]:
    theirs = importlib.import_module(name).dot_product_attention
    return theirs, importlib.import_module("maskattn_jax").attention_fn


def _empty(name: str) -> Callable[[], tuple[bool, bool]]:
    def seen() -> tuple[bool, bool]:
        theirs, ours = _jax(name)
        heads = _heads()
        mean = heads[2].mean(1)
        found, own = (np.asarray(f(*heads, mask=KEEP[None, None])) for f in (theirs, ours))
        return bool(np.allclose(found[:, 2], mean, atol=_near())), bool((own[:, 2] == 0).all())

    return seen


def _near() -> float:
    from maskattn import standards

    return standards.value("same.tiles")


def _empty_gradient(name: str) -> Callable[[], tuple[bool, bool]]:
    """The gradient of a value that no query may attend to."""

    def seen() -> tuple[bool, bool]:
        import jax

        query, key, value = _heads()
        found = []
        for function in _jax(name):
            gradient = jax.grad(lambda v, f=function: f(query, key, v, mask=KEEP[None, None]).sum())(value)
            found.append(np.asarray(gradient)[:, -1])
        return bool((found[0] != 0).all()), bool((found[1] == 0).all())

    return seen


def _masked_nan(name: str) -> Callable[[], tuple[bool, bool]]:
    def seen() -> tuple[bool, bool]:
        theirs, ours = (np.asarray(f(*_heads(poisoned=True), mask=KEEP[None, None])) for f in _jax(name))
        return bool(_nan(theirs).any()), not _nan(ours).any()

    return seen


def _additive() -> tuple[bool, bool]:
    theirs, ours = _jax("flax.linen")
    added = np.where(KEEP, 0, -np.inf).astype(np.float32)[None, None]
    upside_down = np.asarray(theirs(*_heads(), mask=~KEEP[None, None]))
    same = np.array_equal(np.asarray(theirs(*_heads(), mask=added)), upside_down)
    return same, _refused(ours, "what is added to the logits is a bias", mask=added)


def _refused(function: Theirs, words: str, **options: Theirs) -> bool:
    try:
        function(*_heads(), **options)
    except (TypeError, ValueError) as error:
        return words in str(error)
    return False


def _narrow_softmax() -> tuple[bool, bool]:
    import ml_dtypes

    heads = [x.astype(ml_dtypes.bfloat16) for x in _heads()]
    found = []
    for function in _jax("flax.linen"):
        wide = np.asarray(function(*heads, force_fp32_for_softmax=True))
        found.append(np.array_equal(np.asarray(function(*heads)), wide))
    return not found[0], found[1]


def _nnx_causal_row() -> tuple[bool, bool]:
    import jax

    theirs, ours = _jax("flax.nnx")
    mask = np.ones((2, 1, 1, 7), bool)
    options = {"mask": mask, "is_causal": True, "dropout_rate": 0.5, "dropout_rng": jax.random.key(0)}
    refused = False
    try:
        theirs(*_heads(), **options)
    except (TypeError, ValueError):
        refused = True
    return refused, np.asarray(ours(*_heads(), **options)).shape == (2, 5, 4, 3)


def _window() -> tuple[bool, bool]:
    from maskattn import masks

    theirs = _jax("jax.nn")[0]
    ours = importlib.import_module("maskattn_jax").attention
    query, key = np.zeros((2, 5, 4, 7), np.float32), np.zeros((2, 7, 4, 7), np.float32)
    value = np.broadcast_to(np.eye(7, dtype=np.float32)[None, :, None], key.shape)  # the output is the weights
    weights, own = (
        np.asarray(found)[0, 4, 0] > 0
        for found in (
            theirs(query, key, value, local_window_size=(2, 0)),
            ours(query, key, value, masks.SlidingWindow(2, 0)),
        )
    )
    return weights.tolist() == [False, False, True, True, True, False, False], bool((own == weights).all())


_MHA, _SDPA = "torch.nn.MultiheadAttention", "torch scaled_dot_product_attention"
_LINEN, _NNX, _NN = "flax.linen", "flax.nnx", "jax.nn"
_MEAN, _ZERO = "the mean of all values", '0; `empty_rows="mean"` is theirs'

DIFFERENCES: tuple[Difference, ...] = (
    Difference(_MHA, "rows that may attend to nothing, with weights", "NaN", "0", _empty_with_weights),
    Difference(_MHA, "their gradients, with weights", "NaN", "0", _empty_gradients),
    Difference(_MHA, "NaN in a key that is dropped", "reaches the output", "does not", _masked_nan_of_mha),
    Difference(
        _MHA,
        "is_causal, without padding and weights",
        "replaces attn_mask, whatever it is",
        "the same in its place; elsewhere `Causal()` is a mask",
        _hint,
    ),
    Difference(
        _MHA,
        "is_causal, without padding and weights, and keys that the module adds",
        "hides those too",
        "they are attended to, as without the hint",
        _hint_with_added_keys,
    ),
    Difference(_MHA, "is_causal, with weights", "does nothing", "the same in its place", _hint_with_weights),
    Difference(_MHA, "True in a mask", "drop", "the same in its place; may attend everywhere else", _polarity),
    Difference(_MHA, "dropout", "PyTorch's draw", "a draw of its own", _draw),
    Difference(_SDPA, "NaN in a key and value that are masked", "reaches the output", "does not", _masked_nan_of_sdpa),
    Difference(_SDPA, "dropout", "PyTorch's draw", "a draw of its own", _draw_of_sdpa),
    *(
        Difference(peer, about, theirs, ours, check(peer))
        for peer in (_LINEN, _NNX, _NN)
        for about, theirs, ours, check in (
            ("rows that may attend to nothing", _MEAN, _ZERO, _empty),
            ("the gradient of a masked value, where there is such a row", "not 0", "0", _empty_gradient),
            ("NaN in a key and value that are masked", "reaches the output", "does not", _masked_nan),
        )
    ),
    Difference(
        _LINEN,
        "a float mask of 0 and -inf",
        "turned upside down: what is not 0 may be attended to",
        "refused by name",
        _additive,
    ),
    Difference(
        _LINEN, "softmax of bfloat16", "in bfloat16, unless force_fp32_for_softmax", "in float32", _narrow_softmax
    ),
    Difference(
        _NNX,
        "is_causal, dropout and a mask [B, 1, 1, S]",
        "refused: it does not broadcast",
        "broadcasts",
        _nnx_causal_row,
    ),
    Difference(_NN, "local_window_size=(W, 0)", "W + 1 keys", "`SlidingWindow(W, 0)` has the same W + 1", _window),
)
