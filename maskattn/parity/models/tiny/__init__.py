"""Tiny models of transformers, by model type; "+" and a word behind it is a variant."""

from __future__ import annotations

from maskattn.parity.models.tiny._tiny import Tiny
from maskattn.parity.models.tiny.decoders import DECODERS
from maskattn.parity.models.tiny.encoder_decoders import ENCODER_DECODERS
from maskattn.parity.models.tiny.encoders import ENCODERS
from maskattn.parity.models.tiny.experts import EXPERTS
from maskattn.parity.models.tiny.further import FURTHER
from maskattn.parity.models.tiny.gpt import GPT
from maskattn.parity.models.tiny.images import IMAGES
from maskattn.parity.models.tiny.sound import SOUND
from maskattn.parity.models.tiny.tasks import TASKS
from maskattn.parity.models.tiny.variants import VARIANTS

__all__ = ["TINY", "Tiny"]

TINY: dict[str, Tiny] = {
    **DECODERS,
    **GPT,
    **ENCODERS,
    **EXPERTS,
    **FURTHER,
    **VARIANTS,
    **ENCODER_DECODERS,
    **SOUND,
    **IMAGES,
    **TASKS,
}
