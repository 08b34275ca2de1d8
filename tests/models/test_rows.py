"""Every row makes a model that gives what transformers' own gives."""

from __future__ import annotations

import pytest

from maskattn.parity.models.run import COLUMNS, examine
from maskattn.parity.models.tiny import TINY
from maskattn.parity.models.twins import Torch

pytest.importorskip("transformers")

pytestmark = pytest.mark.hurried

#: Run whole each time: the other rows' gradients, bfloat16 and compiling by JAX are marked slow, and so are variants.
FEW = ("llama", "gemma2", "nemotron", "gpt2", "bert+pooled", "albert", "falcon+groups")
#: Rows with the parts of another: a model of text and images has both towers, Mistral stands for Ministral, RoBERTa for
#: those that name it. What they give in JAX, too, is left to slow tests; what `FEW` give is shown where they run whole.
SAME_PARTS = (
    *("ministral", "qwen2", "gemma", "cohere", "olmo", "xlm-roberta", "camembert", "electra", "qwen3_moe", "olmoe"),
    *("deepseek_v2", "mbart", "pegasus", "mt5", "hubert", "deit", "dinov2"),
    *("clip_text_model", "clip_vision_model", "siglip_text_model", "siglip_vision_model"),
)
SLOW = {name for name in TINY if "+" in name} | {*FEW} | {*SAME_PARTS}


def held(row):
    assert row.held and row.cells, {column: (cell.share, cell.what) for column, cell in row.cells.items() if cell}


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in TINY])
def test_every_row_gives_what_transformers_gives(name):
    many = name.startswith(("swin", "vit_mae", "longt5"))  # operations, each of which JAX compiles
    held(examine(name, ("hidden", "logits"), compiled=many))


@pytest.mark.parametrize("name", SAME_PARTS)
def test_rows_of_the_same_parts_in_pytorch(name):
    held(examine(name, ("hidden", "logits"), twins=(Torch,), sides=1))


@pytest.mark.parametrize("name", [x if x in FEW else pytest.param(x, marks=pytest.mark.slow) for x in TINY])
def test_with_gradients_and_in_bfloat16(name):
    row = examine(name)
    held(row)
    assert set(row.cells) == set(COLUMNS)
