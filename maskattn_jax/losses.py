"""Losses under a mask: the same names, arguments and definitions as in the PyTorch twin.

What is ignored (a label equal to `ignore_index`, a weight of 0, a patch that was not removed, an invalid pair) has no
part in a loss and gets a gradient of exactly 0, also where it holds NaN. Where everything is ignored, the loss is 0.
Sums run in at least float32. Masks and weights are data: no gradient flows to them.

Over several devices (shard_map): with an `axis_name`, what a mean divides by is summed over that axis of the mesh, and
each device gets its share of the loss. The sum of the shares is the loss of the whole batch, and the sum of the
gradients its gradient, how ever the counted positions are spread. So use `psum`, not `pmean`, on both.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int, Num, Shaped

from maskattn.losses import arguments
from maskattn.typing import Reduction
from maskattn_jax._scope import own_modes

__all__ = ["accuracy", "contrastive", "cross_entropy", "mae_loss", "masked_mean", "patchify", "simmim_loss"]


@own_modes
def cross_entropy(
    logits: Float[Array, "*N C"],
    labels: Int[Array, "*N"],
    *,
    weights: Num[Array, "*shape"] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "*shape"]:
    """-log softmax(logits)[label], averaged: sum(w · loss) / sum(w) over what is not ignored.

    Args:
        logits: [..., C]; the classes are the last axis.
        labels: int [...], in [0, C) or `ignore_index`.
        weights: not negative, of the leading axes of labels: [B] weighs samples, [B, L] tokens. A weight of 0 ignores.
        label_smoothing: ε in [0, 1]: the target is (1 - ε) · one-hot + ε / C (Szegedy et al. 2016, arXiv:1512.00567,
            section 7, page 7).
        reduction: "mean", "sum" (of w · loss) or "none" ([...], 0 where ignored).
        axis_name: an axis of the mesh (or several) to sum the mean's divisor over; None: this device alone.

    Raises:
        TypeError: labels are not ints. ValueError: shapes do not fit; or a label or weight is out of range, told where
            it can be read at once (a traced label out of range gives NaN).
    """
    arguments.check_classes("cross_entropy", logits, labels, weights, ignore_index, label_smoothing, reduction)
    labels = labels.astype(jnp.int32)
    weights = _weights(labels != ignore_index, weights, logits)
    counted = weights != 0
    wide = jnp.where(counted[..., None], logits, 0).astype(weights.dtype)
    log_p = jax.nn.log_softmax(wide, axis=-1)
    label = jnp.where(counted, jnp.where(labels < 0, logits.shape[-1], labels), 0)  # a negative one would wrap
    loss = -jnp.take_along_axis(log_p, label[..., None], axis=-1, mode="fill")[..., 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(axis=-1)
    return _reduce(loss, weights, reduction, axis_name)


@own_modes
def masked_mean(
    values: Float[Array, "*shape"],
    keep: Bool[Array, "*shape"],
    *,
    axis: int | tuple[int, ...] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "*shape"]:
    """The mean of the values that are kept, 0 where none is.

    Args:
        values: floats [...].
        keep: bool, of the leading axes of values (1 for any of them broadcasts). True = counts.
        axis: what is averaged over; None: everything.
        axis_name: as in `cross_entropy`.

    Raises:
        TypeError: keep is not bool, values are not floats. ValueError: shapes do not fit.
    """
    arguments.check_mean("masked_mean", values, keep, axis)
    counted = jnp.broadcast_to(_extend(keep, values.ndim), values.shape)
    wide = jnp.where(counted, values, 0).astype(_wide(values))
    axes = tuple(range(values.ndim)) if axis is None else axis
    return _ratio(wide.sum(axis=axes), counted.astype(wide.dtype).sum(axis=axes), axis_name)


@own_modes
def patchify(images: Shaped[Array, "B height width C"], patch: int) -> Shaped[Array, "B N P"]:
    """`images` [B, H, W, C] as patches [B, H/patch · W/patch, patch · patch · C]: rows of patches, and in each rows of
    pixels, channels last, as `patchify` of facebookresearch/mae (He et al. 2022) has them.

    Raises:
        ValueError: the sides are no multiples of patch. TypeError: patch is not an int.
    """
    arguments.check_patchify(images, patch)
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    split = jnp.moveaxis(images.reshape(batch, rows, patch, columns, patch, channels), 3, 2)
    return split.reshape(batch, rows * columns, patch * patch * channels)


@own_modes
def mae_loss(
    prediction: Float[Array, "B N P"],
    target: Float[Array, "B N P"],
    removed: Bool[Array, "B N"],
    *,
    normalize: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """The mean squared error of each removed patch, averaged over them: MAE's loss.

    He et al. 2022 (arXiv:2111.06377, section 3, page 4, "Reconstruction target"). With `normalize`, the target of each
    patch is (x - mean) / sqrt(var + 1e-6) over its numbers, var dividing by their number less 1, as in
    facebookresearch/mae.

    Args:
        prediction, target: [B, N, P], see `patchify`.
        removed: bool [B, N], True = removed, counts (MAE's mask == 1).
        axis_name: as in `cross_entropy`.

    Raises:
        TypeError: removed is not bool. ValueError: shapes do not fit.
    """
    arguments.check_patches("mae_loss", prediction, target, removed, normalize)
    prediction, target = (jnp.where(removed[..., None], x, 0).astype(_wide(x)) for x in (prediction, target))
    if normalize:
        centred = target - target.mean(axis=-1, keepdims=True)
        variance = (centred * centred).sum(axis=-1, keepdims=True) / (target.shape[-1] - 1)
        target = centred / jnp.sqrt(variance + 1e-6)
    loss = ((prediction - target) ** 2).mean(axis=-1)
    return _reduce(loss, removed.astype(loss.dtype), "mean", axis_name)


@own_modes
def simmim_loss(
    prediction: Float[Array, "B height width C"],
    target: Float[Array, "B height width C"],
    removed: Bool[Array, "B h w"],
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """The mean absolute error over the hidden pixels and their channels: SimMIM's loss.

    Xie et al. 2022 (arXiv:2111.09886, section 3.4, page 4); without the 1e-5 that microsoft/SimMIM adds to the divisor.

    Args:
        prediction, target: [B, H, W, C].
        removed: bool [B, h, w], True = hidden, counts; H and W are multiples of h and w (`corruption.SimMIM`).
        axis_name: as in `cross_entropy`.

    Raises:
        TypeError: removed is not bool. ValueError: shapes do not fit.
    """
    arguments.check_images("simmim_loss", prediction, target, removed)
    _, height, width, channels = target.shape
    hidden = removed.repeat(height // removed.shape[1], axis=1).repeat(width // removed.shape[2], axis=2)
    prediction, target = (jnp.where(hidden[..., None], x, 0).astype(_wide(x)) for x in (prediction, target))
    loss = jnp.abs(prediction - target).sum(axis=-1) / channels
    return _reduce(loss, hidden.astype(loss.dtype), "mean", axis_name)


@own_modes
def contrastive(
    queries: Float[Array, "B D"],
    keys: Float[Array, "B D"],
    *,
    valid: Bool[Array, " B"] | None = None,
    temperature: float | Float[Array, ""] = 0.07,
    symmetric: bool = True,
    normalize: bool = True,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """Each query is to find its own key among all keys: cross-entropy of queries · keys / temperature.

    InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, section 2.3, equation 4); `symmetric` is CLIP's loss (Radford
    et al. 2021, arXiv:2103.00020, figure 3, page 5): the mean of both directions.

    Args:
        queries, keys: [B, D]; row i of one belongs to row i of the other.
        valid: bool [B], True = counts. A pair that does not is neither query nor anyone's wrong key.
        temperature: above 0, a number or an array [], which gets its gradient.
        normalize: divide each row by its length first; a row of zeros stays.
        axis_name: as in `cross_entropy`; the keys of all its devices, as many on each, are then compared with.

    Raises:
        TypeError: valid is not bool. ValueError: shapes do not fit, or temperature is not positive (a number).
    """
    flags = {"symmetric": symmetric, "normalize": normalize}
    arguments.check_pairs("contrastive", queries, keys, valid, temperature, flags)
    valid = jnp.ones(queries.shape[0], bool) if valid is None else valid
    sides = [jnp.where(valid[:, None], x, 0).astype(_wide(x)) for x in (queries, keys)]
    if normalize:
        sides = [_unit(x) for x in sides]
    every, start = _gathered(valid, axis_name)
    loss = _find(sides[0], _gathered(sides[1], axis_name)[0], valid, every, start, temperature)
    if symmetric:
        loss = (loss + _find(sides[1], _gathered(sides[0], axis_name)[0], valid, every, start, temperature)) / 2
    return _reduce(loss, valid.astype(loss.dtype), "mean", axis_name)


@own_modes
def accuracy(
    logits: Float[Array, "*N C"],
    labels: Int[Array, "*N"],
    *,
    weights: Num[Array, "*shape"] | None = None,
    ignore_index: int = -100,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, ""]:
    """The weighted share of labels that are the largest logit (of equal ones the first); 0 where all are ignored.

    Arguments and errors as in `cross_entropy`; there is no gradient.
    """
    arguments.check_classes("accuracy", logits, labels, weights, ignore_index)
    labels = labels.astype(jnp.int32)
    weights = _weights(labels != ignore_index, weights, logits)
    right = lax.stop_gradient(logits).argmax(axis=-1) == labels
    return _reduce(right.astype(weights.dtype), weights, "mean", axis_name)


def _wide(x: Array) -> DTypeLike:
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _extend(x: Array, rank: int) -> Array:
    return x.reshape(*x.shape, *[1] * (rank - x.ndim))


def _weights(counted: Array, weights: Array | None, like: Array) -> Array:
    """The weight of each position, 0 where it is ignored."""
    if weights is None:
        return counted.astype(_wide(like))
    return jnp.where(counted, _extend(lax.stop_gradient(weights), counted.ndim).astype(_wide(like)), 0)


def _reduce(loss: Array, weights: Array, reduction: Reduction, axis_name: str | tuple[str, ...] | None) -> Array:
    weighted = jnp.where(weights != 0, loss, 0) * weights
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else _ratio(weighted.sum(), weights.sum(), axis_name)


def _ratio(total: Array, count: Array, axis_name: str | tuple[str, ...] | None) -> Array:
    if axis_name is not None:
        count = lax.psum(count, axis_name)
    return total / jnp.where(count == 0, 1, count)


def _unit(x: Array) -> Array:
    square = (x * x).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square == 0, 1, square))


def _find(
    queries: Array, keys: Array, valid: Array, valid_keys: Array, start: int | Array, temperature: float | Array
) -> Array:
    """-log softmax(queries · keys / temperature) at each query's own key, which is its row + start: [B]."""
    scores = jnp.matmul(queries, keys.T, precision="highest") / temperature
    logits = jnp.where(valid[:, None], jnp.where(valid_keys, scores, -jnp.inf), 0)
    own = jnp.arange(queries.shape[0]) + start
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), own[:, None], axis=1)[:, 0]


def _gathered(x: Array, axis_name: str | tuple[str, ...] | None) -> tuple[Array, int | Array]:
    """The rows of all devices, and which of them is the first one here."""
    if axis_name is None:
        return x, 0
    return lax.all_gather(x, axis_name, tiled=True), lax.axis_index(axis_name) * x.shape[0]
