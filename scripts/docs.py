"""The documentation as a site, built with Zensical: `make docs`.

python -m scripts.docs                    check the links, build this tree into build/docs/versions, check the result
python -m scripts.docs --tags             the same for each tag of git that has this script and is not built yet
python -m scripts.docs --source URL       links to files of the repository lead to URL/FILE instead of to copies;
                                          `{version}` in URL becomes the name of the version

The pages are those of docs/, and the files that they link to: README.md is the first page, other Markdown files outside
docs/ are pages as well, and all other files are copied; of a folder there is a list. A page is plain Markdown that code
hosts show.
Two things are made here: the list of the error codes, and tabs: of the headings from `<!-- tabs -->` to `<!-- end -->`.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIG = ROOT / "zensical.toml"

#: All files of the build.
WORK = ROOT / "build" / "docs"
#: A folder for each version, and versions.json.
VERSIONS = WORK / "versions"

#: Made here: not in docs/errors, because the service takes each file of that folder for a code.
ERRORS = PurePosixPath("errors/index.md")

#: A link or a picture of Markdown: its text, and its target without a title.
_LINK = re.compile(r"(?P<head>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()(?P<target>[^()\s]+)(?=[)\s])")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"^(#{1,6}) +(.*?)(?: +#+)?$")


class Link(NamedTuple):
    """A link of a page of the repository."""

    page: Path
    line: int
    target: str


# -- Markdown ----------------------------------------------------------------------------------------------------------


def prose(text: str) -> Iterator[tuple[int, str, bool]]:
    """The lines of a page with their numbers, and whether each is outside of all blocks of code."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        found = _FENCE.match(line)
        if not fence:
            yield number, line, found is None
            fence = found[1] if found else ""
        else:
            yield number, line, False
            if found and found[1].startswith(fence) and not line.strip(" `~"):
                fence = ""


def links(page: Path) -> Iterator[Link]:
    """The links of a page that lead to files of the repository, or to a place of the page itself."""
    for number, line, outside in prose(page.read_text(encoding="utf-8")):
        for found in _LINK.finditer(_without_code(line)) if outside else ():
            if not _is_elsewhere(found["target"]):
                yield Link(page, number, found["target"])


def _without_code(line: str) -> str:
    """The line with spaces in place of inline code, but for the text of a link, which may be code."""
    return re.sub(r"(`+)(?!`)(.*?)(?<!`)\1(?!`)", lambda found: " " * len(found[0]), line)


def _is_elsewhere(target: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE))


def anchors(text: str) -> list[str]:
    """The anchors of the headings of a page, as code hosts and pymdownx.slugs make them."""
    found = (_HEADING.match(line) for _, line, outside in prose(text) if outside)
    return [anchor(heading[2]) for heading in found if heading]


def anchor(heading: str) -> str:
    """The anchor of a heading: `## Over HTTP` has `over-http`."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


# -- pages -------------------------------------------------------------------------------------------------------------


def place(path: PurePosixPath) -> PurePosixPath:
    """Where a file of the repository is in the site: a page, or a copy of a file below `files`."""
    if path.parts[0] == "docs":
        path = PurePosixPath(*path.parts[1:])
        return path.with_name("index.md") if path.name == "README.md" else path
    if path.suffix != ".md":
        # Files whose names begin with a dot are not a part of a site.
        return PurePosixPath("files", *(part.lstrip(".") for part in path.parts))
    if path.name == "README.md":
        return path.parent.with_suffix(".md") if path.parent.parts else PurePosixPath("index.md")
    return path.with_name(path.name.lower())


def pages(root: Path = ROOT) -> list[Path]:
    """All pages: README.md, those of docs/, and the Markdown files that they link to."""
    found: dict[Path, None] = {}
    new = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    while new:
        found |= dict.fromkeys(new)
        targets = [target for page in new for link in links(page) if (target := _file(link)) is not None]
        new = [it for it in dict.fromkeys(targets) if it.suffix == ".md" and it.is_file() and it not in found]
    return list(found)


def _file(link: Link) -> Path | None:
    """The file or folder that a link leads to; None: a place of its own page."""
    path = unquote(link.target.partition("#")[0])
    return Path(normpath(link.page.parent / path)) if path else None


def broken_links(root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the links of the pages: `page:line: why`."""
    for page in pages(root):
        for link in links(page):
            if why := _fault(link, root):
                yield f"{page.relative_to(root)}:{link.line}: {link.target}: {why}"


def _fault(link: Link, root: Path) -> str | None:
    file, (_, _, part) = _file(link) or link.page, link.target.partition("#")
    if not file.is_relative_to(root) or not file.exists():
        return "there is no such file"
    if file == root or (file.is_dir() and file.is_relative_to(root / "docs") and _page_of(file) is None):
        return "the folder is no page"
    if part and file.suffix == ".md" and part not in anchors(file.read_text(encoding="utf-8")):
        return "the page has no such heading"
    return None


