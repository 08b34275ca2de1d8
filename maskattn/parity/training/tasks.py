"""What is trained: small models of the tables, dropout on, on real text and images."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from maskattn import corruption
from maskattn.models import WholeModel, adapters, describe
from maskattn.models.adapters import Adapter
from maskattn.parity.training import data
from maskattn.typing import NumPyArray, Traced as Array

#: (a twin's package, its model, a batch, a key, the kernel) -> the loss, computed with dropout.
Loss = Callable[[Any, Any, Mapping[str, Array], Array, str], Array]


@dataclass(frozen=True)
class Task:
    """One model and its data.

    Attributes:
        name: of the task. title: for people.
        table: the model.
        batch: step -> what the loss is of, NumPy arrays by name; float64 ones become what is trained.
        loss: of a batch.
        adapter: whose layers the table has, and which alone is trained then.
    """

    name: str
    title: str
    table: WholeModel
    batch: Callable[[int], dict[str, NumPyArray]]
    loss: Loss
    adapter: Adapter | None = None


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

_LENGTH, _BATCH, _RATE = 32, 8, 0.1


class _Read(Container[str]):
    """The names of all that the losses read: what they do not would have no gradient in PyTorch, and 0 in JAX."""

    def __contains__(self, name: object) -> bool:
        return "pooler" not in str(name) and not str(name).endswith("embeddings.mask_token")


def _model(kind: str, name: str, **options: object) -> WholeModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "residual_dropout")
    rates = dict.fromkeys((*names, "embedding_dropout", "drop_path_rate"), _RATE)
    return describe({"model_type": kind, "architectures": [name], **sizes, **rates, **options}, _Read())


def _decoder() -> WholeModel:
    sizes = {"vocab_size": data.VOCABULARY, "num_key_value_heads": 2, "max_position_embeddings": _LENGTH}
    return _model("starcoder2", "Starcoder2ForCausalLM", **sizes)


# Losses --------------------------------------------------------------------------------------------------------------

_MLM = corruption.MLM(mask_id=data.MASK, vocab_size=data.VOCABULARY)
_SIMMIM = corruption.SimMIM(image_size=16, unit=4, patch=2, ratio=0.25)


def _masked(twin: Any, model: Any, batch: Mapping[str, Array], key: Array, kernel: str) -> Array:
    """tokens [B, L], special [B, L]: hidden tokens are predicted."""
    hide, drop = twin.rng.split(key)
    tokens = batch["tokens"]
    hidden = twin.corrupt(_MLM, hide, tokens, special=batch["special"])
    out = model(hidden.tokens, tokens != data.PAD, dropout_key=drop, deterministic=False, kernel=kernel)
    return twin.losses.cross_entropy(out.logits, hidden.labels)


def _next(twin: Any, model: Any, batch: Mapping[str, Array], key: Array, kernel: str) -> Array:
    """tokens [B, L + 1]: each next one is predicted."""
    tokens = batch["tokens"]
    out = model(tokens[:, :-1], dropout_key=key, deterministic=False, kernel=kernel)
    return twin.losses.cross_entropy(out.logits, tokens[:, 1:])


def _digit(twin: Any, model: Any, batch: Mapping[str, Array], key: Array, kernel: str) -> Array:
    """images [B, H, W, 1], labels [B]: which digit it is."""
    out = model(images=_planes(batch["images"]), dropout_key=key, deterministic=False, kernel=kernel)
    return twin.losses.cross_entropy(out.logits, batch["labels"])


def _digit_in_part(twin: Any, model: Any, batch: Mapping[str, Array], key: Array, kernel: str) -> Array:
    """As `_digit`, of images of which SimMIM's units are hidden."""
    hide, drop = twin.rng.split(key)
    images: Array = batch["images"]
    rows, side = images.shape[0], images.shape[1] // _SIMMIM.patch
    seen = ~twin.corrupt(_SIMMIM, hide, rows).removed
    pieces = images.reshape(rows, side, _SIMMIM.patch, side, _SIMMIM.patch) * seen[:, :, None, :, None]
    return _digit(twin, model, {**batch, "images": pieces.reshape(images.shape)}, drop, kernel)


def _removed(twin: Any, model: Any, batch: Mapping[str, Array], key: Array, kernel: str) -> Array:
    """images [B, H, W, 1]: patches that the model did not see are made up."""
    out = model(images=_planes(batch["images"]), dropout_key=key, deterministic=False, kernel=kernel)
    target = twin.losses.patchify(batch["images"], model.table.patches.project.size[0])
    return twin.losses.mae_loss(out.logits, target, out.masked, normalize=True)


def _planes(images: Array) -> Array:
    """[B, H, W, 1] -> [B, 1, H, W]."""
    return images[..., 0][:, None]


# Tasks ---------------------------------------------------------------------------------------------------------------

_LORA = adapters.new(["q_proj", "v_proj", "c_fc"], rank=4, alpha=8, dropout_rate=_RATE)
_PIXELS = {"num_channels": 1, "patch_size": 2, "num_labels": 10}
_MAE_DECODER = {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "mlm",
            "BERT, masked language model, padded sentences",
            _model("bert", "BertForMaskedLM", vocab_size=data.VOCABULARY, max_position_embeddings=_LENGTH),
            lambda step: data.sentences(step, _BATCH, _LENGTH),
            _masked,
        ),
        Task(
            "causal",
            "StarCoder2, causal language model, grouped heads",
            _decoder(),
            lambda step: data.passages(step, _BATCH, _LENGTH),
            _next,
        ),
        Task(
            "lora",
            "the same with an adapter, which alone is trained",
            _LORA.on(_decoder()),
            lambda step: data.passages(step, _BATCH, _LENGTH),
            _next,
            _LORA,
        ),
        Task(
            "vit",
            "ViT, digits",
            _model("vit", "ViTForImageClassification", image_size=8, **_PIXELS),
            lambda step: data.digits(step, 2 * _BATCH),
            _digit,
        ),
        Task(
            "mae",
            "ViT-MAE, patches of digits",
            _model(
                "vit_mae", "ViTMAEForPreTraining", image_size=8, **_PIXELS, **_MAE_DECODER, decoder_intermediate_size=48
            ),
            lambda step: data.digits(step, 2 * _BATCH),
            _removed,
        ),
        Task(
            "swin",
            "Swin, shifted windows, hidden pixels of digits",
            _model(
                "swin",
                "SwinForImageClassification",
                image_size=16,
                **_PIXELS,
                embed_dim=24,
                depths=[2],
                num_heads=[3],
                window_size=4,
            ),
            lambda step: data.digits(step, _BATCH, side=2),
            _digit_in_part,
        ),
    )
}
