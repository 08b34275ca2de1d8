"""A mask as text, for documentation and the eye."""

from __future__ import annotations

from maskattn.masks._core import Mask, require_mask


def draw(mask: Mask, q_len: int, kv_len: int, batch: int = 0, head: int = 0) -> str:
    """The mask as text, a line per query: "#" may attend, "-" may not; q_len x kv_len.

    Raises:
        TypeError: this is no mask. ValueError: a size conflicts with the data, or there is no such batch row or head.
    """
    require_mask("draw", mask)
    rows = mask.dense(q_len, kv_len)
    for name, index, count in (("batch", batch, rows.shape[0]), ("head", head, rows.shape[1])):
        if not 0 <= index < count and name[0] in mask.depends:
            raise ValueError(f"draw: {name} must be less than {count}, got {index}")
    rows = rows[batch if "b" in mask.depends else 0, head if "h" in mask.depends else 0]
    return "\n".join("".join("-#"[int(allowed)] for allowed in row) for row in rows)
