"""The cases that are run where each costs compiling: few, fixed, with every mask, dtype and option among them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from maskattn.parity.attention.case import Case
from maskattn.parity.attention.cases import DTYPES, registry
from maskattn.parity.attention.cases.mask_table import families

__all__ = ["MOST", "SECONDS", "sample"]

#: So many cases at most, and so many seconds after which no other is begun.
MOST, SECONDS = 60, 330.0

#: Beside the masks: ids, as shell patterns; what comes last goes first where there is no room.
_ALSO = (
    *(f"options/plain/{dtype}" for dtype in DTYPES),
    "options/all/*",
    *(f"options/{name}/float32" for name in ("softcap", "sinks", "bias", "bias-inf", "additive", "large-logits")),
    *(f"options/{name}/float32" for name in ("dropout", "dropout-all", "empty-mean", "empty-nan", "empty-error")),
    *(f"bias/{name}/float32" for name in ("t5", "relative-table", "alibi", "alibi-key")),
    *(f"MultiHeadAttention/{name}/float32" for name in ("self", "cross", "dropout")),
    *(f"planted/nan/{name}/float32" for name in ("padding", "dense", "causal")),
    "options/no-mask/float32",
    "recipe/gemma*",
    "composition/square/*",
)


def sample() -> list[Case]:
    """At most `MOST` cases of the registry: each mask by itself, in turn in float32, bfloat16 and float16; the options,
    biases, modules and planted values once; and compositions as far as there is room. Those that may share a
    compilation follow one another.
    """
    cases = {case.id: case for case in registry()}
    turns = [dtype for dtype in DTYPES if dtype != "float64"]
    chosen = [
        next(_matching(cases, f"{family}/square/{turns[n % len(turns)]}/0", f"{family}/*/0"))
        for n, family in enumerate(families())
    ]
    for pattern in _ALSO:
        chosen += [case for case in _matching(cases, pattern) if case not in chosen]
    return sorted(chosen[:MOST], key=_compiled)


def _matching(cases: dict[str, Case], *patterns: str) -> Iterator[Case]:
    """The cases whose ids match, of the first pattern first."""
    return iter([case for pattern in patterns for name, case in cases.items() if fnmatch.fnmatch(name, pattern)])


def _compiled(case: Case) -> tuple[object, ...]:
    """What a compiled program depends on, in an order in which it can be sorted."""
    shape = (case.shape.scores, case.shape.kv_heads, case.shape.head_dim, case.shape.v_head_dim)
    options = (str(case.bias)[:40], str(case.softcap), case.sinks, case.empty_rows, case.dropout_rate)
    return (case.config is not None, shape, case.dtype, *options, type(case.mask).__name__)
