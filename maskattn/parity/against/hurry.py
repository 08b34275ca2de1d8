"""How JAX compiles what runs once or twice: in a hurry, since compiling takes longer than running."""

from __future__ import annotations

from maskattn.convert.twins import HURRY

__all__ = ["HURRY"]
