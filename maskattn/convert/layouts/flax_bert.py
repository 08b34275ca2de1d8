"""FlaxBert of Hugging Face transformers 4: ``self/query/kernel`` [E, E], [in, out], and ``output/dense/kernel``.

FlaxRoberta and FlaxElectra use the same names. ``output/LayerNorm``, which follows the residual connection, is not
attention and stays outside.
"""

from __future__ import annotations

from maskattn.convert.layouts._base import Layout, Stored
from maskattn.convert.layouts._limits import PLAIN, all_biases, one_width


def dense(module: str, *roles: str, form: str = "conv1d") -> tuple[Stored, Stored]:
    """``module/kernel`` and ``module/bias`` of a layer that folds heads into features: [in, out] unless said."""
    return Stored(f"{module}/kernel", roles, "kernel", form), Stored(f"{module}/bias", roles, "bias", form)


class FlaxBert(Layout):
    """Four square dense layers with biases."""

    name = "flax-bert"
    aliases = ("hf-flax-bert", "flax-roberta")
    separator = "/"
    anchors = ("self/query/kernel", "self/key/kernel", "self/value/kernel")
    outside = ("output/LayerNorm/scale", "output/LayerNorm/bias")
    projections = (
        *dense("self/query", "query"),
        *dense("self/key", "key"),
        *dense("self/value", "value"),
        *dense("output/dense", "out"),
    )
    limits = (*PLAIN, one_width, all_biases)
