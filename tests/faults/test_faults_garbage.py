"""A flood of refresh tokens that are none: no statement reaches the database, and no session ends."""

import base64
import random
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from callers import Caller
from fleets import Odd, StartNodes
from outsiders import Rows
from scene import Scene, StartScene

from servers.sekisho_server import RunningServer
from test_serve import wait_until

PREFIX = "sekisho_rt_"
# What a node says to the database by itself: the time, and what is new in the feed.
OF_THE_FEED = re.compile(r"SELECT (?!.*\b(sessions|users|devices|thefts|chores)\b)|BEGIN|COMMIT|ROLLBACK")


def mutated(token: str) -> str:
    """One change to a genuine token, of the text or of what it stands for."""
    body = token.removeprefix(PREFIX)
    data = bytearray(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    match random.randrange(6):
        case 0:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        case 1:
            data = data[: random.randrange(len(data))]
        case 2:
            start = random.randrange(len(data))
            data[start : start + 8] = secrets.token_bytes(8)
        case 3:
            data += secrets.token_bytes(random.randrange(1, 9))
        case 4:
            return token[: random.randrange(len(token))]
        case 5:
            return token + random.choice("=A \n.é")
    changed = PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")
    return changed if changed != token else mutated(token)


def garbage(genuine: list[str], number: int) -> Iterator[str]:
    for place in range(number):
        if place % 4:
            yield mutated(random.choice(genuine))
        else:
            yield PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(random.choice([40, 84, 130]))).decode().rstrip(
                "="
            )


def flood(node: RunningServer, tokens: Iterator[str]) -> set[int]:
    """Their answers' statuses; over one connection, which a flood of this kind is cheapest on."""
    statuses = set()
    with (
        closing(socket.create_connection(("127.0.0.1", node.port), timeout=30)) as connection,
        connection.makefile("rb") as answers,
    ):
        for token in tokens:
            body = b'{"refresh_token":"' + token.replace("\n", "\\n").encode() + b'"}'
            head = f"POST /refresh HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            statuses.add(int(answers.readline().split()[1]))
            length = 0
            while (line := answers.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            answers.read(length)
    return statuses


def no_statement(scene: Scene, statements: Callable[[], list[str]], number: int) -> None:
    """All are refused, and between the first and the last the node says nothing to the database but its feed's."""
    owners = [scene.owner(f"owner {place}") for place in range(4)]
    for owner in owners:
        scene.age(owner)
    before = [scene.rows.session(UUID(owner.session), "*") for owner in owners]
    wait_until(lambda: not _others(statements()[-3:]), within_s=10, what="the statements of the sign-ins are through")
    already = len(statements())
    genuine = [owner.refresh_token for owner in owners]
    assert flood(scene.nodes[0], garbage(genuine, number)) == {401}
    said = statements()[already:]
    assert said, "the feed's statements are counted, so others would be"
    assert _others(said) == []
    assert [scene.rows.session(UUID(owner.session), "*") for owner in owners] == before
    assert scene.decisions()["refused"] == number
    counts_when_one_is_genuine(owners[0], statements)
    for owner in owners:
        scene.goes_on(owner)
    scene.check()


def counts_when_one_is_genuine(owner: Caller, statements: Callable[[], list[str]]) -> None:
    already = len(statements())
    assert owner.refresh().status == 200
    wait_until(lambda: _others(statements()[already:]), within_s=10, what="a genuine token's statement is seen")


def _others(statements: list[str]) -> list[str]:
    return [one for one in statements if not OF_THE_FEED.match(one)]


AMOUNTS = pytest.mark.parametrize("number", [1000, pytest.param(10_000, marks=pytest.mark.long)])


@AMOUNTS
def test_garbage_makes_no_statement_on_sqlite(stage: StartScene, start_nodes: StartNodes, tmp_path: Path, number: int):
    told = tmp_path / "statements"
    nodes = start_nodes(f"sqlite:///{tmp_path / 'sekisho.db'}", [Odd({"TEST_STATEMENTS": str(told)})])
    no_statement(stage(nodes, Rows(nodes[0], None)), lambda: told.read_text().splitlines(), number)


@AMOUNTS
def test_garbage_makes_no_statement_on_postgresql(
    stage: StartScene, start_nodes: StartNodes, own_postgres, number: int
):
    url = own_postgres.create_database()
    nodes = start_nodes(url, [None])
    name = url.rpartition("/")[2]

    def statements() -> list[str]:
        entries = own_postgres.log_text().split("\n" + name + " LOG:  ")[1:]
        words = [entry.replace("\n", " ").partition(": ") for entry in entries]
        return [text for how, _, text in words if how.startswith(("execute", "statement"))]

    no_statement(stage(nodes, Rows(nodes[0], own_postgres)), statements, number)
