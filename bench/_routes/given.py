"""What each server is told: whom it trusts, and how many sessions have ended. Not every benchmark tells all of it."""

import json
import os
import random
import time
from array import array
from pathlib import Path
from uuid import uuid4

from sekisho import Keyring, Verifier
from sekisho.tokens.revoked import Revocation, RevokedSessions, key_of

_given = json.loads(Path(os.environ["BENCH_GIVEN"]).read_text())
ISSUER: str = _given.get("issuer", "")
AUDIENCE: str = _given.get("audience", "")
SECRET: str = _given.get("secret", "")  # of the peers' HS256
SUBJECTS: list[str] = _given.get("subjects", [])
REDIS_URL: str = _given["redis_url"]
NOBODY: str = _given["nobody"]  # whom the bare routes greet

_RECENT = 1000
_MILLION = 1_000_000
_LIVES_S = 900


def verifier(*, packed: bool = False) -> Verifier:
    """With a thousand ended sessions as they came from the feed; or with a million more, packed as they are then.

    Its keys stand here instead of in a URL: what a check does is the same while the feed is fresh.
    """
    now = int(time.time())
    revoked = RevokedSessions()
    if packed:
        many = (key_of(str(uuid4()), now + random.randint(1, _LIVES_S)) for _ in range(_MILLION))
        revoked.pack(now, array("q", many))
    revoked.add(Revocation(str(uuid4()), now + _LIVES_S) for _ in range(_RECENT))
    revoked.add([Revocation(_given["ended_session"], now + _LIVES_S)])
    return Verifier(issuer=ISSUER, audience=AUDIENCE, keys=Keyring.from_jwks(_given["jwks"]), revoked=revoked)
