"""The site of the documentation: each page is found, each snippet is run, each public name is in the reference.

`make docs` builds it, and fails for a link within it that leads nowhere. What is tested here needs no build.
"""

from __future__ import annotations

import importlib
import json
import posixpath
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.frameworks import in_both
from tests.test_docstrings import INTERNAL, MODULES, OF_TWINS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: Of a page in the navigation: what fits a line of the sidebar.
WIDEST = 32
#: Pages about what is inside, which show what nobody else has to import.
INSIDE = {"architecture", "life-of-a-call", "life-of-a-conversion"}
TOCTREE = re.compile(r"^```\{toctree\}\n(?P<options>(?::[^\n]*\n)*)\n?(?P<entries>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
ADDRESS = re.compile(r"\b[a-z][a-z+]*://[^\s<>\"'`|\\]*")


@pytest.fixture(scope="module")
def site():
    """The modules that make the site, as Sphinx imports them: by their folder's name."""
    sys.path.insert(0, str(DOCS))
    yield {
        name: importlib.import_module(f"_site.{name}")
        for name in ("aliases", "annotations", "code", "complete", "docstrings", "links", "names")
    }
    sys.path.remove(str(DOCS))


def pages(docs=DOCS):
    """Pages by their paths without suffix -> text, README, CONTRIBUTING and CHANGELOG not among them."""
    files = [file for suffix in ("md", "ipynb") for file in docs.rglob(f"*.{suffix}")]
    return {file.relative_to(docs).with_suffix("").as_posix(): file.read_text(encoding="utf-8") for file in files}


def entries(page, text):
    """(title, page) of all that the toctrees of a page list."""
    for tree in TOCTREE.finditer(text):
        for line in filter(None, tree["entries"].splitlines()):
            titled = re.fullmatch(r"(.+) <(.+)>", line)
            title, path = titled.groups() if titled else ("", line)
            yield title, posixpath.normpath(posixpath.join(posixpath.dirname(page), path))


def astray(found):
    """What is wrong with the navigation: pages that are in none, or in two places, or too deep; entries of no page."""
    depth, queue, wrong = {"index": 0}, ["index"], []
    for page in queue:
        for _, entry in entries(page, found[page]):
            if entry in depth:
                wrong.append(f"{entry} is listed twice")
            elif entry not in found:
                wrong.append(f"{page} lists {entry}, which there is not")
            else:
                depth[entry] = depth[page] + 1
                queue.append(entry)
    wrong += [f"{page} is in no toctree" for page in sorted(found) if page not in depth]
    return wrong + [f"{page} is {clicks} clicks away" for page, clicks in depth.items() if clicks > 2]


def test_each_page_is_found_in_two_clicks():
    found = pages()
    assert astray(found) == []
    assert len(found) > 50


def test_a_page_that_cannot_be_found_is_told():
    tree = "```{{toctree}}\n:caption: Here\n\n{}\n```\n"
    found = {
        "index": tree.format("One <one>\nlost"),
        "one": tree.format("below/two"),
        "below/two": tree.format("three"),
        "below/three": tree.format("../one"),
        "below/alone": "# Alone",
    }
    told = ["index lists lost, which there is not", "one is listed twice", "below/alone is in no toctree"]
    assert astray(found) == [*told, "below/three is 3 clicks away"]


def test_titles_in_the_navigation_are_short():
    titles = [title for page, text in pages().items() for title, _ in entries(page, text) if title]
    assert [title for title in titles if len(title) > WIDEST] == [] and len(titles) > 25


def not_run(text):
    """The python blocks of a page that are no doctests, but for its first example; and examples outside of fences."""
    blocks = [block for block in FENCED.finditer(text) if block["language"].strip() not in ("", "{toctree}")]
    rest = [block for block in blocks if block["language"].strip() == "python" and ">>> " not in block["code"]]
    found = [block["code"] for block in rest if block is not blocks[0]]
    outside = FENCED.sub("", text)
    return found + [line for line in outside.splitlines() if line.lstrip().startswith(">>> ")]


def test_the_python_of_all_pages_is_run():
    """As doctests, and a page's first example by tests/test_pages.py; README and CONTRIBUTING by tests of their own."""
    found = {page: not_run(text) for page, text in pages().items()}
    assert {page: blocks for page, blocks in found.items() if blocks} == {}


def test_python_that_is_not_run_is_told():
    text = "```python\n>>> 1 + 1\n2\n```\n\n```python\nlost()\n```\n\n>>> 1\n1\n\n```sh\nmake docs\n```\n"
    assert not_run(text) == ["lost()\n", ">>> 1"]


def unreadable(text):
    """Addresses of other hosts that are none: no https, no host, or with what ends a sentence."""
    for address in ADDRESS.findall(text):
        address = address.rstrip(").,;:")
        parts = urlsplit(address)
        if parts.scheme != "https" or "." not in (parts.hostname or "") or re.search(r"[()\[\]{}]", address):
            yield address


def test_addresses_of_other_hosts_are_addresses():
    texts = {**pages(), **{name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CHANGELOG.md")}}
    assert {page: wrong for page, text in texts.items() if (wrong := list(unreadable(text)))} == {}
    assert len(ADDRESS.findall("".join(texts.values()))) >= 3
    assert list(unreadable("http://example.org https://example https://a.org/b). git+https://a.org")) == [
        "http://example.org",
        "https://example",
        "git+https://a.org",
    ]


def test_texts_outside_of_the_folder_that_pages_lead_to_are_pages_too(site):
    named = {name for text in pages().values() for name in re.findall(r"\]\((?:\.\./)+([A-Z]+\.md)\b", text)}
    assert named == set(site["links"].SHOWN)


def reference():
    """The pages of the reference, one after the other."""
    return "".join(text for page, text in pages().items() if page.startswith("reference/"))


@in_both
def test_the_reference_has_every_public_module(site):
    names = site["names"]
    assert {*MODULES, *OF_TWINS} <= {*names.MODULES}
    documented = re.findall(r"^\.\. automodule:: (\S+)$", reference(), re.MULTILINE)
    assert {*names.MODULES} <= {*documented}
    assert len(documented) == len({*documented})


@in_both
def test_the_reference_has_every_name_that_pages_import(site):
    alone = re.findall(r"^\.\. auto(?:function|data|class):: (\S+)$", reference(), re.MULTILINE)
    known = {*site["names"].exported(), *site["names"].MODULES, *INTERNAL}
    known |= {*site["aliases"].aliases(), *alone, *(name.rpartition(".")[0] for name in alone)}
    imported = {}
    for page in pages().keys() - INSIDE:
        for module, words in re.findall(r"^>>> from (maskattn[\w.]*) import (.+)$", pages()[page], re.MULTILINE):
            for name in words.split(", "):
                imported[f"{module}.{name.split(' as ')[0]}"] = page
    assert {name: page for name, page in imported.items() if name not in known} == {}
    assert len(imported) > 30


@in_both
def test_a_name_that_the_reference_lacks_is_told(site):
    names = {*site["names"].exported()}
    assert site["complete"].missing(names) == [] and len(names) > 300
    assert site["complete"].missing(names - {"maskattn.masks.lint"}) == ["maskattn.masks.lint"]
    # the same function, documented under its other name
    assert site["complete"].missing(names - {"maskattn.compare"}) == []


def test_what_pages_would_load_from_other_hosts_is_told(site):
    text = """<a href="https://a.org"><script src="https://b.org/x.js"></script>
    <link rel="stylesheet" href="//c.org/y.css">
    <link rel="canonical" href="https://d.org"><img alt="" src="local.png"><style>@import "https://e.org/f.css";
    .x { background: url(https://g.org/h.png) }</style>"""
    assert site["complete"].loaded(text) == [
        "https://b.org/x.js",
        "//c.org/y.css",
        "https://e.org/f.css",
        "https://g.org/h.png",
    ]


def unsaid(text, results):
    """Of the figures that a page links to: the date and the processor that it does not say, nor leads to."""
    if "](benchmarks.md" in text:  # which says it of all: tests/test_figures.py
        return
    for name in re.findall(r"\]\([./]*benchmarks/results/(\w+)\.json\)", text):
        found = results[name]
        for what in (found["date"], re.sub(r"\(R\)| Processor", "", found.get("processor", ""))):
            if what not in re.sub(r"\(R\)", "", " ".join(text.split())):
                yield f"{name}: {what}"


def test_figures_are_given_with_their_machine_and_date():
    files = (ROOT / "benchmarks" / "results").glob("*.json")
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    assert [name for name, found in results.items() if not re.fullmatch(r"20\d\d-\d\d-\d\d", found["date"])] == []
    assert {page: wrong for page, text in pages().items() if (wrong := list(unsaid(text, results)))} == {}
    text = "[figures](../benchmarks/results/decode.json) of 2020-02-02,\non an AMD EPYC"
    assert list(unsaid(text, results)) == [f"decode: {results['decode']['date']}"]


#: What is measured: a time, or one in terms of another; and what says where and when, or leads there.
MEASURED = re.compile(r"\d (?:ms|us)\b|(?:\d|twice|half) (?:times )?(?:as (?:fast|long)|the time\b)")
SAID = re.compile(r"20\d\d-\d\d-\d\d|benchmarks\.md")


def undated(text):
    """The figures of sections that neither say a day nor lead to the benchmarks, which do."""
    for section in re.split(r"^#+ .*$", text, flags=re.MULTILINE):
        if not SAID.search(section):
            yield from MEASURED.findall(section)


def test_no_section_has_a_figure_without_its_day():
    texts = {**pages(), **{file.name: file.read_text(encoding="utf-8") for file in ROOT.glob("*.md")}}
    assert {page: figures for page, text in texts.items() if (figures := list(undated(text)))} == {}
    text = "# 2020-02-02\n\nIt takes 8 ms.\n\n# B\n\n3.1 times as long, on 2020-02-02\n\n# C\n\ntwice as fast: 64 MB"
    assert list(undated(text)) == ["8 ms", "twice as fast"]


def rewritten(site, text, depth="", repository=""):
    links = site["links"]
    return links._LINK.sub(lambda match: links.outside(match, depth, repository), text)


def test_links_out_of_the_folder_lead_to_pages_files_or_the_repository(site):
    text = "[a](../README.md#how-fast) [b](../CONTRIBUTING.md) [c](masks.md) [d](../Makefile) [e](../benchmarks/)"
    pages = "[a](index.md#how-fast) [b](contributing.md) [c](masks.md)"
    assert rewritten(site, text) == f"{pages} [d](../Makefile) e (`benchmarks`)"
    address = "https://example.org/x"
    there = f"[d]({address}/blob/main/Makefile) [e]({address}/tree/main/benchmarks)"
    assert rewritten(site, text, repository=address) == f"{pages} {there}"
    assert rewritten(site, "[a](../../README.md) [b](../masks.md)", "../") == "[a](../index.md) [b](../masks.md)"
    in_docs = site["links"]._LINK.sub(
        site["links"].in_docs, "[a](docs/masks.md#x) [b](LICENSE) [c](#x) ![d](docs/d.png)"
    )
    assert in_docs == "[a](masks.md#x) [b](../LICENSE) [c](#x) ![d](d.png)"


@in_both
def test_types_are_written_as_in_the_code_with_full_names(site):
    import maskattn_jax
    import maskattn_torch

    text = 'Mask | Bool[Given, "#B #H #L #S"] | None'
    for twin in (maskattn_torch, maskattn_jax):
        given = f'~maskattn.masks.Mask | Bool[~{twin.__name__}.types.Given, "#B #H #L #S"] | None'
        assert site["annotations"].written(text, twin.attention) == given
    lines = ["The sum.", "", ":param query: [B, L, H, D]; None: none.", ":param mask: True = may attend.", ""]
    site["annotations"].add_types(None, "function", "maskattn_torch.attention", maskattn_torch.attention, None, lines)
    assert lines[2].startswith(":type query: :annotation:`Float[") and lines[3].startswith(":param query: ")
    assert sum(line.startswith(":param query:") for line in lines) == 1
    assert any(line.startswith(":rtype: :annotation:`Float[") for line in lines)


@in_both
def test_names_that_docstrings_use_are_found_under_those_of_the_reference(site):
    aliases = site["aliases"]
    assert (
        aliases.own("maskattn.rng.key") == "maskattn.numerics.rng.key"
        and aliases.own("maskattn.masks") == "maskattn.masks"
    )
    assert aliases.alone("AttentionConfig", "maskattn_jax.params") == "maskattn.AttentionConfig"
    assert aliases.alone("Cache", "maskattn_torch.mha") == "maskattn_torch.cache.Cache"
    assert aliases.alone("attention", "maskattn_jax.cache") == "maskattn_jax.attention"
    assert aliases.alone("load", "maskattn_jax.models") == aliases.alone("data", "maskattn") == ""
    assert {"maskattn.compare", "maskattn.diagnose.compare"} <= {*aliases.same("maskattn.diagnose.compare")}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("The sum:\n\n    a = b*\n\nand more", "The sum:\n\n::\n\n    a = b*\n\nand more"),
        ("Args:\n    x: [*B, L], `a*b`,\n        |x| * 2", "Args:\n    x: [\\*B, L], `a*b`,\n        \\|x\\| \\* 2"),
        ("- one\n\n    more of it_\n- `a_\nb_` c_", "- one\n\n    more of it\\_\n- `a_\nb_` c\\_"),
        (">>> f(*x)\n*x*\n\n**", ">>> f(*x)\n*x*\n\n\\*\\*"),
    ],
)
def test_docstrings_are_plain_text_with_code(site, text, shown):
    assert "\n".join(site["docstrings"].as_rst(text.split("\n"))) == shown


def test_each_argument_attribute_and_error_has_a_field_of_its_own(site):
    lines = [
        *(":ivar rows, cols: how many. kind: what", "    it is: a word."),
        *(
            ":param a: both. c: alone.",
            ":param b: both. c: alone.",
            ":raises ValueError: none. TypeError, KeyError: other.",
        ),
    ]
    assert site["annotations"].one_by_one(lines, ["rows", "cols", "kind", "it", "a", "b", "c"]) == [
        *(":ivar rows: how many.", ":ivar cols: how many.", ":ivar kind: what", "    it is: a word."),
        *(":param a: both.", ":param c: alone.", ":param b: both."),
        *(":raises ValueError: none.", ":raises TypeError, KeyError: other."),
    ]


@in_both
def test_code_in_pages_leads_to_the_one_public_name_that_it_can_mean(site):
    public = site["code"].public
    assert public("masks.Causal") == public("Causal()") == public("maskattn.masks.Causal(2)") == "maskattn.masks.Causal"
    assert public("recipes.mistral(4096)") == "maskattn.recipes.mistral"
    assert public("lower.to_block_mask") == "maskattn_torch.lower.to_block_mask"
    # both twins have one; a word of everybody's; a shape; an argument; code
    for text in ("models.load", "MultiHeadAttention", "attention", "[B, L]", "kernel=", "x = masks.Causal()", ""):
        assert public(text) == "", text