def nav(config: Path = CONFIG) -> list[str]:
    """The pages of the navigation, in order."""

    def of(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for inner in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            yield from of(inner)

    return list(of(tomllib.loads(config.read_text(encoding="utf-8"))["project"]["nav"]))


# -- staging -----------------------------------------------------------------------------------------------------------


def stage(into: Path, source: str | None = None) -> None:
    """Write the pages, and the files that they link to, into an empty folder. `source`: as in `--source`."""
    for page in pages(ROOT):
        here = place(_name(page))
        _write(into / here, staged(page, source))
        for file in filter(None, map(_file, links(page))):
            if source is None or _is_shown(file):
                _stage_target(file, into)
    _write(into / ERRORS, errors_page())


def _stage_target(file: Path, into: Path) -> None:
    """Copy a file or a folder that a page links to, unless it is a page itself."""
    if file.suffix == ".md" or (file.is_dir() and _page_of(file) is not None):
        return
    inner = [it for it in sorted(file.rglob("*")) if it.is_file() and it.suffix != ".md"] if file.is_dir() else [file]
    for it in inner:
        _copy(it, into / place(_name(it)))
    if file.is_dir():
        rows = [f"- [{it.relative_to(file)}]({relpath(place(_name(it)), place(_name(file)))})" for it in inner]
        _write(into / place(_name(file)) / "index.md", f"# {_name(file)}\n\n" + "\n".join(rows) + "\n")


def staged(page: Path, source: str | None = None) -> str:
    """A page as Zensical reads it: with tabs, and with links that lead to where the files are in the site."""

    def led(found: re.Match[str]) -> str:
        return found["head"] + _target(page, found["target"], source)

    # Markdown inside of an element of HTML is read only if the element says so.
    text = page.read_text(encoding="utf-8").replace("\n<details>\n", "\n<details markdown>\n")
    return with_tabs("\n".join(_LINK.sub(led, line) if outside else line for _, line, outside in prose(text)))


def _target(page: Path, target: str, source: str | None) -> str:
    link = Link(page, 0, target)
    file = None if _is_elsewhere(target) else _file(link)
    if file is None:
        return target
    mark, part = target.partition("#")[1:]
    if source is not None and not _is_shown(file):
        return f"{source.rstrip('/')}/{_name(file)}"
    return relpath(_there(file), place(_name(page)).parent) + mark + part


def _there(file: Path) -> PurePosixPath:
    """Where a link to a file or a folder leads."""
    if not file.is_dir():
        return place(_name(file))
    page = _page_of(file)
    return place(_name(file)) / "index.md" if page is None else place(_name(page))


def _page_of(folder: Path) -> Path | None:
    """The page that stands for a folder; None: there is none."""
    page = folder / "README.md"
    return page if page.is_file() or folder == DOCS / "errors" else None


def _is_shown(file: Path) -> bool:
    """Whether the site has the file in any case: a page, a folder with a page, or a file of docs/."""
    return file.suffix == ".md" or file.is_relative_to(DOCS) or (file.is_dir() and _page_of(file) is not None)


def _name(file: Path) -> PurePosixPath:
    return PurePosixPath(file.relative_to(ROOT).as_posix())


def with_tabs(text: str) -> str:
    """The text with a tab for each heading between `<!-- tabs -->` and `<!-- end -->`."""
    lines, inside = [], False
    for _, line, outside in prose(text):
        heading = _HEADING.match(line) if outside else None
        if line == "<!-- tabs -->":
            inside = True
        elif inside and line == "<!-- end -->":
            inside = False
        elif inside and heading:
            lines.append(f'=== "{heading[2]}"')
        else:
            lines.append(f"    {line}" if inside and line else line)
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """The list of all codes, each with the first sentence of its page."""
    rows = []
    for page in sorted((DOCS / "errors").glob("*.md")):
        _, status, first = page.read_text(encoding="utf-8").split("\n\n")[:3]
        where = status.removesuffix(".").replace("HTTP status ", "").replace("Code of a f", "f").split(". ")
        rows.append(f"| [`{page.stem}`]({page.name}) | {', '.join(where)} | {_sentence(first)} |")
    head = (
        "# Errors\n\nEach error has a stable code, and each code a page: what it means, why it happens, what to do.\n"
    )
    more = "[HTTP API](../api.md#errors) has the form of an error.\n\n| code | status | meaning |\n|---|---|---|\n"
    return f"{head}{more}" + "\n".join(rows) + "\n"


def _sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].removesuffix(".")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


