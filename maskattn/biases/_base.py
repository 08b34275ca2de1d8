"""`Bias`: what is added to the score of a query and a key."""

from __future__ import annotations

from maskattn._examples import Draws, Sizes
from maskattn._fields import Array
from maskattn._pairs import Pairwise, filled


class Bias(Pairwise):
    """What is added to a scaled (and capped) score, before the mask.

    A bias is a `@dataclass(frozen=True)` subclass with a `values` method. Fields are declared as those of a
    `maskattn.masks.Mask`: static, `data()` or `part()`.
    """

    def __init_subclass__(cls, **options: object) -> None:
        if "values" in vars(cls):
            cls.values = filled(vars(cls)["values"])  # type: ignore[method-assign]
        super().__init_subclass__(**options)

    @classmethod
    def examples(cls, shape: Sizes, draws: Draws) -> list[Bias]:
        """Biases of this class that fit the sizes of `shape`, chosen with `draws`: the parity suite runs them."""
        return []

    def values(self, b: Array, h: Array, q: Array, k: Array) -> Array:
        """What is added for query q and key k of batch row b and head h.

        Arguments as in `masks.Mask.allowed`; the result is float, of their broadcast shape.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define values(b, h, q, k)")
