"""What models that were trained for a task make of the last hidden states: logits of labels, and vectors of texts."""

from __future__ import annotations

from dataclasses import dataclass

from maskattn.models.leaves import Linear, Norm
from maskattn.models.part import B, Part, Run, tokens_at, tokens_of
from maskattn.typing import Traced


def vector(read: str, h: B, keep: Traced, run: Run[B]) -> B:
    """One vector for each sequence of h [B, L, E]: [B, E].

    Args:
        read: "first", "last": the first, and the last, token that is no padding; "mean", "max": over all such.
        keep: bool [B, L], True = no padding, or None.
    """
    use = run.use
    if read == "mean":
        return use.mean(h, keep)
    if read == "max":
        whole: Traced = h
        least: Traced = whole if keep is None else use.where(keep[..., None], whole, use.cast(whole * 0 - 1e30, whole))
        found: Traced = use.pick(least.swapaxes(1, 2), least.argmax(1)[..., None])
        return found[..., 0]
    if keep is None:
        return tokens_of(h, 0 if read == "first" else -1, run)
    kept: Traced = keep * 1
    return tokens_at(h, (kept if read == "first" else kept.cumsum(1) * kept).argmax(1), run)


def unit(x: B, run: Run[B]) -> B:
    """x [B, P], each vector of length 1."""
    vectors: Traced = x
    made: Traced = run.use.arithmetic.cosine(vectors[:, None, None], None, 1.0)
    found: B = made[:, 0, 0]
    return found


@dataclass(frozen=True)
class Sentence(Part):
    """One vector for a text, as sentence-transformers makes it: those of `vector`, side by side.

    Attributes:
        normed: whether it has the length 1.
    """

    read: tuple[str, ...]
    normed: bool = False

    def apply(self, h: B, keep: Traced, run: Run[B]) -> B:
        """h [B, L, E] -> [B, E], or a multiple of it."""
        made = [vector(read, h, keep, run) for read in self.read]
        whole = made[0] if len(made) == 1 else run.use.concatenate(made, 1)
        return unit(whole, run) if self.normed else whole


@dataclass(frozen=True)
class Labels(Part):
    """Logits of the labels of a whole text, or of each token.

    Attributes:
        layers: one after the other, with `activation` between them, and `norm` before the last; `dropout_rates`: of
            what each reads.
        read: "each" token; "pooled"; "front": the first token, padding or not; "mean", as in `vector`; "text": the last
            token that is not `token`, the id of padding; "end": the last that is `token`, the end of a text.
        flat: whether the axis of one label is left out.
        marks: where nothing is said of global tokens: "first", the first token is; "question", all before the first
            `separator`; "": none is.
    """

    layers: tuple[Linear, ...]
    read: str = "each"
    activation: str = "linear"
    norm: Norm | None = None
    dropout_rates: tuple[float, ...] = ()
    token: int | None = None
    flat: bool = False
    marks: str = ""
    separator: int | None = None

    def apply(self, at: object, h: B, tokens: Traced, keep: Traced, pooled: B | None, run: Run[B]) -> B:
        """h [B, L, E], tokens int [B, L], pooled [B, E] -> [B, labels], or [B, L, labels]."""
        x: Traced = self._read(h, tokens, keep, pooled, run)
        for number, (layer, rate) in enumerate(zip(self.layers, self.dropout_rates, strict=True)):
            if number:
                x = run.norm(self.norm, at, run.use.activate(x, self.activation))
            x = run.linear(layer, at, run.drop(x, rate))
        return x[..., 0] if self.flat else x

    def _read(self, h: Traced, tokens: Traced, keep: Traced, pooled: B | None, run: Run[B]) -> B:
        if self.read == "pooled":
            assert pooled is not None
            return pooled
        if self.read in ("each", "front"):
            return h if self.read == "each" else tokens_of(h, 0, run)
        if self.read == "mean":
            return vector("mean", h, keep, run)
        if self.token is None:
            if tokens.shape[0] != 1:
                raise ValueError("the configuration has no pad_token_id: the end of several texts is not known")
            return vector("last", h, None, run)
        found = tokens == self.token if self.read == "end" else tokens != self.token
        return tokens_at(h, (found * run.use.arange(tokens.shape[1], tokens)[None]).argmax(1), run)

    def marked(self, tokens: Traced, run: Run[B]) -> Traced:
        """bool [B, L], which tokens are global where nothing is said; None: none is."""
        if not self.marks:
            return None
        places = run.use.arange(tokens.shape[1], tokens)[None] + tokens * 0
        return places < (1 if self.marks == "first" else ((tokens == self.separator) * 1).argmax(1)[:, None])