# -- building ----------------------------------------------------------------------------------------------------------


def build(version: str, source: str | None, into: Path) -> None:
    """Build this tree into the folder `into / version`. Raises CalledProcessError."""
    for folder in ("pages", "site"):
        shutil.rmtree(WORK / folder, ignore_errors=True)
    stage(WORK / "pages", source)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=True)
    shutil.rmtree(into / version, ignore_errors=True)
    shutil.move(WORK / "site", into / version)


def build_tags(source: str | None, into: Path) -> None:
    """Build each tag that has this script, with the script of that tag, unless its version is there already."""
    for tag in _git("tag", "--list").split():
        if (into / tag).exists() or not _git("ls-tree", tag, "scripts/docs.py"):
            continue
        with TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", tag], cwd=ROOT, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            command = [sys.executable, "-m", "scripts.docs", "--name", tag, "--into", str(into.absolute())]
            subprocess.run([*command, *(["--source", source] if source else [])], cwd=folder, check=True)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
    return done.stdout.strip()


def version_here() -> str:
    """The tag of this commit; `dev`: it has none, or this is no repository."""
    return _git("tag", "--points-at", "HEAD").partition("\n")[0] or "dev"


def listed(names: Iterable[str]) -> list[Mapping[str, Any]]:
    """versions.json, in the form of mike, which the site reads: tags, the newest first, then others.

    The newest tag without a suffix such as `-rc1` is `latest`: the other versions show a warning.
    """

    def newest_first(name: str) -> tuple[bool, list[int], bool, str]:
        numbers = re.match(r"v?(\d+(?:\.\d+)*)(.*)", name)
        if not numbers:
            return (False, [], False, name)
        return (True, [int(it) for it in numbers[1].split(".")], not numbers[2], name)

    ordered = sorted(names, key=newest_first, reverse=True)
    latest = next((it for it in ordered if re.fullmatch(r"v?\d+(\.\d+)*", it)), ordered[0] if ordered else None)
    return [{"version": it, "title": it, "aliases": ["latest"] if it == latest else []} for it in ordered]


def write_index(into: Path) -> None:
    """Write versions.json, and a page that leads to the newest version."""
    versions = listed(it.name for it in into.iterdir() if (it / "index.html").is_file())
    _write(into / "versions.json", json.dumps(versions, indent=1) + "\n")
    newest = next(it["version"] for it in versions if it["aliases"])
    _write(
        into / "index.html",
        f'<!doctype html><meta charset="utf-8"><title>imagegen</title>'
        f'<meta http-equiv="refresh" content="0; url={newest}/index.html">'
        f'<a href="{newest}/index.html">imagegen {newest}</a>\n',
    )


class _References(HTMLParser):
    """What a page loads, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loaded.append(found.get("href", ""))


def faults_of_site(site: Path) -> Iterator[str]:
    """What is wrong with a built version: a file of another host that it loads, a link that leads nowhere."""
    read: dict[Path, _References] = {}
    for page in sorted(site.rglob("*.html")):
        read[page] = _References()
        read[page].feed(page.read_text(encoding="utf-8"))
    for page, references in read.items():
        if page.name == "404.html":  # its links begin at the root of the host
            continue
        name = page.relative_to(site)
        yield from (
            f"{name}: loads {it}" for it in references.loaded if _is_elsewhere(it) and not it.startswith("data:")
        )
        for link in references.links:
            path, _, part = unquote(link).partition("#")
            target = Path(normpath(page.parent / path.partition("?")[0])) if path else page
            target = target / "index.html" if target.is_dir() else target
            if _is_elsewhere(link):
                continue
            if not target.exists():
                yield f"{name}: {link}: there is no such file"
            elif part and target in read and part not in read[target].ids:
                yield f"{name}: {link}: there is no such place"


def main() -> int:
    """0, or 1 if a link is broken."""
    parser = argparse.ArgumentParser(prog="python -m scripts.docs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", default=version_here(), help="the name of the version; default: its tag, or dev")
    parser.add_argument("--into", type=Path, default=VERSIONS, help="the folder of the versions")
    parser.add_argument("--source", metavar="URL", help="where the files of this version can be read")
    parser.add_argument("--tags", action="store_true", help="build all tags")
    given = parser.parse_args()
    if given.tags:
        build_tags(given.source, given.into)
    else:
        faults = list(broken_links())
        if not faults:
            source = given.source and given.source.replace("{version}", given.name)
            build(given.name, source, given.into)
            faults = list(faults_of_site(given.into / given.name))
        if faults:
            print(*faults, sep="\n", file=sys.stderr)
            return 1
    write_index(given.into)
    print(f"The documentation is in {given.into}; `python3 -m http.server -d {given.into}` shows it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
