"""What is added to a score, before the mask: one bias per file."""

from __future__ import annotations

from maskattn.biases._base import Bias
from maskattn.biases._table import TableBias
from maskattn.biases.additive import Additive
from maskattn.biases.alibi import ALiBi
from maskattn.biases.dense import DenseBias
from maskattn.biases.disentangled import Disentangled
from maskattn.biases.relative_table import RelativeTable
from maskattn.biases.t5_buckets import T5Buckets

__all__ = ["ALiBi", "Additive", "Bias", "DenseBias", "Disentangled", "RelativeTable", "T5Buckets", "TableBias"]
