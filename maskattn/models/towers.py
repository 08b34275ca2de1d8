"""Models with a tower for texts and one for images, whose vectors are compared: CLIP and SigLIP."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from maskattn.models.block import Stack
from maskattn.models.images import ImageModel
from maskattn.models.leaves import Array
from maskattn.models.model import Inputs, Output, TokenModel, WholeModel
from maskattn.models.part import B, Run
from maskattn.models.tasks import unit


@dataclass(frozen=True)
class Towers(WholeModel):
    """Texts beside images.

    Attributes:
        scale: the logarithm of what multiplies the cosines. bias: added to them.
    """

    inexact: ClassVar[str] = "the similarity of images and texts has no exact form"

    text: TokenModel
    vision: ImageModel
    scale: Array
    bias: Array | None = None

    def stacks(self) -> tuple[Stack, ...]:
        return (*self.text.stacks(), *self.vision.stacks())

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call, of texts, images or both.

        Raises:
            ValueError: neither is given.
        """
        texts = None if inputs.tokens is None else self.text.apply(at, inputs, run.within(0))
        images = None if inputs.images is None else self.vision.apply(at, inputs, run.within(1))
        if texts is None or images is None:
            known = images or texts
            if known is None:
                raise ValueError(f"Model: tokens or images must be given, {self.model_type} compares them")
            return dataclasses.replace(known, texts=texts, images=images)
        one, other = texts.text_embeds, images.image_embeds
        one, other = (texts.pooled if one is None else one), (images.pooled if other is None else other)
        assert one is not None and other is not None
        words, pictures, use = unit(one, run), unit(other, run), run.use
        logits = use.product(use.products(pictures, words), use.activate(run.array(self.scale, at), "exp"))
        if self.bias is not None:
            logits = use.add(logits, run.array(self.bias, at))
        return Output(images.hidden, logits, text_embeds=words, image_embeds=pictures, texts=texts, images=images)
