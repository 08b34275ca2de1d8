"""Every row makes a model that gives what transformers' own gives."""

from __future__ import annotations

import pytest

from maskattn.parity.models.run import COLUMNS, examine
from maskattn.parity.models.tiny import TINY

pytest.importorskip("transformers")

#: Run whole each time: the other rows' gradients, bfloat16 and compiling by JAX are marked slow, and so are variants.
FEW = ("llama", "gemma2", "nemotron", "gpt2", "bert+pooled", "albert", "falcon+groups")


def held(row):
    assert row.held and row.cells, {column: (cell.share, cell.what) for column, cell in row.cells.items() if cell}


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if "+" in x else x for x in TINY])
def test_every_row_gives_what_transformers_gives(name):
    many = name.startswith(("swin", "vit_mae", "longt5"))  # operations, each of which JAX compiles
    held(examine(name, ("hidden", "logits"), compiled=many))


@pytest.mark.parametrize("name", [x if x in FEW else pytest.param(x, marks=pytest.mark.slow) for x in TINY])
def test_with_gradients_and_in_bfloat16(name):
    row = examine(name)
    held(row)
    assert set(row.cells) == set(COLUMNS)
