"""The site's pictures: pages name them as they lie in the repository, beside `docs/`, which GitHub shows too."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ("assets/*.jpg", "studies/results/*/*/*.png")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures in `assets/` and of studies to the site."""
    for picture in (path for pattern in PICTURES for path in sorted(ROOT.glob(pattern))):
        files.append(File.generated(config, picture.relative_to(ROOT).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let pages find them there: one folder nearer."""
    return markdown.replace("../assets/", "assets/").replace("../studies/results/", "studies/results/")
