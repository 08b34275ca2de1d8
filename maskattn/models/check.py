"""Options that a row refuses by name: there is no part for them, or transformers' own attentions differ in them."""

from __future__ import annotations

from collections.abc import Mapping

from maskattn._hf_config import Reading
from maskattn.layer.from_hf import Row

#: Of all models of one stack.
EVERYWHERE: Mapping[str, str] = {"add_cross_attention": "layers with cross-attention are no part of this model's table"}


def check(row: Row, reading: Reading) -> None:
    """Refuse a configuration in which an option of `row["refused"]`, a name and why, is set.

    Raises:
        ValueError: names the option and says why.
    """
    refused = row.get("refused", {})
    assert isinstance(refused, Mapping)
    known = {} if reading.get("is_encoder_decoder", default=False) else EVERYWHERE
    for name, why in {**known, **refused}.items():
        value = reading.get(name, default=None)
        if value:
            raise ValueError(f"{reading.where}: {reading.model_type!r} with {name}={value!r} is refused: {why}")
