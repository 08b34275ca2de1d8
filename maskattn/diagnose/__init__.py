"""Where a port of a model parts from the original, and what it does otherwise there."""

from maskattn.diagnose.compare import compare
from maskattn.diagnose.parameters import Pair, Parameters
from maskattn.diagnose.report import Gradient, Place, Report

__all__ = ["Gradient", "Pair", "Parameters", "Place", "Report", "compare"]
