"""One row for each architecture: which tensors there are, and what is computed with them."""

from __future__ import annotations

from maskattn.layer.from_hf import Row
from maskattn.models.rows.decoders import DECODERS
from maskattn.models.rows.encoder_decoders import ENCODER_DECODERS
from maskattn.models.rows.encoders import ENCODERS
from maskattn.models.rows.experts import EXPERTS
from maskattn.models.rows.further import FURTHER
from maskattn.models.rows.gpt import GPT
from maskattn.models.rows.images import IMAGES
from maskattn.models.rows.sound import SOUND

#: model type -> its row: see `models.build`.
ROWS: dict[str, Row] = {
    **DECODERS,
    **GPT,
    **ENCODERS,
    **EXPERTS,
    **FURTHER,
    **ENCODER_DECODERS,
    **SOUND,
    **IMAGES,
}
