"""GET /docs/errors: a page about each code of an error, from the Markdown files of docs/errors."""

import base64
from hashlib import sha256
from html import escape
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from markdown_it import MarkdownIt
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

#: A link to docs/errors, which the wheel contains.
FOLDER = Path(__file__).parent / "errors"

_STYLE = (
    "body{font:1rem/1.6 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "code,pre{font-family:ui-monospace,monospace;background:#f2f2f2;border-radius:3px}"
    "code{padding:.1em .3em}pre{padding:.8em;overflow-x:auto}pre code{padding:0}"
)

#: No script, no other file, no other host; only the style above.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(sha256(_STYLE.encode()).digest()).decode()}'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "max-age=3600",
}


@router.get("/docs/errors")
async def list_errors() -> HTMLResponse:
    """All codes, with links to their pages."""
    codes = sorted(page.stem for page in FOLDER.glob("*.md"))
    links = "\n".join(f"- [`{code}`](errors/{code})" for code in codes)
    return _response("Error codes", f"# Error codes\n\n{links}\n")


@router.get("/docs/errors/{code}")
async def show_error(code: str) -> HTMLResponse:
    """The page about one code. A link between two of the files, as `queue_full.md`, leads here, too."""
    code = code.removesuffix(".md")
    # Compared with the names of the folder, so that no path leads out of it.
    if code not in {page.stem for page in FOLDER.glob("*.md")}:
        raise HTTPException(404, "There is no page about such a code; /docs/errors lists them.")
    return _response(code, (FOLDER / f"{code}.md").read_text(encoding="utf-8"))


def _response(title: str, markdown: str) -> HTMLResponse:
    body = MarkdownIt("commonmark", {"html": False}).render(markdown)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<title>{escape(title)}</title><style>{_STYLE}</style></head>'
    )
    return HTMLResponse(f"{page}\n<body>\n{body}</body>\n</html>\n", headers=_HEADERS)
