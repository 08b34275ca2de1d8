"""The parts of an attention layer: what each is, once for both twins.

project -> norm -> clip -> rotary -> cache -> attend -> gate -> project

Each part is a frozen dataclass in one field of `AttentionConfig`; `modules/run.py` has the order in which they come,
`modules/parameters.py` what they learn, and `layer.py` of each twin their arithmetic.
"""

from __future__ import annotations

from maskattn.layer.norm import Norm
from maskattn.layer.parts import Clip, Cosine, ExtraKeys, Gate, GlobalTokens, Temperature
from maskattn.layer.position_bias import ContinuousTable, Disentangled, PositionBias, Slopes, T5Table, WindowTable
from maskattn.layer.rotary import DynamicNTK, LinearScaling, Llama3, LongRope, Rotary, Scaling, Yarn

__all__ = [
    "Clip",
    "ContinuousTable",
    "Cosine",
    "Disentangled",
    "DynamicNTK",
    "ExtraKeys",
    "Gate",
    "GlobalTokens",
    "LinearScaling",
    "Llama3",
    "LongRope",
    "Norm",
    "PositionBias",
    "Rotary",
    "Scaling",
    "Slopes",
    "T5Table",
    "Temperature",
    "WindowTable",
    "Yarn",
]
