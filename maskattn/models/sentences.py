"""What a folder of sentence-transformers says beside its model: which modules make one vector of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from maskattn._hf_config import Value

#: Where a configuration has it: [module as modules.json has it, its config.json], for each.
KEY = "sentence_transformers"


def beside(folder: Path) -> dict[str, Value]:
    """Of the folder of a model, what its configuration has more: {} where there are no modules."""
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    made = []
    for module in json.loads(file.read_bytes()):
        options = folder / module["path"] / "config.json"
        read = module["path"] and options.is_file()
        made.append([module, json.loads(options.read_bytes()) if read else {}])
    return {KEY: made}


def write(folder: Path, config: Mapping[str, Value]) -> dict[str, Value]:
    """Writes the files of the modules again, into the folder of a model; -> the configuration without them."""
    modules = config.get(KEY, ())
    if modules:
        (folder / "modules.json").write_text(json.dumps([module for module, _ in modules], indent=2))
    for module, options in modules:
        if module["path"]:
            (folder / module["path"]).mkdir(parents=True, exist_ok=True)
        if options:
            (folder / module["path"] / "config.json").write_text(json.dumps(options, indent=2))
    return {name: value for name, value in config.items() if name != KEY}
