"""A service somewhere else that lets people in by their access tokens: a ``Verifier`` in a process of its own.

    python checkpoint.py PORT VERIFIER CONSTANTS      what the verifier is given, and constants of verify/keyset.py, as JSON

Each line that is sent to it is an access token, and the line it answers is what a service would say: 200, or 401 or 503
with the error's code. For a line with a JSON object it sets constants of verify/keyset.py (times, so that a test need
not wait for minutes) and answers with a report of what its verifier knows.
"""

import asyncio
import json
import sys
from typing import Any

from sekisho.errors import TokenError, TryLater
from sekisho.verify import Verifier, keyset


def scale(constants: dict[str, float]) -> None:
    for name, value in constants.items():
        assert hasattr(keyset, name), name
        setattr(keyset, name, value)


def checked(verifier: Verifier, token: str) -> str:
    try:
        verifier.verify(token)
    except TokenError as error:
        return f"401 {error.code}"
    except TryLater as error:
        return f"503 {error.code}"
    return "200"


def report(verifier: Verifier) -> dict[str, Any]:
    held, _ = verifier.parts
    return {
        "kids": [key.kid for key in held.in_use[0].keys],
        "state": verifier.state,
        "refused": dict(verifier.refused),
        "reconnects": verifier.reconnects,
    }


async def serve(port: int, verifier: Verifier) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readline()).decode().strip():
            if line.startswith("{"):
                scale(json.loads(line))
                answer = json.dumps(report(verifier))
            else:
                answer = checked(verifier, line)
            writer.write(answer.encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    scale(json.loads(sys.argv[3]))
    made = Verifier(**json.loads(sys.argv[2]))
    made.start()
    asyncio.run(serve(int(sys.argv[1]), made))
