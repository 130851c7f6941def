"""Node's fast-jwt, in a process that stays alive and runs a round when it is asked for one."""

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _peers import AUDIENCE, ISSUER, TYP, Claims, KeyForms

VERSION = "6.3.6"
NAME = "fast-jwt (Node)"
CACHED = "fast-jwt (Node), its cache"


class FastJwt:
    def __init__(self, node: str, package: Path) -> None:
        script = Path(__file__).with_name("_fast_jwt.cjs")
        self._process = subprocess.Popen(
            [node, "--expose-gc", script, package], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, question: str, **details: object) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps({"ask": question, **details}), file=stdin, flush=True)
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    def verifiers(
        self, key: KeyForms, tokens: Sequence[str], before: Sequence[str]
    ) -> Mapping[str, Callable[[str], object]]:
        """Prepares one without and one with its cache; what comes back verifies one token, for proving it sound."""
        expected = {"issuer": ISSUER, "audience": AUDIENCE}
        self._ask("verifiers", alg=key.alg, **_spelt(key, key.public), **expected, tokens=tokens, before=before)
        return {
            NAME: lambda token: self._once(key, "verify", token),
            CACHED: lambda token: self._once(key, "verify cached", token),
        }

    def signer(self, key: KeyForms, claims: Sequence[Claims]) -> Callable[[Claims], str]:
        header = {"typ": TYP, "kid": key.kid}
        self._ask("signer", alg=key.alg, **_spelt(key, key.private), header=header, claims=claims)
        return lambda one: self._once(key, "sign", one)

    def _once(self, key: KeyForms, name: str, item: object) -> Any:
        answer = self._ask("once", alg=key.alg, name=name, item=item)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer["result"]

    def round(self, key: KeyForms, name: str) -> Callable[[], float]:
        """Runs a round of what was prepared as ``verify``, ``verify cached`` or ``sign``."""
        return lambda: float(self._ask("round", alg=key.alg, name=name)["us"])

    def close(self) -> None:
        self._process.communicate()  # the end of its input is its end


def _spelt(key: KeyForms, form: bytes) -> dict[str, object]:
    is_secret = key.alg == "HS256"
    return {"isSecret": is_secret, "key": base64.b64encode(form).decode() if is_secret else form.decode()}


def start_fast_jwt() -> FastJwt | None:
    """Installs it into the virtual environment at first. Says in one line why it is left out, if it is."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        print("Without fast-jwt: node and npm are not both on PATH.")
        return None
    if sys.prefix == sys.base_prefix:
        print("Without fast-jwt: there is no virtual environment to install it into.")
        return None
    folder = Path(sys.prefix) / "fast-jwt"
    package = folder / "node_modules" / "fast-jwt"
    if _installed(package) != VERSION:
        options = [
            "--silent",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--fetch-retries=0",
            "--prefix",
            str(folder),
        ]
        folder.mkdir(exist_ok=True)
        done = subprocess.run([npm, "install", *options, f"fast-jwt@{VERSION}"], capture_output=True, check=False)
        if done.returncode:
            print("Without fast-jwt: npm could not install it.")
            return None
    node_version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"fast-jwt {VERSION} on Node {node_version}")
    return FastJwt(node, package)


def _installed(package: Path) -> str | None:
    about = package / "package.json"
    return json.loads(about.read_text(encoding="utf-8"))["version"] if about.exists() else None
