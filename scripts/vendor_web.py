"""Make the vendored module of the page from npm's packages: `make vendor`. `--check` compares it with what is here.

vendored.json lists the packages with their versions, and the SHA-256 of the module. To update one, change its version
there and in licences.txt, and run this.
"""

import json
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src" / "imagegen" / "api" / "web" / "vendor"
LIST = FOLDER / "vendored.json"

#: What the page uses of the packages. The page's strict policy allows no eval, and these need none.
ENTRY = """
import htm from "htm";
import { h } from "preact";
export { Fragment, render } from "preact";
export { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
export const html = htm.bind(h);
"""


def made(listed: dict[str, object], packages: dict[str, dict[str, str]]) -> bytes:
    """The module, bundled and minified. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{name}@{package['version']}" for name, package in packages.items()]
        npm = ["npm", "install", "--silent", "--no-save", "--prefix", folder, *names, str(listed["bundler"])]
        subprocess.run(npm, check=True)
        (Path(folder) / "entry.mjs").write_text(ENTRY, encoding="utf-8")
        bundle = ["npx", "--prefix", folder, "esbuild", "entry.mjs", "--bundle", "--minify", "--format=esm"]
        options = ["--target=es2022", "--legal-comments=none"]
        code = subprocess.run([*bundle, *options], check=True, cwd=folder, stdout=subprocess.PIPE).stdout
    about = ", ".join(f"{name} {package['version']} ({package['licence']})" for name, package in packages.items())
    return f"/*! {about}; their licences: licences.txt */\n".encode() + code


def main() -> int:
    """Write the module and its hash, or with `--check` say whether they would change."""
    vendored = json.loads(LIST.read_text(encoding="utf-8"))
    for file, listed in vendored.items():
        code = made(listed, listed["packages"])
        digest = sha256(code).hexdigest()
        if "--check" in sys.argv and listed["sha256"] != digest:
            print(f"{file}: made from the packages it is {digest}, listed is {listed['sha256']}")
            return 1
        listed["sha256"] = digest
        (FOLDER / file).write_bytes(code)
    LIST.write_text(json.dumps(vendored, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
