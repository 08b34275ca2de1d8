"""Heads that are the embedding: made where the configuration says so, left out again where the source had none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from maskattn.convert import config_json
from maskattn.convert._identity import About, tied
from maskattn.convert._model import Model
from maskattn.convert.families import Form, Rule
from maskattn.convert.layouts import Step
from maskattn.convert.lazy import Lazy, Read

#: Classes of transformers whose models have a head.
_HEADED = ("ForCausalLM", "LMHeadModel")


class Ties(NamedTuple):
    """What is known of a model's head.

    Attributes:
      shared: whether the configuration says that it is the embedding.
      before: by family, the canonical names that were made of the embedding when the checkpoint was of that family.
    """

    shared: bool = False
    before: Mapping[str, tuple[str, ...]] = {}

    def cut(self, model: Model, to: Form) -> None:
        """Leaves out what is only a copy of the embedding, where ``to`` is the family that had none."""
        kernels = dict(_tied(model.form)) | dict(_tied(to))
        for name in self.before.get(to.family.name, ()):
            rule = next((rule for rule, kernel in kernels.items() if kernel == name), None)
            copy, original = model.tensors.get(name), model.tensors.get(f"{rule.tied}.embedding" if rule else "")
            if copy is not None and original is not None:
                del model.tensors[name]
                model.checks.append(_same(copy, original))
                model.dropped[copy.sources[0]] = "checked to be the embedding, as it was when it was made"
                model.shared.append(copy.sources[0])

    def fill(self, model: Model, to: Form) -> None:
        """Copies a tied embedding where the form cannot do without the tensor that the source leaves out."""
        for rule, name in _tied(model.form):
            place, original = to.place(name, attention=False), model.tensors.get(f"{rule.tied}.embedding")
            if place is None or not place[0].required or name in model.tensors or original is None:
                continue
            if not self.shared:
                missing = to.name(place[0], place[1], place[2])
                model.reasons.append(
                    f"{missing}: the source has none, and no configuration says that it is the embedding "
                    f"(tie_word_embeddings)"
                )
                continue
            model.tensors[name] = original.T
            model.ties.append(name)
            step = Step(f"tie {name}", f"absent, since it is {rule.tied}: a copy of that is written")
            model.steps[str(step)] = step

    def record(self, family: str, made: Iterable[str]) -> dict[str, list[str]]:
        """What the target says of it, for the way back."""
        made = list(made)
        return {name: list(names) for name, names in self.before.items()} | ({family: made} if made else {})


def headless(model: Model, about: About) -> list[str]:
    """A head that is absent although the configuration says that there is one of its own."""
    classes: Any = about.config.get("architectures")
    headed = [str(name) for name in classes if str(name).endswith(_HEADED)] if isinstance(classes, list) else []
    told = config_json.look_up(about.config, "tie_word_embeddings|text_config.tie_word_embeddings")
    if not headed or told is not False or tied(about.config, about.said):
        return []
    rules = (rule for rule in model.form.family.rules if rule.tied is not None or not rule.prefixed)
    heads = {f"{rule.canonical}.kernel" for rule in rules}
    if heads & set(model.tensors):
        return []
    absent = [model.form.name(rule, (), "kernel") for rule, name in _tied(model.form)]
    return [f"{name}: missing; a {headed[0]} whose tie_word_embeddings is false has one" for name in absent]


def _tied(form: Form) -> Iterator[tuple[Rule, str]]:
    """The rules of heads that may be the embedding, and the canonical names of their kernels."""
    for rule in form.family.rules:
        if rule.tied is not None and "*" not in rule.pattern:
            yield rule, f"{rule.canonical}.kernel"


def _same(copy: Lazy, original: Lazy) -> Any:
    def check(read: Read) -> None:
        mine, other = (np.ascontiguousarray(lazy.evaluate(read)) for lazy in (copy, original.T))
        if mine.tobytes() != other.tobytes():
            raise ValueError(
                f"{copy.sources[0]}: was a copy of {original.sources[0]} when it was made, and is none now"
            )

    return check
