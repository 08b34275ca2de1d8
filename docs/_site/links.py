"""Links that lead out of this folder, and pages whose text lies outside of it.

The README, the guide for contributors, the list of changes and what is promised of security stand in the root of the
repository, where people and tools look for them; the site has them as pages too. A link that works where the repository
is browsed works here: to such a page, or to a file of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
#: Pages of the site by the files of the root that they show.
SHOWN = {
    "README.md": "index",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
}
#: Where a page shows such a file: a link to it by its name, on a line of its own.
_SHOW = re.compile(r"^\[([A-Z]+\.md)\]\(\.\./\1\)$", re.MULTILINE)
#: The end of a link or image, [text](path#anchor); those with a scheme are no paths.
_LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<path>(?![a-z]+:|#)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def read(app: Sphinx, docname: str, source: list[str]) -> None:
    """The text of a page before it is parsed."""
    depth = "../" * docname.count("/")

    def text_of(match: re.Match[str]) -> str:
        app.env.note_dependency(str(ROOT / match[1]))
        return _LINK.sub(in_docs, (ROOT / match[1]).read_text(encoding="utf-8"))

    source[0] = _SHOW.sub(text_of, source[0])
    source[0] = _LINK.sub(lambda match: outside(match, depth, app.config.repository), source[0])


def in_docs(match: re.Match[str]) -> str:
    """A link of a file in the root, as it is written in docs/."""
    path = match["path"]
    return linked(match, path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}")


def outside(match: re.Match[str], depth: str, repository: str) -> str:
    """A link as the site has it: out of docs/ it leads to a page that shows the file, the repository, or a copy."""
    up = f"{depth}../"
    if not match["path"].startswith(up):
        return match[0]
    path = match["path"].removeprefix(up).removesuffix("/")
    if path in SHOWN:
        return linked(match, f"{depth}{SHOWN[path]}.md")
    if repository:
        return linked(match, f"{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}")
    return f"{match['text']} (`{path}`)" if (ROOT / path).is_dir() else match[0]


def linked(match: re.Match[str], path: str) -> str:
    """The same link to another place."""
    return f"[{match['text']}]({path}{match['anchor'] or ''})"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value("repository", "", "env", str)
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
