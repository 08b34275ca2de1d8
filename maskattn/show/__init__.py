"""Seeing a mask: figures, a drawing in the terminal, a picture, and the gallery of all of them."""

from __future__ import annotations

from maskattn.show.pixels import shrink
from maskattn.show.stats import Statistics, statistics
from maskattn.show.terminal import drawing

__all__ = ["Statistics", "drawing", "shrink", "statistics"]
