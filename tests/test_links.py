"""Links, anchors and names of files in README and docs lead somewhere. Needs nothing but Python, for `make check`."""

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "results/README.md"])
PAGES = [page for page in PAGES if "_build" not in page.parts]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:src|docs|tests|conf|experiments|benchmarks|results/reference)/[\w./-]*)`")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a forge, and Sphinx with myst_heading_anchors, call the headings of a page."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,4} (.+)$", prose(page), re.MULTILINE):
        slug = (
            re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip().replace(" ", "-")
        )
        found[slug] = found.get(slug, -1) + 1
    return {slug if not again else f"{slug}-{again}" for slug, last in found.items() for again in range(last + 1)}


def committed() -> set[str]:
    """Files of the project: those that git knows, or would take."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    return set(subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


def broken(page: Path, files: set[str]) -> list[str]:
    """The links of a page that lead nowhere."""

    def leads(link: str) -> bool:
        name, _, anchor = link.partition("#")
        target = (page.parent / unquote(name)).resolve() if name else page
        inside = target.is_relative_to(ROOT) and target.relative_to(ROOT).as_posix() in files
        return (inside or target == page) and (not anchor or anchor in anchors(target))

    return [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link) and not leads(link)]


@pages
def test_every_link_leads_to_a_file_of_the_project_and_a_heading_of_it(page):
    assert broken(page, committed()) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# A `b` c\n## Twice\n## Twice\n")
    page = tmp_path / "a.md"
    good = "[1](b.md) [2](b.md#a-b-c) [3](b.md#twice-1) [4](https://example.org)\n```\n[5](none.md)\n```\n"
    page.write_text(good + "[6](c.md) [7](b.md#twice-2) [8](../b.md) ![9](c.svg) [10](#none)")
    assert broken(page, {"a.md", "b.md"}) == ["c.md", "b.md#twice-2", "../b.md", "c.svg", "#none"]


@pages
def test_every_file_that_is_named_is_there(page):
    missing = [name for name in NAMED.findall(prose(page)) if not (ROOT / name).exists()]
    assert missing == []


@pages
def test_every_test_that_is_named_is_there(page):
    written = set(
        re.findall(r"^def (test_\w+)", "".join(f.read_text() for f in ROOT.glob("tests/test_*.py")), re.MULTILINE)
    )
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= written


def test_every_entry_of_a_table_of_contents_is_a_page():
    for page in PAGES:
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            entries = [line for line in block.splitlines() if line and not line.startswith(":") and line != "*"]
            assert entries and [e for e in entries if not (page.parent / f"{e}.md").exists()] == []
