"""MkDocs hooks: files of the repository that documents link to become part of the site.

On GitHub a link such as `../../benchmarks/results/accuracy.md` works as it is. The site has only
the files below `docs/`, so a linked file outside is copied to the same path below `repository/`.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
COPIES = "repository/"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")


def place(link: str, document: str) -> str:
    """Return where the target of a relative link stands in the site; `document` likewise."""
    is_copy = document.startswith(COPIES)
    original = document.removeprefix(COPIES) if is_copy else f"docs/{document}"
    path = posixpath.normpath(posixpath.join(posixpath.dirname(original), link))
    return path.removeprefix("docs/") if path.startswith("docs/") else COPIES + path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside `docs/` that documents link to, with the pictures of these files."""
    waiting = [(page.src_uri, Path(page.abs_src_path)) for page in files.documentation_pages()]
    while waiting:
        document, file = waiting.pop()
        for picture, _, link, _ in LINK.findall(file.read_text()):
            uri = place(link, document)
            path = ROOT / uri.removeprefix(COPIES)
            is_followed = picture or not document.startswith(COPIES)
            if not uri.startswith(COPIES) or not is_followed or not path.is_file():
                continue
            if files.get_file_from_path(uri) is None:
                kind = InclusionLevel.NOT_IN_NAV
                added = File.generated(config, uri, abs_src_path=os.fspath(path), inclusion=kind)
                files.append(added)
                if path.suffix == ".md":
                    waiting.append((uri, path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the copies; in a copy, those to files without a copy become plain text."""
    document = page.file.src_uri

    def replaced(match: re.Match[str]) -> str:
        picture, text, link, anchor = match.groups()
        uri = place(link, document)
        if files.get_file_from_path(uri) is None:
            return text if document.startswith(COPIES) else match[0]
        relative = posixpath.relpath(uri, posixpath.dirname(document) or ".")
        return f"{picture}[{text}]({relative}{anchor or ''})"

    return LINK.sub(replaced, markdown)
