"""Pages in a real browser: what is wrong with them, at the widths of a phone and of a desk, in light and in dark.

What can be read by anyone, with a keyboard too, is axe's to say (https://github.com/dequelabs/axe-core: contrast,
names, headings of tables, alternative texts, language, targets that can be hit). What it does not judge is measured
here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

#: The width and height of a phone and of a desk, in CSS pixels.
SIZES = {"phone": (390, 844), "desk": (1280, 900)}
SCHEMES = ("light", "dark")
#: WCAG 2.2 at level AA, and what axe's authors hold to be good practice.
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_CONTRAST = {"type": "rule", "values": ["color-contrast"]}
#: What axe is asked for, and when: contrast takes most of its time, and is looked for once in each scheme.
RULES = {
    ("phone", "light"): {"type": "tag", "values": TAGS},
    ("desk", "dark"): _CONTRAST,
}
#: What the page is not asked to keep out: itself.
OWN = ("file", "data", "blob", "about")

#: What is cut off, too narrow or too small to be read; and tables that are none.
LOOK = """() => {
  const said = [], width = document.documentElement.clientWidth
  const name = e => e.tagName.toLowerCase() + (e.className ? '.' + e.className : '') +
    ' "' + e.textContent.trim().slice(0, 40) + '"'
  // what is hidden beside the page, a drawer say, is no fault; what is hidden of a table is one: see below
  const open = ![document.documentElement, document.body].some(e => /hidden|clip/.test(getComputedStyle(e).overflowX))
  if (open && document.scrollingElement.scrollWidth > width) {
    const inside = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== 'visible') return true; return false }
    const wide = [...document.body.querySelectorAll('*')].filter(
      e => e.getBoundingClientRect().right > width + 1 && !inside(e))
    said.push(`the page scrolls sideways: ${document.scrollingElement.scrollWidth} of ${width}, ` +
      (wide.length ? name(wide[wide.length - 1]) : 'nobody knows why'))
  }
  for (const table of document.querySelectorAll('table')) {
    const heads = [...table.querySelectorAll('th')]
    if (!heads.some(e => e.textContent.trim())) said.push('no cell is a heading: ' + name(table))
    let right = table.getBoundingClientRect().right
    for (let p = table.parentElement; p; p = p.parentElement) {
      const edge = p === document.documentElement ? width : p.getBoundingClientRect().right
      const flow = getComputedStyle(p).overflowX
      if (/hidden|clip/.test(flow) && right > edge + 1) said.push('cut off: ' + name(table))
      if (flow !== 'visible') right = Math.min(right, edge)
    }
    for (const cell of table.querySelectorAll('th, td')) {
      const box = cell.getBoundingClientRect()
      if (box.width && box.width < 120 && cell.textContent.trim().length > 40)
        said.push(`${Math.round(box.width)} pixels for a sentence: ${name(cell)}`)
      if (cell.scrollWidth > cell.clientWidth + 1 && getComputedStyle(cell).overflowX === 'visible' && box.width)
        said.push('runs out of its cell: ' + name(cell))
    }
  }
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, size = parseFloat(getComputedStyle(e).fontSize)
    if (size < 12 && texts.currentNode.data.trim() && e.checkVisibility() && !e.closest('script, style, svg, sup, sub'))
      said.push(`text of ${size} pixels: ${name(e)}`)
  }
  for (const image of document.images)
    if (!image.naturalWidth) said.push('not drawn: ' + image.src)
  return said
}"""


def found() -> str:
    """The browser; where there is none, or nothing to drive it with, the test is skipped, and says so.

    MASKATTN_BROWSER names one, and then nothing is skipped, for want of the site neither.
    """
    named = os.environ.get("MASKATTN_BROWSER")
    if named:
        program = shutil.which(named)
        assert program, f"MASKATTN_BROWSER: there is no program {named}"
        return program
    pytest.importorskip("playwright")
    pytest.importorskip("axe_playwright_python")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: apt-get install chromium, or name one by MASKATTN_BROWSER")
    return path


def wrong(files: Iterable[Path], quickly: Iterable[Path] = (), without: Iterable[str] = ()) -> list[str]:
    """What is wrong with each of these pages on this disk, and in which setting first; [] where nothing is.

    Args:
        quickly: further pages, looked at by the width of a phone, and not judged by axe, which takes seconds for each.
        without: rules of axe that are not asked for.
    """
    from playwright.sync_api import sync_playwright

    # As root, Chromium runs without its sandbox or not at all; it is given pages of our own.
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    alone = "--host-resolver-rules=MAP * ~NOTFOUND"  # no other host is reached: what asks for one is incomplete
    said = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found(), args=[*root, alone], timeout=180_000)
        try:
            page, heard = _listening(browser)
            for file, wholly in [*((file, True) for file in files), *((file, False) for file in quickly)]:
                page.goto(file.resolve().as_uri())
                said += [f"{file.name}: {what}" for what in dict.fromkeys([*_seen(page, wholly, without), *heard])]
                heard.clear()
        finally:
            browser.close()
    return said


def _listening(browser: Any) -> tuple[Any, list[str]]:
    """A page, and what is heard of it: words of the console, errors of scripts, and what it asks other hosts for."""
    page, heard = browser.new_page(), list[str]()
    page.set_default_timeout(60_000)
    page.on("console", lambda said: heard.append(f"console: {said.text}") if said.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: heard.append(f"script: {error}"))

    def asked(request: Any) -> None:
        address = urlsplit(request.url)
        if address.scheme not in OWN:
            heard.append(f"asks {address.hostname} for {address.path}")

    page.on("request", asked)
    return page, heard


def _seen(page: Any, wholly: bool, without: Iterable[str]) -> Iterator[str]:
    from axe_playwright_python.base import AXE_SCRIPT

    off = {rule: {"enabled": False} for rule in without}
    yield from _keyboard(page)
    if wholly:
        page.evaluate(AXE_SCRIPT)
    seen: set[str] = set()
    for size, (width, height) in SIZES.items() if wholly else [("phone", SIZES["phone"])]:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in SCHEMES if wholly else SCHEMES[:1]:
            page.emulate_media(color_scheme=scheme)
            rules = RULES.get((size, scheme)) if wholly else None
            options = {"resultTypes": ["violations"], "runOnly": rules, "rules": off, "preload": False}
            judged = page.evaluate("o => axe.run(document, o)", options)["violations"] if rules else ()
            for what in [*page.evaluate(LOOK), *map(_axe, judged)]:
                if what not in seen:
                    seen.add(what)
                    yield f"{size}, {scheme}: {what}"


def _axe(violation: dict[str, Any]) -> str:
    first = violation["nodes"][0]
    why = " ".join(check["message"] for kind in ("any", "all", "none") for check in first[kind])
    return f"{violation['id']}: {len(violation['nodes'])} times, first {first['html'][:120]} ({why})"


def _keyboard(page: Any) -> Iterator[str]:
    """Opens what is closed, as one who has no mouse does."""
    for fold in page.query_selector_all("details:not([open])"):
        summary = fold.query_selector("summary")
        if summary is None or not summary.is_visible():
            continue
        summary.focus()
        page.keyboard.press("Enter")
        if not fold.evaluate("e => e.open"):
            yield f"cannot be opened by keyboard: {summary.inner_text()[:40]}"
