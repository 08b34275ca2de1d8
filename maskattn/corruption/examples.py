"""A small example of each scheme, by the name of its file: what `maskattn show` draws."""

from __future__ import annotations

from maskattn.corruption._base import Scheme
from maskattn.corruption.beit import BEiT
from maskattn.corruption.ijepa import IJEPA
from maskattn.corruption.mae import MAE
from maskattn.corruption.mlm import MLM
from maskattn.corruption.simmim import SimMIM
from maskattn.corruption.t5_spans import T5Spans

#: The text on which the schemes for text are shown. A token is the place of its word in `VOCABULARY`.
TEXT = (
    "the old ferry crossed the river twice a day , and when the fog was thick its bell could be heard from both sides "
    "long before anyone saw the lamp on its bow ."
).split()
VOCABULARY = sorted(set(TEXT))
#: Patches along each side of the image on which MAE is shown, which does not say.
SIDE = 14

EXAMPLES: dict[str, Scheme] = {
    "beit": BEiT(),
    "ijepa": IJEPA(),
    "mae": MAE(),
    "mlm": MLM(mask_id=len(VOCABULARY), vocab_size=len(VOCABULARY) + 1),
    "simmim": SimMIM(image_size=224, patch=16),
    "t5_spans": T5Spans(first_sentinel=len(VOCABULARY) + 99),
}
