"""Seeing a mask: figures, a drawing in the terminal, a picture."""

from __future__ import annotations

from maskattn.show.pixels import shrink
from maskattn.show.stats import Statistics, statistics
from maskattn.show.terminal import drawing

__all__ = ["Statistics", "drawing", "shrink", "statistics"]
