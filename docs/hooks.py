"""A hook of mkdocs: what a page links outside docs/ becomes part of the site, at its place in the repository.

Pages link by relative paths, as GitHub reads them: `../benchmarks/results/digits_em.png` from a page of docs/. mkdocs
knows only what lies in docs/, so each linked file is added to the site and the link is made relative to that.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
EXPLORER = "explorer/index.html"
PAGES = ["CONTRIBUTING.md", "CHANGELOG.md"]  # of the repository's root, shown as pages


def in_repository(page: str, link: str) -> str:
    """The path in the repository of what a page of the site links; a page of docs/ is named without docs/."""
    place = f"docs/{page}" if (ROOT / "docs" / page).exists() else page
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), link))


def in_site(path: str) -> str:
    """The path in the site of a path in the repository."""
    return path.removeprefix("docs/")


def from_the_site(page: str) -> str:
    """The explorer with links that start in the site, which has what lies outside docs/ a folder nearer."""
    return page.replace('href="../../', 'href="../')


def on_files(files: Any, config: Any) -> Any:
    """Add the root's pages, and every file that a page links outside docs/."""
    pages = {file.src_uri: Path(file.abs_src_path) for file in files.documentation_pages()}
    pages |= {name: ROOT / name for name in PAGES}
    linked = {in_repository(page, link) for page, path in pages.items() for link in LINK.findall(path.read_text())}
    explorer = next(file for file in files if file.src_uri == EXPLORER)
    files.remove(explorer)
    files.append(File.generated(config, EXPLORER, content=from_the_site(Path(explorer.abs_src_path).read_text())))
    for path in sorted({*PAGES, *linked}):
        if not path.startswith("docs/") and (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make the page's links relative to the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(here) or "."
    return LINK.sub(lambda link: posixpath.relpath(in_site(in_repository(here, link[1])), folder), markdown)
