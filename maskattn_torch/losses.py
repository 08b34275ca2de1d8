"""Losses under a mask: the same names, arguments and definitions as in the JAX twin.

What is ignored (a label equal to `ignore_index`, a weight of 0, a patch that was not removed, an invalid pair) has no
part in a loss and gets a gradient of exactly 0, also where it holds NaN. Where everything is ignored, the loss is 0.
Sums run in at least float32. Masks and weights are data: no gradient flows to them.

Over several devices: with a process `group`, what a mean divides by is summed over its processes, and each gets its
share of the loss. The sum of the shares is the loss of the whole batch, and the sum of the gradients its gradient, how
ever the counted positions are spread. DistributedDataParallel takes the mean of gradients: multiply by its size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num, Shaped
from torch import Tensor as Array

from maskattn.losses import arguments
from maskattn.typing import Reduction

__all__ = ["accuracy", "contrastive", "cross_entropy", "mae_loss", "masked_mean", "patchify", "simmim_loss"]


def cross_entropy(
    logits: Float[Array, "*N C"],
    labels: Int[Array, "*N"],
    *,
    weights: Num[Array, "*shape"] | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    group: torch.distributed.ProcessGroup | None = None,
) -> Float[Array, "*shape"]:
    """-log softmax(logits)[label], averaged: sum(w · loss) / sum(w) over what is not ignored.

    Args:
        logits: [..., C]; the classes are the last axis.
        labels: int [...], in [0, C) or `ignore_index`.
        weights: not negative, of the leading axes of labels: [B] weighs samples, [B, L] tokens. A weight of 0 ignores.
        label_smoothing: ε in [0, 1]: the target is (1 - ε) · one-hot + ε / C (Szegedy et al. 2016, arXiv:1512.00567,
            section 7, page 7).
        reduction: "mean", "sum" (of w · loss) or "none" ([...], 0 where ignored).
        group: a process group to sum the mean's divisor over; None: this process alone.

    Raises:
        TypeError: labels are not ints. ValueError: shapes do not fit; or a label or weight is out of range, told where
            it can be read at once.
    """
    arguments.check_classes("cross_entropy", logits, labels, weights, ignore_index, label_smoothing, reduction)
    labels = labels.to(torch.int64)
    weights = _weights(labels != ignore_index, weights, logits)
    counted = weights != 0
    wide = torch.where(counted[..., None], logits, 0).to(weights.dtype)
    log_p = F.log_softmax(wide, dim=-1)
    loss = -torch.gather(log_p, -1, torch.where(counted, labels, 0)[..., None])[..., 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(dim=-1)
    return _reduce(loss, weights, reduction, group)


def masked_mean(
    values: Float[Array, "*shape"],
    keep: Bool[Array, "*shape"],
    *,
    axis: int | tuple[int, ...] | None = None,
    group: torch.distributed.ProcessGroup | None = None,
) -> Float[Array, "*shape"]:
    """The mean of the values that are kept, 0 where none is.

    Args:
        values: floats [...].
        keep: bool, of the leading axes of values (1 for any of them broadcasts). True = counts.
        axis: what is averaged over; None: everything.
        group: as in `cross_entropy`.

    Raises:
        TypeError: keep is not bool, values are not floats. ValueError: shapes do not fit.
    """
    arguments.check_mean("masked_mean", values, keep, axis)
    counted = _extend(keep, values.ndim).expand(values.shape)
    wide = torch.where(counted, values, 0).to(_wide(values))
    axes = tuple(range(values.ndim)) if axis is None else axis
    return _ratio(wide.sum(dim=axes), counted.to(wide.dtype).sum(dim=axes), group)


def patchify(images: Shaped[Array, "B height width C"], patch: int) -> Shaped[Array, "B N P"]:
    """`images` [B, H, W, C] as patches [B, H/patch · W/patch, patch · patch · C]: rows of patches, and in each rows of
    pixels, channels last, as `patchify` of facebookresearch/mae (He et al. 2022) has them.

    Raises:
        ValueError: the sides are no multiples of patch. TypeError: patch is not an int.
    """
    arguments.check_patchify(images, patch)
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    split = images.reshape(batch, rows, patch, columns, patch, channels).movedim(3, 2)
    return split.reshape(batch, rows * columns, patch * patch * channels)


def mae_loss(
    prediction: Float[Array, "B N P"],
    target: Float[Array, "B N P"],
    removed: Bool[Array, "B N"],
    *,
    normalize: bool = False,
    group: torch.distributed.ProcessGroup | None = None,
) -> Float[Array, ""]:
    """The mean squared error of each removed patch, averaged over them: MAE's loss.

    He et al. 2022 (arXiv:2111.06377, section 3, page 4, "Reconstruction target"). With `normalize`, the target of each
    patch is (x - mean) / sqrt(var + 1e-6) over its numbers, var dividing by their number less 1, as in
    facebookresearch/mae.

    Args:
        prediction, target: [B, N, P], see `patchify`.
        removed: bool [B, N], True = removed, counts (MAE's mask == 1).
        group: as in `cross_entropy`.

    Raises:
        TypeError: removed is not bool. ValueError: shapes do not fit.
    """
    arguments.check_patches("mae_loss", prediction, target, removed, normalize)
    prediction, target = (torch.where(removed[..., None], x, 0).to(_wide(x)) for x in (prediction, target))
    if normalize:
        centred = target - target.mean(dim=-1, keepdim=True)
        variance = (centred * centred).sum(dim=-1, keepdim=True) / (target.shape[-1] - 1)
        target = centred / torch.sqrt(variance + 1e-6)
    loss = ((prediction - target) ** 2).mean(dim=-1)
    return _reduce(loss, removed.to(loss.dtype), "mean", group)


def simmim_loss(
    prediction: Float[Array, "B height width C"],
    target: Float[Array, "B height width C"],
    removed: Bool[Array, "B h w"],
    *,
    group: torch.distributed.ProcessGroup | None = None,
) -> Float[Array, ""]:
    """The mean absolute error over the hidden pixels and their channels: SimMIM's loss.

    Xie et al. 2022 (arXiv:2111.09886, section 3.4, page 4); without the 1e-5 that microsoft/SimMIM adds to the divisor.

    Args:
        prediction, target: [B, H, W, C].
        removed: bool [B, h, w], True = hidden, counts; H and W are multiples of h and w (`corruption.SimMIM`).
        group: as in `cross_entropy`.

    Raises:
        TypeError: removed is not bool. ValueError: shapes do not fit.
    """
    arguments.check_images("simmim_loss", prediction, target, removed)
    _, height, width, channels = target.shape
    hidden = removed.repeat_interleave(height // removed.shape[1], 1).repeat_interleave(width // removed.shape[2], 2)
    prediction, target = (torch.where(hidden[..., None], x, 0).to(_wide(x)) for x in (prediction, target))
    loss = (prediction - target).abs().sum(dim=-1) / channels
    return _reduce(loss, hidden.to(loss.dtype), "mean", group)


def contrastive(
    queries: Float[Array, "B D"],
    keys: Float[Array, "B D"],
    *,
    valid: Bool[Array, " B"] | None = None,
    temperature: float | Float[Array, ""] = 0.07,
    symmetric: bool = True,
    normalize: bool = True,
    group: torch.distributed.ProcessGroup | None = None,
) -> Float[Array, ""]:
    """Each query is to find its own key among all keys: cross-entropy of queries · keys / temperature.

    InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, section 2.3, equation 4); `symmetric` is CLIP's loss (Radford
    et al. 2021, arXiv:2103.00020, figure 3, page 5): the mean of both directions.

    Args:
        queries, keys: [B, D]; row i of one belongs to row i of the other.
        valid: bool [B], True = counts. A pair that does not is neither query nor anyone's wrong key.
        temperature: above 0, a number or an array [], which gets its gradient.
        normalize: divide each row by its length first; a row of zeros stays.
        group: as in `cross_entropy`; the keys of all its processes, as many on each, are then compared with.

    Raises:
        TypeError: valid is not bool. ValueError: shapes do not fit, or temperature is not positive (a number).
    """
    flags = {"symmetric": symmetric, "normalize": normalize}
    arguments.check_pairs("contrastive", queries, keys, valid, temperature, flags)
    valid = queries.new_ones(queries.shape[0], dtype=torch.bool) if valid is None else valid
    sides = [torch.where(valid[:, None], x, 0).to(_wide(x)) for x in (queries, keys)]
    if normalize:
        sides = [_unit(x) for x in sides]
    every, start = _gathered(valid, group)
    loss = _find(sides[0], _gathered(sides[1], group)[0], valid, every, start, temperature)
    if symmetric:
        loss = (loss + _find(sides[1], _gathered(sides[0], group)[0], valid, every, start, temperature)) / 2
    return _reduce(loss, valid.to(loss.dtype), "mean", group)


def accuracy(
    logits: Float[Array, "*N C"],
    labels: Int[Array, "*N"],
    *,
    weights: Num[Array, "*shape"] | None = None,
    ignore_index: int = -100,
    group: torch.distributed.ProcessGroup | None = None,
) -> Float[Array, ""]:
    """The weighted share of labels that are the largest logit (of equal ones the first); 0 where all are ignored.

    Arguments and errors as in `cross_entropy`; there is no gradient.
    """
    arguments.check_classes("accuracy", logits, labels, weights, ignore_index)
    labels = labels.to(torch.int64)
    weights = _weights(labels != ignore_index, weights, logits)
    right = logits.detach().argmax(dim=-1) == labels
    return _reduce(right.to(weights.dtype), weights, "mean", group)


def _wide(x: Array) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _extend(x: Array, rank: int) -> Array:
    return x.reshape(*x.shape, *[1] * (rank - x.ndim))


def _weights(counted: Array, weights: Array | None, like: Array) -> Array:
    """The weight of each position, 0 where it is ignored."""
    if weights is None:
        return counted.to(_wide(like))
    return torch.where(counted, _extend(weights.detach(), counted.ndim).to(_wide(like)), 0)


def _reduce(loss: Array, weights: Array, reduction: Reduction, group: torch.distributed.ProcessGroup | None) -> Array:
    weighted = torch.where(weights != 0, loss, 0) * weights
    if reduction == "none":
        return weighted
    return weighted.sum() if reduction == "sum" else _ratio(weighted.sum(), weights.sum(), group)


def _ratio(total: Array, count: Array, group: torch.distributed.ProcessGroup | None) -> Array:
    if group is not None:
        count = count.clone()
        torch.distributed.all_reduce(count, group=group)
    return total / torch.where(count == 0, 1, count)


def _unit(x: Array) -> Array:
    square = (x * x).sum(dim=-1, keepdim=True)
    return x / torch.sqrt(torch.where(square == 0, 1, square))


def _find(
    queries: Array, keys: Array, valid: Array, valid_keys: Array, start: int, temperature: float | Array
) -> Array:
    """-log softmax(queries · keys / temperature) at each query's own key, which is its row + start: [B]."""
    logits = torch.where(valid_keys, queries @ keys.mT / temperature, -torch.inf)
    logits = torch.where(valid[:, None], logits, 0)
    own = torch.arange(queries.shape[0], device=queries.device) + start
    return -torch.gather(F.log_softmax(logits, dim=-1), 1, own[:, None])[:, 0]


def _gathered(x: Array, group: torch.distributed.ProcessGroup | None) -> tuple[Array, int]:
    """The rows of all processes, and which of them is the first one here."""
    if group is None:
        return x, 0
    return _AllGather.apply(x, group), torch.distributed.get_rank(group) * x.shape[0]


class _AllGather(torch.autograd.Function):
    """Every process's rows, one after the other; backward, the gradients that all have for one's own are summed."""

    @staticmethod
    def forward(ctx: Any, x: Array, group: torch.distributed.ProcessGroup | None) -> Array:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Array) -> tuple[Any, None]:
        total = grads[0].clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        rank, size = torch.distributed.get_rank(ctx.group), torch.distributed.get_world_size(ctx.group)
        return total.chunk(size)[rank], None
