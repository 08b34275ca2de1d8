"""Which tiles of a mask are work: empty, full or mixed, without the matrix; rows and keys that nothing reaches."""

from __future__ import annotations

from maskattn.schedule.pieces import Piece, cut, pieces_of
from maskattn.schedule.reach import empty_rows, reached
from maskattn.schedule.tiles import EMPTY, FULL, MIXED, Schedule

__all__ = ["EMPTY", "FULL", "MIXED", "Piece", "Schedule", "cut", "empty_rows", "pieces_of", "reached"]
