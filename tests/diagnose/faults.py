"""Faults of ports: which, where they are, and what has to be said of each."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault.

    Attributes:
        kind: of model. bad: the name of the fault, as the port knows it.
        where: the place of PyTorch's module, a regular expression. says: what the diagnosis has to say, likewise.
        quick: whether `make test` tries it.
    """

    kind: str
    bad: str
    where: str
    says: str
    quick: bool = False


_ATTENTION = r"layers?\.1\.(self_attn|attention)"
_MLP = r"layers?\.1\.mlp"
_ROTARY = r"rotary_emb|layers\.1\.self_attn"
_SCALE = r"scale|factor"
#: The code of the whole model has no path.
_POOLED = r"^\S* at (vit|classifier|modeling_vit)"

DECODER = [
    ("scale 1/D", _ATTENTION, rf"({_SCALE}).*0\.125"),
    ("scale missing", _ATTENTION, rf"({_SCALE}).*(\b1\b|left out|missing|no )"),
    ("scale twice", _ATTENTION, rf"({_SCALE}).*(0\.125|twice)"),
    ("scale by width", _ATTENTION, rf"({_SCALE}).*0\.1767"),
    ("mask missing", _ATTENTION, r"mask.*(left out|missing|not applied)|no mask"),
    ("mask inverted", _ATTENTION, r"mask.*(invert|opposite|negat)"),
    ("causal one ahead", _ATTENTION, r"one key more behind"),
    ("causal one behind", _ATTENTION, r"one key less at the end"),
    ("causal missing", _ATTENTION, r"(mask|causal).*(left out|missing|not|both ways)"),
    ("padding forgotten", _ATTENTION, r"padding"),
    ("fill", _ATTENTION, r"(fill|filled|masked).*-8"),
    ("softmax axis", _ATTENTION, r"softmax.*(axis|queries|dim)"),
    ("softmax in bfloat16", _ATTENTION, r"softmax.*bfloat16|bfloat16.*softmax|rounded.*bfloat16"),
    ("heads tiled", _ATTENTION, r"tile|repeat"),
    ("head order", _ATTENTION, r"head"),
    ("output heads transposed", _ATTENTION, r"head"),
    ("output kernel transposed", _ATTENTION, r"transpos"),
    ("key and value exchanged", _ATTENTION, r"exchanged|in the place of"),
    ("rotary pairs", _ROTARY, r"rotary.*(pair|interleav|neighbour)"),
    ("rotary sign", _ROTARY, r"rotary.*(sign|backwards|other way|opposite)"),
    ("rotary one late", _ROTARY, r"rotary.*(position|later|offset|shift)"),
    ("rotary theta", _ROTARY, r"theta|base"),
    ("rotary missing", _ROTARY, r"rotary.*(left out|missing|not|no )|no rotary"),
    ("rotary half", _ROTARY, r"rotary.*(part|half|4 of 8|dimensions)"),
    ("rotary of values too", _ROTARY, r"rotary.*value|value.*rota"),
    ("eps", r"layers\.1\.input_layernorm", r"eps.*0\.001"),
    ("one plus weight", r"layers\.1\.input_layernorm", r"1 \+ .*weight|weight.*\+ 1|one plus|plus 1|plus one"),
    ("mean subtracted", r"layers\.1\.input_layernorm", r"mean"),
    ("weight of the norm missing", r"layers\.1\.input_layernorm", r"weight.*left out|left out.*weight|without.*weight"),
    ("norm after", r"layers\.1", r"norm.*(after|behind|placed|of the output)"),
    ("norms exchanged", r"layers\.1", r"post_attention_layernorm.*(in the place|exchanged|instead)"),
    ("residual missing", r"layers\.1", r"left out|residual"),
    ("residual of the normed", r"layers\.1", r"in the place of|residual"),
    ("gelu for silu", _MLP, r"gelu \(tanh\).*not silu"),
    ("exact gelu for silu", _MLP, r"gelu, not silu"),
    ("relu for silu", _MLP, r"relu, not silu"),
    ("gate and up exchanged", _MLP, r"gate.*exchanged|exchanged.*gate|up_proj.*in the place|gate_proj.*in the place"),
    ("final norm missing", r"model\.norm|lm_head", r"norm.*left out|left out.*norm|no norm|skipped"),
    ("head tied", r"lm_head", r"embed_tokens.*(in the place|instead)|tied"),
    ("embedding scaled", r"embed_tokens|layers\.0", r"(multiplied|scaled|factor|times).*5\.65"),
    ("layer skipped", r"layers\.1", r"layer.*(left out|skipped|missing)"),
    ("layer twice", r"layers\.1|norm", r"layer.*twice"),
    ("weights of another layer", r"layers\.1", r"layers\.0.*(in the place|instead|weights)|weights.*layers\.0"),
]
ENCODER = [
    ("scale missing", _ATTENTION, rf"({_SCALE}).*(\b1\b|left out|missing)"),
    ("scale by width", _ATTENTION, rf"({_SCALE}).*0\.204"),
    ("padding forgotten", _ATTENTION, r"(mask|padding).*(left out|missing|not|forgotten)|no mask"),
    ("padding inverted", _ATTENTION, r"mask.*(invert|opposite|negat)"),
    # queries of padded tokens are not compared: all others see all keys
    ("padding of queries", _ATTENTION, r"mask.*(quer|transpos|missing)"),
    ("causal", _ATTENTION, r"causal"),
    ("fill", _ATTENTION, r"(fill|filled|masked).*\b0\b"),
    ("dropout", _ATTENTION, r"dropout|random"),
    ("heads in another order", _ATTENTION, r"head"),
    (
        "bias of queries missing",
        _ATTENTION,
        r"query\.bias.*left out|left out.*query\.bias|without.*bias|bias.*left out",
    ),
    ("output kernel transposed", _ATTENTION, r"transpos"),
    ("query and key exchanged", _ATTENTION, r"exchanged|in the place of"),
    ("tanh gelu", r"layer\.1\.intermediate", r"gelu \(tanh\), not gelu"),
    ("relu", r"layer\.1\.intermediate", r"relu, not gelu"),
    ("eps", r"layer\.1\.attention\.output", r"eps.*1e-05"),
    ("bias of the norm missing", r"layer\.1\.attention\.output", r"bias.*left out|left out.*bias|without.*bias"),
    ("norm before", r"layer\.1", r"norm.*(before|in front of)"),
    ("residual missing", r"layer\.1\.output", r"left out|residual"),
    ("types missing", r"embeddings", r"token_type.*left out|left out.*token_type|without.*type"),
    ("types all zero", r"embeddings", r"(token_)?type.*(0|zero)"),
    ("positions missing", r"embeddings", r"position.*left out|left out.*position"),
    ("positions two late", r"embeddings", r"position.*(2|two)"),
    ("norm of the embeddings missing", r"embeddings", r"[Nn]orm.*(left out|missing|skipped)|left out.*[Nn]orm"),
    ("pooled last", r"pooler", r"token.*(last|11|-1)|last token"),
    ("pooled mean", r"pooler", r"mean"),
    ("tanh of the pooler missing", r"pooler", r"no activation|tanh.*left out"),
]
VISION = [
    ("scale missing", _ATTENTION, rf"({_SCALE}).*(\b1\b|left out|missing)"),
    ("scale twice", _ATTENTION, rf"({_SCALE}).*(0\.125|twice)"),
    ("head order", _ATTENTION, r"head"),
    ("causal", _ATTENTION, r"causal"),
    ("softmax over heads", _ATTENTION, r"softmax.*(axis|head|dim)"),
    ("key and value exchanged", _ATTENTION, r"exchanged|in the place of"),
    ("q kernel transposed", _ATTENTION, r"transpos"),
    ("o kernel transposed", _ATTENTION, r"transpos"),
    ("tanh gelu", _MLP, r"gelu \(tanh\), not gelu"),
    ("silu", _MLP, r"silu, not gelu"),
    ("second norm missing", r"layers\.1", r"norm.*(left out|missing|skipped)|left out.*norm"),
    ("eps", r"layers\.1\.layernorm_before", r"eps.*1e-05"),
    ("residual missing", r"layers\.1", r"left out|residual"),
    ("patches by columns", r"embeddings", r"order|column|transpos"),
    ("patch kernel transposed", r"embeddings", r"transpos|order|column"),
    ("channels backwards", r"embeddings", r"channel|order|backwards|flip"),
    ("class token last", r"embeddings", r"token.*last|order|concatenat"),
    ("positions missing", r"embeddings", r"position.*left out|left out.*position"),
    ("positions one late", r"embeddings", r"position.*(1|one|shift)"),
    ("final norm missing", r"vit\.layernorm|classifier", r"norm.*(left out|missing|skipped)|left out.*norm"),
    ("pooled mean", _POOLED, r"mean"),
    ("pooled last", _POOLED, r"last token"),
]
ENCODER_DECODER = [
    ("scores scaled", r"decoder\.block\.1\.layer\.0", rf"({_SCALE}|multiplied).*0\.353"),
    ("gate and up exchanged", r"decoder\.block\.1\.layer\.2", r"exchanged|in the place"),
    ("exact gelu", r"decoder\.block\.1\.layer\.2", r"gelu, not gelu \(tanh\)"),
    ("eps", r"decoder\.block\.1\.layer\.0\.layer_norm", r"eps.*0\.001"),
    ("cross reads the decoder", r"decoder\.block\.1\.layer\.1", r"in the place of|decoder"),
    (
        "padding forgotten in cross attention",
        r"decoder\.block\.1\.layer\.1",
        r"(mask|padding).*(left out|missing|not)|no mask",
    ),
    (
        "cross attention of the unnormed",
        r"decoder\.block\.1\.layer\.1",
        r"norm.*(left out|missing|skipped)|left out.*norm|in the place",
    ),
    ("buckets of the wrong kind", r"decoder\.block\.0\.layer\.0", r"bucket.*(both|direction)|both ways|bidirectional"),
    (
        "encoder: buckets of the wrong kind",
        r"encoder\.block\.0\.layer\.0",
        r"bucket.*(one|direction)|one way|bidirectional",
    ),
    ("encoder: furthest distance", r"encoder\.block\.0\.layer\.0", r"distance.*12"),
    ("encoder: buckets backwards", r"encoder\.block\.0\.layer\.0", r"transpos|backwards|opposite|query.*key"),
    (
        "encoder: relative positions missing",
        r"encoder\.block\.0\.layer\.0",
        r"(bias|position).*(left out|missing)|left out",
    ),
    (
        "relative positions in the first layer alone",
        r"decoder\.block\.1\.layer\.0",
        r"(bias|position).*left out|left out",
    ),
    (
        "encoder: final norm missing",
        r"encoder\.final_layer_norm|decoder\.block\.0\.layer\.1",
        r"norm.*(left out|missing|skipped)|left out.*norm",
    ),
    (
        "padding forgotten in the encoder",
        r"encoder\.block\.0\.layer\.0",
        r"(mask|padding).*(left out|missing|not)|no mask",
    ),
    ("embedding scaled", r"shared|encoder|embed", r"(multiplied|scaled|factor|times).*4\.89"),
    ("not shifted", r"decoder", r"shift"),
    ("shifted by two", r"decoder", r"shift"),
    ("causal missing", r"decoder\.block\.0\.layer\.0", r"(mask|causal).*(left out|missing|not)|no mask"),
    ("scale of the output missing", r"lm_head|^\S* at modeling_t5|decoder", rf"({_SCALE}).*(\b1\b|left out)"),
]
EXPERTS = [
    ("window one longer", _ATTENTION, r"window too wide by one|one key more before"),
    ("window one shorter", _ATTENTION, r"window too narrow by one|one key less at the start"),
    ("window missing", _ATTENTION, r"window.*(no |missing|left out|without)|no window|without.*window"),
    ("gate and up exchanged", _MLP, r"exchanged|in the place"),
    ("gelu for silu", _MLP, r"gelu \(tanh\), not silu"),
    ("not renormalized", _MLP, r"(renormal|sum|normal).*(not|left out|missing)|not.*normal|left out"),
    ("one expert", _MLP, r"\b1 expert|one expert|top.?1|k.* 1\b"),
    ("sigmoid of the router", _MLP, r"sigmoid"),
    ("router in bfloat16", _MLP, r"bfloat16"),
    ("experts in another order", _MLP, r"expert.*(order|another|other|next)"),
    ("shares exchanged", _MLP, r"(share|weight).*(exchanged|order|other)"),
    ("shares left out", _MLP, r"(share|weight).*(left out|not)|left out"),
    ("router reads before the norm", r"layers\.1", r"norm.*(left out|missing|skipped)|left out.*norm|in the place"),
    ("rotary pairs", _ROTARY, r"rotary.*(pair|interleav|neighbour)"),
    ("weights of another layer", r"layers\.1", r"layers\.0.*(in the place|instead|weights)|weights.*layers\.0"),
]
#: Tried by `make test`.
QUICK = {
    ("decoder", "heads tiled"),
    ("encoder", "tanh gelu"),
    ("vision", "class token last"),
    ("experts", "not renormalized"),
}
TABLES = {
    "decoder": DECODER,
    "encoder": ENCODER,
    "vision": VISION,
    "encoder-decoder": ENCODER_DECODER,
    "experts": EXPERTS,
}
FAULTS = [Fault(kind, *row, (kind, row[0]) in QUICK) for kind, table in TABLES.items() for row in table]
