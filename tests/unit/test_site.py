"""The documentation as a site: links, anchors, the navigation, and what scripts/docs.py makes of the pages."""

from pathlib import Path, PurePosixPath

import pytest
from scripts import docs
from scripts.docs import DOCS, ERRORS, ROOT, anchor, broken_links, faults_of_site, listed, place, with_tabs


def test_no_link_of_any_page_is_broken() -> None:
    assert list(broken_links()) == []


def test_every_page_is_in_the_navigation_once() -> None:
    found = {str(place(PurePosixPath(it.relative_to(ROOT).as_posix()))) for it in DOCS.rglob("*.md")}
    # The list of errors has their pages, and that of the decisions has theirs.
    found -= {it for it in found if it.startswith(("errors/", "decisions/0"))}
    nav = docs.nav()
    assert sorted(nav) == sorted({*nav})
    assert found <= {*nav}
    assert {*nav} - found == {"index.md", "changelog.md", "contributing.md", str(ERRORS)}


def test_every_decision_is_listed() -> None:
    text = (DOCS / "decisions" / "README.md").read_text()
    assert [it.name for it in sorted((DOCS / "decisions").glob("0*.md")) if f"({it.name})" not in text] == []


@pytest.mark.parametrize(
    ("file", "there"),
    [
        ("README.md", "index.md"),
        ("CHANGELOG.md", "changelog.md"),
        ("clients/python/README.md", "clients/python.md"),
        ("docs/errors/queue_full.md", "errors/queue_full.md"),
        ("docs/decisions/README.md", "decisions/index.md"),
        ("docs/page/create.webp", "page/create.webp"),
        ("src/imagegen/app.py", "files/src/imagegen/app.py"),
        (".github/workflows/release.yml", "files/github/workflows/release.yml"),
    ],
)
def test_a_file_has_one_place_in_the_site(file: str, there: str) -> None:
    assert place(PurePosixPath(file)) == PurePosixPath(there)


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Over HTTP", "over-http"),
        ("`global` (also read as `settings`)", "global-also-read-as-settings"),
        ("Checking a machine: imagegen doctor", "checking-a-machine-imagegen-doctor"),
        ("The [page](page.md)", "the-page"),
    ],
)
def test_anchors_are_those_of_code_hosts(heading: str, expected: str) -> None:
    assert anchor(heading) == expected


def test_a_broken_link_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "# A\n\n```\n[no link](x.md)\n```\n`[code](x.md)` [b](b.md#one) [c](c.md)\n"
    )
    (tmp_path / "docs" / "b.md").write_text("# B\n\n## Two\n\n[out](https://example.com/x.md), [here](#two)\n")
    (tmp_path / "README.md").write_text("[b](docs/b.md#two)\n")
    assert list(broken_links(tmp_path)) == [
        "docs/a.md:6: b.md#one: the page has no such heading",
        "docs/a.md:6: c.md: there is no such file",
    ]


def test_headings_between_the_marks_become_tabs() -> None:
    text = (
        "# T\n\n<!-- tabs -->\n\n### curl\n\n```bash\n# no heading\ncurl\n```\n\n### Python\n\ntext\n\n<!-- end -->\n"
    )
    assert with_tabs(text) == (
        '# T\n\n\n=== "curl"\n\n    ```bash\n    # no heading\n    curl\n    ```\n\n=== "Python"\n\n    text\n\n'
    )


def test_a_page_of_the_site_links_to_where_its_targets_are() -> None:
    page = DOCS / "decisions" / "0002-owners-instead-of-locks.md"
    assert "[architecture](../architecture.md)" in docs.staged(page)
    assert "(quickstart.md)" not in docs.staged(page)
    readme = docs.staged(ROOT / "README.md")
    assert "](models.md)" in readme
    assert "](docs/" not in readme
    contributing = docs.staged(ROOT / "CONTRIBUTING.md")
    assert "(files/src/imagegen/catalog/fields.py)" in contributing
    there = docs.staged(ROOT / "CONTRIBUTING.md", "https://example.com/tree/v1/")
    assert "(https://example.com/tree/v1/src/imagegen/catalog/fields.py)" in there


def test_a_folder_that_a_page_links_to_becomes_a_list_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, site = tmp_path / "root", tmp_path / "site"
    for name, text in {
        "README.md": "[pages](docs/errors/), [chart](deploy/chart)\n",
        "docs/errors/oops.md": "# `oops`\n\nHTTP status 500.\n\nIt failed.\n",
        "deploy/chart/values.yaml": "a: 1\n",
        "deploy/chart/templates/pod.yaml": "b: 1\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(docs, "ROOT", root)
    monkeypatch.setattr(docs, "DOCS", root / "docs")
    docs.stage(site)
    assert (site / "index.md").read_text() == "[pages](errors/index.md), [chart](files/deploy/chart/index.md)\n"
    listed = (site / "files" / "deploy" / "chart" / "index.md").read_text()
    assert listed.splitlines()[2:] == ["- [templates/pod.yaml](templates/pod.yaml)", "- [values.yaml](values.yaml)"]
    assert (site / "files" / "deploy" / "chart" / "templates" / "pod.yaml").is_file()


def test_the_list_of_errors_has_each_code_with_its_meaning() -> None:
    rows = [line for line in docs.errors_page().splitlines() if line.startswith("| [`")]
    assert len(rows) == len(list((DOCS / "errors").glob("*.md")))
    assert "| [`queue_full`](queue_full.md) | 503 | So many tasks wait that no more are accepted |" in rows
    assert next(row for row in rows if "storage_full" in row).startswith(
        "| [`storage_full`](storage_full.md) | 507, failed task | The disk is full, or nearly full |"
    )


def test_the_newest_tag_is_the_latest_version() -> None:
    assert [(it["version"], it["aliases"]) for it in listed(["dev", "v0.9.0", "v0.10.0", "v0.11.0-rc1"])] == [
        ("v0.11.0-rc1", []),
        ("v0.10.0", ["latest"]),
        ("v0.9.0", []),
        ("dev", []),
    ]
    assert listed(["dev"])[0]["aliases"] == ["latest"]


def test_a_built_page_that_loads_from_another_host_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://fonts.example/x.css"><a href="b.html#no">b</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="yes">B</h1><a href="c.html">c</a><a href="https://example.com">out</a>')
    assert list(faults_of_site(tmp_path)) == [
        "a.html: loads https://fonts.example/x.css",
        "a.html: b.html#no: there is no such place",
        "b.html: c.html: there is no such file",
    ]
