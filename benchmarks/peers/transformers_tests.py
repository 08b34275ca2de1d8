"""transformers' own test that eager attention equals SDPA, with attn_implementation="maskattn" where it says "sdpa".

    pip download transformers==5.23.0 --no-deps --no-binary :all:    # whose source distribution has tests/
    python benchmarks/peers/transformers_tests.py transformers-5.23.0 [TYPE ...]

`_test_eager_matches_sdpa_inference` of its tests/test_modeling_common.py is run as it is, with its tolerances: in three
dtypes, padding on either side or none, with and without SDPA's kernels. That file comes with no models; they are those
of tests/twins/tiny_models.py. Models without SDPA support in transformers (Gemma 2, GPT-OSS) are tried as well.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import logging
import sys
import types
import unittest
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

import maskattn_torch

ROOT = Path(__file__).resolve().parents[2]
#: What the file imports, and nothing here uses.
ABSENT = {
    "parameterized": {"parameterized": types.SimpleNamespace(expand=lambda *cases, **named: lambda test: test)},
    "tests.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
}


#: Of the images: how many tokens they are, and which of their patches may be masked.
IMAGES = {"seq_length": 17, "num_masks": 3, "mask_length": 16}


class Refused(RuntimeError):
    """What maskattn refuses; the test would take another implementation after a ValueError."""


def common(folder: Path) -> Any:
    """tests/test_modeling_common.py of a checkout."""
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    for name, holds in ABSENT.items():
        parts = name.split(".")
        for parent in [".".join(parts[: i + 1]) for i in range(1, len(parts) - 1)]:
            sys.modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
        module = sys.modules.setdefault(name, types.ModuleType(name))
        vars(module).update(holds)
    return importlib.import_module("tests.test_modeling_common")


def tiny_models() -> Any:
    spec = importlib.util.spec_from_file_location("tiny_models", ROOT / "tests/twins/tiny_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instead_of_sdpa() -> None:
    """Have `from_pretrained` load with maskattn where it is asked for SDPA, and count its calls."""
    original = transformers.PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, *given: Any, **named: Any) -> Any:
        if named.get("attn_implementation") == "sdpa":
            named["attn_implementation"] = "maskattn"
            try:
                model = original(cls, *given, **named)
            except ValueError as error:
                raise Refused(str(error)) from error
            assert model.config._attn_implementation == "maskattn"
            return model
        return original(cls, *given, **named)

    transformers.PreTrainedModel.from_pretrained = classmethod(from_pretrained)


class Case(unittest.TestCase):
    """What the test asks of a class of tests of one type of model."""

    has_attentions = True

    def __init__(self, tiny: Any, kind: str) -> None:
        super().__init__("run")
        model = tiny.make(kind)
        self.all_model_classes = [type(model)]
        for cls in type(model).__mro__:
            if issubclass(cls, transformers.PreTrainedModel) and cls is not transformers.PreTrainedModel:
                cls._supports_sdpa = True
        given = tiny.inputs(model)
        self.additional_model_inputs = [name for name in given if name not in ("attention_mask", model.main_input_name)]
        self.model_tester = types.SimpleNamespace(
            **(IMAGES if "pixel_values" in given and "input_ids" not in given else {}),
            prepare_config_and_inputs_for_common=lambda: (
                type(model.config).from_dict(model.config.to_dict()),
                {name: x.clone() for name, x in given.items()},
            ),
        )

    def _prepare_for_class(self, inputs: dict[str, Any], model_class: type) -> dict[str, Any]:
        return inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkout or an unpacked source distribution")
    parser.add_argument("types", nargs="*")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    maskattn_torch.register()
    tiny = tiny_models()
    theirs = common(arguments.folder.resolve())
    instead_of_sdpa()
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for kind in arguments.types or tiny.MODELS:
        found: collections.Counter[str] = collections.Counter()
        for name, *options in theirs.TEST_EAGER_MATCHES_SDPA_INFERENCE_PARAMETERIZATION:
            try:
                theirs._test_eager_matches_sdpa_inference(Case(tiny, kind), name, *options)
                outcome = "passed"
            except unittest.SkipTest as skipped:
                outcome = "skipped"
                reasons[f"skipped, {kind}: {skipped}"] += 1
            except Exception as error:
                outcome = "failed"
                reasons[f"{kind}: {type(error).__name__}: {str(error)[:150]}"] += 1
            found[outcome] += 1
        print(f"{kind:14s} {dict(found)}", flush=True)
        counts += found
    print(f"in all {dict(counts)}; transformers {transformers.__version__}, torch {torch.__version__}")
    for reason, count in reasons.items():
        print(f"{count:4d} {reason}")


if __name__ == "__main__":
    main()
