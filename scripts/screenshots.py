"""Make the pictures of the page for README and docs/page.md: `make screenshots [SHOTS=folder]`. Needs Chromium.

They show the embedded model's pictures, so they can be made anywhere. CI makes them as well, so that a page that has
changed under this script is noticed.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect
from tests.browser import PATIENCE_MS, Watched, browsing
from tests.server import Server

DOCS = Path(__file__).parents[1] / "docs" / "page"

#: The history of the service, oldest first.
PROMPTS = (
    "a city at night",
    "a pink flower on a green hill",
    "a yellow balloon at sunset",
    "a cactus in the desert at sunset",
    "a red car in a meadow at sunset",
    "a snowy forest at night",
    "a purple fish on a cyan background",
    "a blue heart on a red and white striped background",
    "a red house on a sunny day",
    "a black cat on the grass",
    "snowy mountains on a sunny day",
    "a rocket in the night sky",
    "a red mushroom on the grass at night",
)
SEED = 19

#: Prefers Inter where it is installed: what a system's own font is differs from one to the next.
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><include ignore_missing="yes">/etc/fonts/fonts.conf</include>
<match target="pattern"><test qual="any" name="family"><string>sans-serif</string></test>
<edit name="family" mode="prepend_first" binding="strong"><string>Inter</string></edit></match></fontconfig>
"""

DESK, TABLET, PHONE = (1280, 800), (820, 1060), (390, 800)

#: Whether every picture in the window has arrived.
ALL_SHOWN = """() => [...document.images].every((it) => {
    const { top, bottom } = it.getBoundingClientRect();
    return bottom < 0 || top > innerHeight || (it.complete && it.naturalWidth);
})"""


def made(page: Page, prompt: str) -> None:
    """Make a picture on the page."""
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.keyboard.press("Enter")
    expect(page.locator(".stage .pictures img").first).to_have_attribute("alt", prompt)


def create(page: Page) -> None:
    made(page, "a rocket in the night sky")
    made(page, "a red house on a sunny day")
    made(page, "a boat with red sails on the sea")
    expect(page.locator(".plan")).to_contain_text("128 × 128")


def history(page: Page) -> None:
    page.goto("#history")
    expect(page.locator(".tile img").nth(len(PROMPTS) - 1)).to_be_visible()
    page.locator(".tile").nth(2).hover()


def mask(page: Page) -> None:
    made(page, "a black cat on the grass")
    page.get_by_label("Use as input").click()
    page.get_by_role("button", name="Paint a mask").click()
    box = page.locator(".mask canvas").bounding_box()
    assert box is not None
    place = [
        (box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in ((0.3, 0.87), (0.5, 0.8), (0.72, 0.9))
    ]
    page.mouse.move(*place[0])
    page.mouse.down()
    for x, y in place[1:]:
        page.mouse.move(x, y, steps=8)
    page.mouse.up()


def models(page: Page) -> None:
    page.goto("#models")
    expect(page.get_by_role("heading", name="models.yaml")).to_be_visible()


def phone(page: Page) -> None:
    page.get_by_role("textbox").fill("a yellow star on a blue background")
    page.keyboard.press("Enter")
    expect(page.locator(".stage .pictures img")).to_be_visible()


def nothing(page: Page) -> None:
    expect(page.locator(".recent img").first).to_be_visible()


#: name: (size of the window, colours, language, what to do before the picture is taken)
SHOTS: dict[str, tuple[tuple[int, int], str, str, Callable[[Page], None]]] = {
    "welcome": (DESK, "light", "en", nothing),
    "create": (DESK, "light", "en", create),
    "create-dark": (DESK, "dark", "en", create),
    "history": (DESK, "light", "en", history),
    "mask": (DESK, "dark", "en", mask),
    "models": (TABLET, "light", "en", models),
    "phone": (PHONE, "light", "en", phone),
    "phone-dark": (PHONE, "dark", "zh-CN", phone),
}


def shoot(browser: Browser, address: str, name: str) -> Image.Image:
    """The picture of one entry of SHOTS. Raises AssertionError if the page did anything wrong."""
    (width, height), colours, language, prepare = SHOTS[name]
    window = {"viewport": {"width": width, "height": height}, "color_scheme": colours, "locale": language}
    watched = Watched(browser, address, base_url=f"{address}/", device_scale_factor=1, **window)
    watched.page.goto(f"{address}/")
    prepare(watched.page)
    while not watched.page.evaluate(ALL_SHOWN):
        watched.page.wait_for_timeout(50)
    shot = Image.open(io.BytesIO(watched.page.screenshot()))
    watched.close()
    assert watched.wrongs == []
    return shot


def main() -> int:
    """Make all of them, in the folder that is given."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    folder.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=PATIENCE_MS)
    with tempfile.TemporaryDirectory() as temporary:
        fonts = Path(temporary) / "fonts.conf"
        fonts.write_text(FONTS, encoding="utf-8")
        with Server(Path(temporary) / "data") as server, browsing(FONTCONFIG_FILE=str(fonts)) as browser:
            for prompt in PROMPTS:
                server.until(server.submit(prompt, seed=SEED))
            address = str(server.http.base_url).rstrip("/")
            for name in SHOTS:
                shoot(browser, address, name).save(folder / f"{name}.webp", quality=88, method=6)
                print(f"{folder / name}.webp", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
