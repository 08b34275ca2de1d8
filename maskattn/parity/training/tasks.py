"""What is trained: four small models on real text and images, as data that both twins build from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskattn import corruption
from maskattn.config import AttentionConfig
from maskattn.parity.training import data
from maskattn.typing import NumPyArray as Array


@dataclass(frozen=True)
class Trunk:
    """Transformer blocks, one after the other.

    Attributes:
        attention: of each block, its dropout rates included.
        depth: blocks.
        hidden: the width between the two layers of a block's MLP.
        norm_first: normalise before attention and MLP (GPT-2, ViT), or after the sum (BERT).
        approximate: GELU by tanh (GPT-2) or by erf (BERT, ViT, Swin).
        epsilon: what layer norm adds to the variance.
        rate: of the dropout behind each MLP (and behind the embeddings).
        seed_module: attention is the seed module `Attention`, not `MultiHeadAttention`.
        window: relative position tables for windows of this shape; None: no table.
    """

    attention: AttentionConfig
    depth: int
    hidden: int
    norm_first: bool
    approximate: bool
    epsilon: float
    rate: float = 0.1
    seed_module: bool = False
    window: tuple[int, int] | None = None


@dataclass(frozen=True)
class Task:
    """One model and its data.

    Attributes:
        name: of the task; its model is the one of this name in `models.MODELS`.
        title: for people.
        batch: step -> what the model is given, NumPy arrays by name; images are float64, the trainer narrows them.
        stack: the blocks; for MAE those of the encoder.
        length: tokens, or patches, of one row.
        classes: tokens of the vocabulary.
        patch: pixels along each side of a patch (images).
        scheme: what is hidden from the model, drawn from the key of the step.
        decoder: MAE's second stack.
    """

    name: str
    title: str
    batch: Callable[[int], dict[str, Array]]
    stack: Trunk
    length: int
    classes: int = 0
    patch: int = 1
    scheme: Any = None
    decoder: Trunk | None = None

    def layers(self) -> Mapping[str, AttentionConfig]:
        """The attention layers by the path of their module, the same in both twins."""
        stacks = {"blocks": self.stack} | ({"decoder": self.decoder} if self.decoder else {})
        return {f"{name}.{i}.attention": stack.attention for name, stack in stacks.items() for i in range(stack.depth)}


@dataclass(frozen=True)
class Optimizer:
    """SGD with momentum, or AdamW: the same numbers for torch.optim and optax, whose defaults differ.

    Attributes:
        momentum: of SGD. betas, epsilon: of AdamW; epsilon stands outside the square root.
        weight_decay: of AdamW, decoupled from the gradient.
    """

    name: str
    learning_rate: float
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0


# Powers of two: PyTorch multiplies parameters by 1 - learning_rate * weight_decay, which float32 then holds exactly.
OPTIMIZERS = {
    "sgd": Optimizer("sgd", 0.05),
    "adamw": Optimizer("adamw", learning_rate=2**-10, weight_decay=2**-3),
}

_LENGTH, _BATCH = 32, 8


def _attention(width: int, heads: int, **options: Any) -> AttentionConfig:
    return AttentionConfig(width, heads, dropout_rate=0.1, out_dropout_rate=0.1, **options)


_BERT = Trunk(_attention(32, 4), depth=2, hidden=64, norm_first=False, approximate=False, epsilon=1e-12)
_VIT = Trunk(_attention(32, 4), depth=2, hidden=64, norm_first=True, approximate=False, epsilon=1e-6, seed_module=True)
_MAE_DECODER = Trunk(
    _attention(24, 3), depth=1, hidden=48, norm_first=True, approximate=False, epsilon=1e-6, seed_module=True
)
_SWIN = Trunk(_attention(24, 3), depth=2, hidden=48, norm_first=True, approximate=False, epsilon=1e-5, window=(4, 4))
_GPT = Trunk(_attention(32, 4, num_kv_heads=2), depth=2, hidden=64, norm_first=True, approximate=True, epsilon=1e-5)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "mlm",
            "masked language model, padded sentences",
            lambda step: data.sentences(step, _BATCH, _LENGTH),
            _BERT,
            length=_LENGTH,
            classes=data.VOCABULARY,
            scheme=corruption.MLM(mask_id=data.MASK, vocab_size=data.VOCABULARY),
        ),
        Task(
            "mae",
            "masked autoencoder, patches of digits",
            lambda step: data.digits(step, 2 * _BATCH),
            _VIT,
            length=16,
            patch=2,
            scheme=corruption.MAE(ratio=0.75),
            decoder=_MAE_DECODER,
        ),
        Task(
            "swin",
            "shifted windows, hidden pixels of digits",
            lambda step: data.digits(step, _BATCH, side=2),
            _SWIN,
            length=64,
            patch=2,
            scheme=corruption.SimMIM(image_size=16, unit=4, patch=2),
        ),
        Task(
            "causal",
            "causal language model, grouped heads",
            lambda step: data.passages(step, _BATCH, _LENGTH),
            _GPT,
            length=_LENGTH,
            classes=data.VOCABULARY,
        ),
    )
}
