"""The code that the page offers for OpenAI's SDK runs as it stands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

URL, KEY = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(locale="en")
    page.goto(URL)
    if KEY:
        page.get_by_label("Key", exact=True).fill(KEY)
        page.get_by_role("button", name="Use this key").click()
    page.get_by_label("Prompt", exact=True).fill("a red circle on a blue background")
    page.get_by_label("More settings").click()
    page.get_by_label("Steps").fill("5")
    page.get_by_label("Seed", exact=True).fill("7")
    page.locator(".plan").get_by_text("128 × 128").wait_for()
    page.get_by_label("Copy as code").click()
    page.get_by_role("tab", name="OpenAI").click()
    code = page.locator("#snippet").inner_text()
    browser.close()

Path("snippet-openai.py").write_text(code)
subprocess.run([sys.executable, "snippet-openai.py"], check=True, env=os.environ | {"IMAGEGEN_KEY": KEY})
assert Path("picture-0.png").read_bytes().startswith(b"\x89PNG")
