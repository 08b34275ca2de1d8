"""Images: windows and neighborhoods of a grid, visible patches, images within text."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskattn._fields import Array, peek
from maskattn._problems import Problems
from maskattn.masks import KeyMask, Mask, Neighborhood, QueryMask, Segments, ShiftedWindow


def swin(grid: tuple[int, int], window: int, shift: int = 0) -> Mask:
    """Swin: the mask inside windows, which are the batch, of a rolled grid. True = may attend.

    Liu et al. 2021 (arXiv:2103.14030, section 3.2), the block of microsoft/Swin-Transformer: where the window reaches
    the grid's shorter side, it becomes that side and nothing is shifted. For the same pattern over the flat grid,
    `masks.WindowPartition`.

    Args:
        grid: (height, width), in tokens, multiples of the window.
        window, shift: ints, 0 <= shift < window; half the window in every second block.

    Raises:
        ValueError: grid is no multiple of window, or shift not less than it. TypeError: something is not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.swin((4, 4), window=2, shift=1), 4, 4, batch=1))
    #-#-
    -#-#
    #-#-
    -#-#
    """
    problems = Problems("swin")
    sides: Any = problems.integers("grid", grid, minimum=1)
    window, shift = problems.integer("window", window, minimum=1), problems.integer("shift", shift, minimum=0)
    if not problems and len(sides) != 2:
        problems.value(f"grid must be (height, width), got {sides}")
    if not problems and shift >= window:
        problems.value(f"shift must be less than window {window}, got {shift}")
    problems.raise_if_any()
    if min(sides) <= window:
        window, shift = min(sides), 0
    return ShiftedWindow(sides, window, shift)


def natten(grid: object, kernel: object, dilation: object = 1) -> Mask:
    """NATTEN: the kernel's keys nearest to a token, on each axis. True = may attend.

    Hassani et al. 2023 (arXiv:2204.07143), dilated: Hassani and Shi 2022 (arXiv:2209.15001); as SHI-Labs/NATTEN
    without stride and causality. Arguments and errors as in `masks.Neighborhood`.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.natten((3, 3), kernel=(1, 2)).at(q_offset=3), 3, 9))
    ---##----
    ---##----
    ----##---
    """
    return Neighborhood(grid, kernel, dilation)


def mae_visible(keep: Array) -> Mask:
    """MAE's encoder on the full sequence: visible tokens see visible tokens, nothing else is seen. True = may attend.

    He et al. 2022 (arXiv:2111.06377, section 3) drop the removed tokens; masked instead, the visible ones give the same
    values at fixed shapes, and the rows of the others are empty. `keep` is bool [B, S], True = visible: the complement
    of MAE's own mask, in which 1 = removed.

    Raises:
        ValueError: keep has not two axes. TypeError: it is not bool.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.mae_visible([[True, False, True, True]]), 4, 4))
    #-##
    ----
    #-##
    #-##
    """
    return QueryMask(keep) & KeyMask(keep)


def flamingo(image_positions: Array, tokens_per_image: int, images: int | None = None) -> Mask:
    """Flamingo's cross-attention: text sees the tokens of the last image before it, and of no other. True = may attend.

    Alayrac et al. 2022 (arXiv:2204.14198, section 2.3); the masking of lucidrains/flamingo-pytorch and OpenFlamingo
    with `only_attend_immediate_media`. The text token that stands for an image sees it already; text before the first
    image sees nothing and follows `empty_rows`.

    Args:
        image_positions: bool [B, L], True where an image stands in the text.
        tokens_per_image: keys of each image (Perceiver latents).
        images: images that the keys hold, S = images * tokens_per_image; by default the most that a row has.

    Raises:
        ValueError: image_positions has not two axes, there are fewer images than a row has, or images is needed because
            the positions are traced. TypeError: image_positions is not bool, or a number not an int.

    >>> from maskattn import masks, recipes
    >>> print(masks.draw(recipes.flamingo([[False, True, False, True, False]], tokens_per_image=2), 5, 4))
    ----
    ##--
    ##--
    --##
    --##
    """
    problems = Problems("flamingo")
    positions = problems.array("image_positions", image_positions, "bool", "[B, L]")
    size = problems.integer("tokens_per_image", tokens_per_image, minimum=1)
    if images is not None:
        images = problems.integer("images", images, minimum=0)
    values = None if problems else peek(positions)
    if values is not None:
        most = int(values.sum(axis=1).max(initial=0))
        images = most if images is None else images
        if images < most:
            problems.value(f"images must be at least the {most} that a row has, got {images}")
    elif not problems and images is None:
        problems.value("images must be given where image_positions is traced, got None")
    problems.raise_if_any()
    return Segments(positions.cumsum(1) - 1, [np.repeat(np.arange(images or 0), size)])
