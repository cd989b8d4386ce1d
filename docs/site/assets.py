"""The site's pictures: pages name them as they lie in the repository, beside `docs/`, which GitHub shows too."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures in `assets/` to the site."""
    for picture in ASSETS.glob("*.jpg"):
        files.append(File.generated(config, f"assets/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let pages find them there: `../assets/` is one folder nearer."""
    return markdown.replace("../assets/", "assets/")
