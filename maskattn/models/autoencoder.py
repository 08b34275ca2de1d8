"""Masked autoencoders of images: most patches are left out, and a decoder makes them up."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.attention import Given
from maskattn.models.block import Stack
from maskattn.models.images import Grid, Patches, Places
from maskattn.models.leaves import Array, Linear
from maskattn.models.model import Inputs, Output, WholeModel
from maskattn.models.part import B, Part, Run
from maskattn.typing import Traced


@dataclass(frozen=True)
class Decoder(Part):
    """From what the encoder made of the patches that it saw to the pixels of all.

    Attributes:
        mask: the token that stands where nothing was seen.
        positions: of a grid of one row, as transformers interpolates them.
        predict: pixels of a patch, in the order of rows, columns, channels.
    """

    embed: Linear
    mask: Array
    positions: Places
    stack: Stack
    predict: Linear

    def apply(self, at: object, h: B, places: B, run: Run[B]) -> B:
        """h [B, 1 + kept, E]; places int [B, patches], where the patches are among those kept and then the others ->
        [B, patches, pixels]."""
        use = run.use
        known: Traced = run.linear(self.embed, at, h)
        index: Traced = places
        batch, patches = index.shape
        missing = (batch, patches + 1 - known.shape[1], known.shape[-1])
        masks = use.broadcast(run.array(self.mask, at), missing)
        first, seen = use.split(known, (1, known.shape[1] - 1), 1)
        whole = use.take(use.concatenate([seen, masks], 1), places)
        x = use.concatenate([first, whole], 1)
        x = use.add(x, self.positions.apply(at, (1, patches), x, run))
        x, _ = self.stack.apply(at, x, run, Given())
        pixels: Traced = run.linear(self.predict, at, x)
        made: B = pixels[:, 1:]
        return made


@dataclass(frozen=True)
class Autoencoder(WholeModel):
    """An encoder of the patches that it sees, and a decoder where the checkpoint has one.

    Attributes:
        hidden: the share of patches that is not seen; also where nothing is trained, as in transformers.
    """

    patches: Patches
    stack: Stack
    hidden: float
    decoder: Decoder | None = None

    def stacks(self) -> tuple[Stack, ...]:
        return (self.stack,) if self.decoder is None else (self.stack, self.decoder.stack)

    def apply(self, at: object, inputs: Inputs[B], run: Run[B]) -> Output[B]:
        """One call.

        Raises:
            ValueError: neither noise nor a key of dropout says which patches are seen; or noise is no [B, patches].
        """
        use = run.use
        x, grid = self.patches.embed(at, inputs.images, run)
        assert self.patches.positions is not None
        rows: Traced = self.patches.positions.apply(at, grid, x, run)
        before, behind = use.split(rows, (1, rows.shape[1] - 1), 1)
        x = use.add(x, behind)
        order: Traced = use.order(self._noise(x, grid, inputs, run))
        places: Traced = use.order(order)
        kept = int(order.shape[1] * (1 - self.hidden))
        x = self.patches.lead(at, use.take(x, order[:, :kept]), run)
        zeros = use.arithmetic.zeros((1, kept, rows.shape[-1]), rows)
        x = use.add(x, use.concatenate([before, zeros], 1))
        states: list[B] | None = [] if inputs.hidden_states else None
        h, _ = self.stack.apply(at, x, run, Given(states=states))
        logits = None if self.decoder is None else self.decoder.apply(at, h, places, run.within(len(self.stack.blocks)))
        return Output(h, logits, hidden_states=None if states is None else tuple(states), masked=places >= kept)

    def _noise(self, x: B, grid: Grid, inputs: Inputs[B], run: Run[B]) -> B:
        patches: Traced = x
        shape = patches.shape[0], grid[0] * grid[1]
        if inputs.noise is None:
            key = run.next_key()
            if key is None:
                raise ValueError(
                    f"Model: noise must be given, {list(shape)}, or a dropout_key with deterministic=False: "
                    f"{self.model_type} sees the patches of the smallest noise"
                )
            return run.use.uniform(key, shape)
        noise: Traced = run.use.as_array(inputs.noise, x)
        if tuple(noise.shape) != shape:
            raise ValueError(f"Model: noise must be [B, patches] = {list(shape)}, got {list(noise.shape)}")
        found: B = noise
        return found
