from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from maskattn._declared import declared, integer, number
from maskattn._problems import Problems
from maskattn.corruption._base import Scheme
from maskattn.corruption._ops import NUMPY, Ops
from maskattn.masks import Mask
from maskattn.typing import Traced as Array

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt32


class Removed(NamedTuple):
    """What `MAE` returns; integers in the framework's index dtype.

    Attributes:
        keep: int [B, K]: the patches that are kept, in the order of their draws.
        restore: int [B, L]: the place of each patch among the kept ones and then the removed ones.
        removed: bool [B, L]: True = removed, where MAE's mask is 1.
        visible: bool [B, prefix + L]: True = visible to the encoder, the tokens in front included.
    """

    keep: Int[Array, "B K"]
    restore: Int[Array, "B L"]
    removed: Bool[Array, "B L"]
    visible: Bool[Array, "B prefix+L"]

    def attention_mask(self) -> Mask:
        """The encoder on the full sequence, prefix + L tokens: visible tokens see visible tokens. True = may attend.

        Its visible rows are those of the encoder on the kept tokens; the other rows are empty (`recipes.mae_visible`).
        """
        from maskattn.recipes import mae_visible

        return mae_visible(self.visible)


@declared
class MAE(Scheme[Removed]):
    """MAE's random masking: most patches are removed, the encoder sees the others.

    He et al. 2022 (arXiv:2111.06377, section 3, page 4, and "Simple implementation"); as `random_masking` of
    facebookresearch/mae: patches are sorted by random numbers, the first int(L * (1 - ratio)) are kept, and `restore`
    undoes the sorting: with mask tokens appended, gathering by `restore` gives the order of the image.

    >>> from maskattn import corruption
    >>> drawn = corruption.MAE(0.75).apply(0, batch=1, length=8)
    >>> drawn.keep
    array([[5, 6]])
    >>> drawn.removed.astype(int)
    array([[1, 1, 1, 1, 1, 0, 0, 1]])
    """

    ratio: float = number(minimum=0, below=1, default=0.75, meaning="the fraction of the patches that is removed")
    prefix: int = integer(
        minimum=0, default=0, meaning="tokens in front that are always visible and not counted (MAE's class token: 1)"
    )

    def apply(self, key: int | UInt32[Array, " 2"], batch: int, length: int, *, ops: Ops = NUMPY) -> Removed:
        """Draw what is removed from `batch` rows of `length` patches, by `key` (see `Scheme`).

        Raises:
            ValueError: a size is negative, or no patch would be kept. TypeError: it is not an int.
        """
        problems = Problems("MAE")
        batch, length = problems.integer("batch", batch, minimum=0), problems.integer("length", length, minimum=1)
        kept = 0 if problems.reasons else int(length * (1 - self.ratio))
        if not problems.reasons and not kept:
            problems.value(f"ratio must keep at least one of {length} patches, got {self.ratio}")
        problems.raise_if_any()
        order = ops.argsort(ops.words(ops.key(key), (batch, length)))
        restore = ops.argsort(order)
        removed = restore >= kept
        front = ops.zeros((batch, self.prefix)) == 0
        return Removed(order[:, :kept], restore, removed, ops.concatenate([front, ~removed]))
