"""langchain-community's DallEAPIWrapper, which reads only URLs."""

import os
import urllib.request
from pathlib import Path

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

URL, KEY, OUT = os.environ["IMAGEGEN_URL"], os.environ["IMAGEGEN_KEY"], Path(os.environ["OUT"])

wrapper = DallEAPIWrapper(model="dall-e-3", size="128x128", api_key=KEY or "none", base_url=f"{URL}/v1")
url = wrapper.run("a red circle on a blue background")
with urllib.request.urlopen(url) as answer:
    (OUT / "circle.png").write_bytes(answer.read())

two = DallEAPIWrapper(model="dall-e-2", n=2, size="128x128", api_key=KEY or "none", base_url=f"{URL}/v1")
urls = two.run("a yellow star").split(two.separator)
assert len(urls) == 2, urls
for number, url in enumerate(urls):
    with urllib.request.urlopen(url) as answer:
        (OUT / f"star-{number}.png").write_bytes(answer.read())
print("works")
