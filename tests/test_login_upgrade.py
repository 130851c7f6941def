"""The upgrade of a stored hash at login is a courtesy: it happens once, and never costs anyone their login."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import bcrypt
import pytest
from sqlalchemy import text

from sekisho.passwords import CHEAPEST, PasswordHasher
from sekisho.services.caller import Caller
from sekisho.web import Sekisho, Settings
from step_by_step import bare

EMAIL, PASSWORD = "alice@example.com", "a gate on the old road"
CALLER = Caller(address="192.0.2.1", user_agent="test")


@asynccontextmanager
async def started(folder: Path, **settings: object) -> AsyncIterator[Sekisho]:
    sekisho = Sekisho(
        Settings(database_url=f"sqlite:///{folder}/sekisho.db", keys=f"file:{folder}/keys.json", **settings)
    )
    async with sekisho.running():
        yield sekisho


@pytest.fixture(autouse=True)
def _keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sekisho.tokens import KeySet

    monkeypatch.chdir(tmp_path)
    keys = tmp_path / "keys.json"
    keys.touch(mode=0o600)
    keys.write_bytes(KeySet.generate("HS256", now=0).to_json())


async def stored_hash(sekisho: Sekisho) -> str:
    async with bare(sekisho.database) as connection:
        return (await connection.execute(text("SELECT password_hash FROM users"))).scalar_one()


async def store_hash(sekisho: Sekisho, password_hash: str) -> None:
    async with bare(sekisho.database) as connection:
        await connection.execute(text("UPDATE users SET password_hash = :hash"), {"hash": password_hash})


async def sign_up(sekisho: Sekisho, password: str = PASSWORD) -> None:
    await sekisho.flows.sign_up.by_operator(email=EMAIL, password=password, roles=())


async def login(sekisho: Sekisho, password: str = PASSWORD) -> None:
    await sekisho.flows.login(email=EMAIL, password=password, caller=CALLER, carrier=sekisho.flows.mint)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "old",
    [
        PasswordHasher(CHEAPEST).hash(PASSWORD),
        bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode(),
    ],
    ids=["weaker argon2id", "imported bcrypt"],
)
async def test_fifty_logins_at_once_upgrade_a_hash_once(tmp_path: Path, old: str) -> None:
    async with started(tmp_path, max_sessions=100) as sekisho:
        await sign_up(sekisho)
        await store_hash(sekisho, old)
        await asyncio.gather(*(login(sekisho) for _ in range(50)))
        upgraded = await stored_hash(sekisho)
        assert upgraded.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        await login(sekisho)
        assert await stored_hash(sekisho) == upgraded
        assert (
            sekisho.registry.get_sample_value("sekisho_events_total", {"event": "password_rehashed", "outcome": "ok"})
            == 1
        )


@pytest.mark.anyio
async def test_a_long_password_outlives_the_change_to_bcrypt(tmp_path: Path) -> None:
    long = "a gate on the old road, and then another, and another, until the road ends at last"
    async with started(tmp_path) as sekisho:
        await sign_up(sekisho, long)
        before = await stored_hash(sekisho)
    async with started(tmp_path, password_hash="bcrypt") as sekisho:
        await login(sekisho, long)
        assert await stored_hash(sekisho) == before


@pytest.mark.anyio
async def test_an_application_may_be_started_again(tmp_path: Path) -> None:
    sekisho = Sekisho(Settings(database_url=f"sqlite:///{tmp_path}/sekisho.db", keys=f"file:{tmp_path}/keys.json"))
    async with sekisho.running():
        await sign_up(sekisho)
    async with sekisho.running():
        await login(sekisho)
