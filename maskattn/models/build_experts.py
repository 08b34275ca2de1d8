"""A row's `experts` and `latent`: mixtures of experts, and attention whose keys and values grow from a latent.

`experts`, where a layer has them: count, width, picked; router (its path), scores, router_bias, renormalized, scale,
groups, kept, correction, wide (`models.experts.Router`); up, down, turned, up_bias, down_bias, limit, sharpness; shared
(the paths of gate, up and down), shared_width, shared_bias, weighed, jitter (`models.experts.Experts`).

`latent`: query (one path, or three: a layer, a norm, a layer) and rank, the width between them; both, norm, grown, out;
width, of the latent (`models.attention.Latent`).
"""

from __future__ import annotations

from collections.abc import Mapping

from maskattn._hf_config import Value
from maskattn.config import AttentionConfig
from maskattn.models.attention import Latent
from maskattn.models.experts import Experts, Router
from maskattn.models.leaves import Array, Linear, Norm
from maskattn.models.mlp import Gated

_INTO, _OUT_OF = ("embed", "mlp"), ("mlp", "embed")


def router_of(given: Mapping[str, Value], width: int) -> Router:
    """The router of what a row says of experts."""
    count, groups, kept = (int(given.get(name, 1)) for name in ("count", "groups", "kept"))
    correction, picked = given.get("correction"), int(given["picked"])
    if count % groups or kept > groups or picked > count // groups * kept:
        raise ValueError(
            f"models.describe: experts must lie in equal groups, of which so many are kept that {picked} can be picked "
            f"for a token, got {count} experts in {groups} groups, of which {kept} are kept"
        )
    return Router(
        Linear(given["router"], width, count, bool(given.get("router_bias", False))),
        picked,
        given.get("scores", "softmax"),
        bool(given.get("renormalized", False)),
        float(given.get("scale", 1.0)),
        groups,
        kept,
        None if correction is None else Array(correction, (count,), 0.0, trained=False),
        bool(given.get("wide", False)),
    )


def experts_of(given: Mapping[str, Value], width: int, activation: str) -> Experts:
    """The experts of a layer that has them."""
    count, inner, turned = int(given["count"]), int(given["width"]), bool(given.get("turned", False))
    shared, weighed = given.get("shared"), given.get("weighed")

    def array(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], begins: float | None) -> Array | None:
        found = given.get(name)
        return None if found is None else Array(found, (count, *shape), begins, axes=("experts", *axes))

    def matrix(name: str, inputs: int, outputs: int, axes: tuple[str, str]) -> Array:
        made = array(name, (inputs, outputs) if turned else (outputs, inputs), axes if turned else axes[::-1], None)
        assert made is not None
        return made

    if shared is not None:
        size = int(given["shared_width"])
        sizes = ((width, size, _INTO), (width, size, _INTO), (size, width, _OUT_OF))
        bias = bool(given.get("shared_bias", False))
        layers = [Linear(name, one, two, bias, axes=axes) for name, (one, two, axes) in zip(shared, sizes, strict=True)]
        shared = Gated(layers[0], layers[1], layers[2], activation)
    return Experts(
        router_of(given, width),
        matrix("up", width, 2 * inner, _INTO),
        matrix("down", inner, width, _OUT_OF),
        activation,
        turned,
        array("up_bias", (2 * inner,), ("mlp",), 0.0),
        array("down_bias", (width,), ("embed",), 0.0),
        given.get("limit"),
        float(given.get("sharpness", 1.0)),
        shared,
        None if weighed is None else Linear(weighed, width, 1, False),
        float(given.get("jitter", 0.0)),
    )


def latent_of(given: Mapping[str, Value], config: AttentionConfig) -> tuple[Latent, Linear]:
    """What makes queries, keys and values, and the layer of the output."""
    bias, names, width = config.out_bias, given["query"], int(given["width"])
    turned = config.head_dim if config.rotary is None or config.rotary.width is None else config.rotary.width
    queries = config.num_heads * config.head_dim

    # the model's own eps does not count here
    def norm(name: str, width: int) -> Norm:
        return Norm(name, width, "rms", 1e-6, bias=False)

    query: tuple[Linear] | tuple[Linear, Norm, Linear] = (
        Linear(names[0], config.embed_dim, queries, False, axes=("embed", "heads")),
    )
    if len(names) == 3:
        rank = int(given["rank"])
        query = (
            Linear(names[0], config.embed_dim, rank, bias),
            norm(names[1], rank),
            Linear(names[2], rank, queries, False, axes=(None, "heads")),
        )
    grown = config.num_heads * (config.head_dim - turned + config.v_head_dim)
    made = Latent(
        query,
        Linear(given["both"], config.embed_dim, width + turned, bias),
        norm(given["norm"], width),
        Linear(given["grown"], width, grown, False, axes=(None, "heads")),
    )
    out = Linear(given["out"], config.num_heads * config.v_head_dim, config.embed_dim, bias, axes=("heads", "embed"))
    return made, out
