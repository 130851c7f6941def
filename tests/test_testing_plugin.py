"""The pytest plugin for applications: what its users' tokens are worth, and that nothing of it stays."""

import asyncio
import gc
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sekisho.errors import (
    FeedLost,
    FeedStarting,
    KeyRefused,
    MustAsk,
    TokenExpired,
    TokenKeyUnknown,
    TokenRevoked,
    TokenSignatureInvalid,
)
from sekisho.testing import SekishoUsers, _NoRemote
from sekisho.tokens import KeySet, access
from sekisho.tokens.keyring import Keyring
from sekisho.tokens.revoked import Revocation, RevokedSessions
from sekisho.verify import Verifier, verifier
from sekisho.verify.guard import Guard
from sekisho.verify.remote import Remote

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
ISSUER = "https://auth.example.com"
KEYS = KeySet.generate("EdDSA", now=1)
SHARED = KeySet.generate("HS256", now=1)

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def no_other_verifiers(monkeypatch):
    """Those that other test files of this process have made."""
    monkeypatch.setattr("sekisho.verify.verifier.verifiers", type(verifier.verifiers)())
    monkeypatch.setattr("sekisho.testing.verifiers", verifier.verifiers)


CONNECTED = []


def look(event, args):
    """An event loop opens sockets of its own to itself; a name that is looked up or a connection is something else."""
    # A proxy or a server that other tests of this process share goes on in a thread of its own.
    ours = threading.current_thread().name.startswith(("MainThread", "sekisho", "asyncio", "AnyIO"))
    if ours and event in {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"}:
        CONNECTED.append((event, args))


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(look)  # for good: Python knows no way to take one off


@pytest.fixture(autouse=True)
def no_network_and_no_thread(hook):
    del CONNECTED[:]
    yield
    assert not CONNECTED
    assert not [thread for thread in threading.enumerate() if thread.name == "sekisho-verifier"]


NO_COOKIE = ("GET", lambda _name: [])  # a guard's further arguments, where no cookie counts


def following(**changed):
    """A verifier as in examples/guarded.py."""
    urls = {"jwks_url": f"{ISSUER}/jwks", "revocations_url": f"{ISSUER}/revocations", "credential": "secret"}
    return Verifier(**({"issuer": ISSUER, "audience": ISSUER} | urls | changed))


def alone(**changed):
    return Verifier(**({"issuer": ISSUER, "audience": ISSUER, "keys": KEYS.keyring} | changed))


@pytest.fixture
def app():
    return following()


@pytest.fixture(params=[following, alone], ids=["following", "alone"])
def any_app(request):
    return request.param()


def own_token(key_set=KEYS, **changed):
    """As the application's real issuer gives it."""
    now = int(time.time())
    named = {"issuer": ISSUER, "audience": ISSUER, "subject": "user-1", "session_id": "session-1"}
    return access.issue(key_set.active("sign"), **(named | {"issued_at": now, "expires_at": now + 600} | changed))


# --- users ---------------------------------------------------------------------------------------------------------


def test_the_verifier_accepts_a_user(any_app, sekisho_user):
    user = sekisho_user()
    for _ in range(2):  # the second time from memory
        assert any_app.verify(user.token) == user.claims
    assert user.headers == {"Authorization": f"Bearer {user.token}"}


def test_claims_are_those_that_were_asked_for(any_app, sekisho_user):
    claims = any_app.verify(sekisho_user(sub="alice", roles=("admin", "clerk"), session_id="s-1").token)
    assert (claims.sub, claims.roles, claims.sid) == ("alice", ("admin", "clerk"), "s-1")


def test_two_users_are_two_people_in_two_sessions(app, sekisho_user):
    one, two = sekisho_user(), sekisho_user()
    assert one.claims.sub != two.claims.sub
    assert one.claims.sid != two.claims.sid


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"issued_at": 1000}, (1000, 1900)),
        ({"expires_at": 2000}, (1100, 2000)),
        ({"issued_at": 1500, "expires_at": 2000}, (1500, 2000)),
    ],
)
def test_times_can_be_told(sekisho_user, times, expected):
    asked = alone(clock=lambda: 1600)
    claims = asked.verify(sekisho_user(**times).token)
    assert (claims.iat, claims.exp) == expected


def test_a_short_lifetime_of_the_application_is_kept_to(sekisho_user):
    asked = following(max_lifetime_s=60)
    assert asked.verify(sekisho_user().token).exp <= time.time() + 60


def test_the_applications_clock_counts(sekisho_user):
    asked = following(clock=lambda: 5_000_000)
    assert asked.verify(sekisho_user().token).iat == 5_000_000


@pytest.mark.parametrize(
    ("variant", "error"), [("expired", TokenExpired), ("forged", TokenSignatureInvalid), ("revoked", TokenRevoked)]
)
def test_variants_are_refused(any_app, sekisho_user, variant, error):
    good = sekisho_user(sub="alice")
    user = getattr(sekisho_user, variant)(sub="alice")
    with pytest.raises(error):
        any_app.verify(user.token)
    assert user.claims.sub == "alice"
    assert any_app.verify(good.token)


def test_expired_is_expired_with_the_longest_leeway(sekisho_user):
    asked = following(leeway_s=60)
    with pytest.raises(TokenExpired):
        asked.verify(sekisho_user.expired().token)


def test_who_logged_out_is_refused_everywhere(sekisho_user):
    apps = [following(), alone(), following(when_lost="ask")]
    user, other_session = sekisho_user(sub="alice"), sekisho_user(sub="alice")
    same_session = sekisho_user(session_id=user.claims.sid)
    for app in apps:
        assert app.verify(user.token)
    user.log_out()
    for app in apps:
        for who in (user, same_session):
            with pytest.raises(TokenRevoked):
                app.verify(who.token)
        assert app.verify(other_session.token)


def test_a_token_is_not_shown(app, sekisho_user):
    user = sekisho_user()
    assert user.token not in repr(user)


# --- the application's own tokens go on ----------------------------------------------------------------------------


def test_own_keys_count_beside_the_tests(sekisho_user):
    app = alone(revoked=RevokedSessions([Revocation("ended", 2**39)]))
    assert app.verify(own_token())
    with pytest.raises(TokenRevoked):
        app.verify(own_token(session_id="ended"))


def test_keys_that_are_replaced_meanwhile_leave_the_tests_in_place_and_stay_afterwards():
    app, users = alone(), new_users()
    newer = KeySet.generate("EdDSA", now=2)
    with users.at_the_verifiers():
        user = users()
        app.replace_keys(newer.keyring)
        assert app.verify(user.token)
        assert app.verify(own_token(newer))
        with pytest.raises(TokenKeyUnknown):
            app.verify(own_token())
    assert app.verify(own_token(newer))


def test_a_shared_secret_is_refused_as_ever(any_app, sekisho_user):
    with pytest.raises(KeyRefused):
        any_app.replace_keys(SHARED.keyring)
    issuers_own = Verifier(issuer=ISSUER, audience=ISSUER, keys=Keyring([]), allow_shared_secret=True)
    issuers_own.replace_keys(SHARED.keyring)
    assert issuers_own.verify(own_token(SHARED))
    assert issuers_own.verify(sekisho_user().token)


def test_a_key_that_is_withdrawn_meanwhile_is_withdrawn_for_good():
    app, users = alone(), new_users()
    with users.at_the_verifiers():
        app.withdraw_key(KEYS.active("sign").kid)
        with pytest.raises(TokenRevoked):
            app.verify(own_token())
        assert app.verify(users().token)
    with pytest.raises(TokenRevoked):
        app.verify(own_token())


def test_sessions_that_the_server_in_this_process_ends_meanwhile_have_ended():
    revoked = RevokedSessions()
    app, users = alone(revoked=revoked), new_users()
    with users.at_the_verifiers():
        user = users()
        assert app.verify(user.token)
        revoked.add([Revocation(user.claims.sid, 2**39)])
        with pytest.raises(TokenRevoked):
            app.verify(user.token)
        users().log_out()
    assert len(revoked) == 1  # the test's own are not written into what the server reads


# --- the feed ------------------------------------------------------------------------------------------------------


def test_nothing_is_followed(app, sekisho_user):
    app.start()
    assert app.wait(0.0)
    assert (app.state, app.age_s, app.entries, app.reconnects) == ("fresh", 0, 0, 0)
    app.close()
    assert app.verify(sekisho_user().token)
    with pytest.raises(TokenKeyUnknown):
        app.verify(own_token())  # for which a verifier asks for new keys


def test_one_that_follows_no_feed_has_no_state(sekisho_user):
    keys_alone = Verifier(issuer=ISSUER, audience=ISSUER, jwks_url=f"{ISSUER}/jwks")
    assert (keys_alone.state, keys_alone.age_s, alone().state) == (None, None, None)
    other = following()
    sekisho_user.starting()
    assert other.state == "starting"
    assert keys_alone.state is None
    assert keys_alone.wait(0.0)
    assert keys_alone.verify(sekisho_user().token)


@pytest.mark.parametrize(("policy", "error"), [("refuse", FeedLost), ("ask", MustAsk), ("allow", None)])
def test_when_the_feed_is_lost_the_policy_counts(sekisho_user, policy, error):
    app, user = following(when_lost=policy), sekisho_user
    known = user().token
    assert app.verify(known)
    user.lose_feed()
    assert app.state == "lost"
    assert app.age_s > 30
    for token in (known, user().token):
        if error is None:
            assert app.verify(token)
        else:
            with pytest.raises(error):
                app.verify(token)
    with pytest.raises(TokenRevoked):
        app.verify(user.revoked().token)
    user.find_feed()
    assert app.state == "fresh"
    assert app.verify(known)


def test_one_that_is_made_while_the_feed_is_lost_has_lost_it_too(app, sekisho_user):
    user = sekisho_user()
    sekisho_user.lose_feed()
    with pytest.raises(FeedLost):
        following(when_lost="refuse").verify(user.token)


def test_a_logout_while_the_feed_is_lost_is_heard_of_when_it_is_found(app, sekisho_user):
    user = sekisho_user()
    sekisho_user.lose_feed()
    user.log_out()
    assert app.verify(user.token)
    sekisho_user.find_feed()
    with pytest.raises(TokenRevoked):
        app.verify(user.token)


def test_the_issuers_own_verifier_knows_of_logouts_at_once(app, sekisho_user):
    issuers_own, user = alone(), sekisho_user()
    sekisho_user.lose_feed()
    user.log_out()
    with pytest.raises(TokenRevoked):
        issuers_own.verify(user.token)


def test_who_asks_learns_who_has_logged_out(sekisho_user):
    guard = Guard(following(when_lost="ask"))
    here, gone = sekisho_user(), sekisho_user()
    sekisho_user.lose_feed()
    gone.log_out()
    assert guard.claims([f"Bearer {here.token}"], *NO_COOKIE) == here.claims
    with pytest.raises(TokenRevoked):
        guard.claims([f"Bearer {gone.token}"], *NO_COOKIE)


def test_an_issuer_that_is_down_cannot_be_asked(sekisho_user):
    guard = Guard(following(when_lost="ask"))
    bearer = [f"Bearer {sekisho_user().token}"]
    sekisho_user.lose_feed(issuer_down=True)
    with pytest.raises(FeedLost):
        guard.claims(bearer, *NO_COOKIE)
    sekisho_user.lose_feed()
    assert guard.claims(bearer, *NO_COOKIE)


def test_at_the_start_nobody_waits(app, sekisho_user):
    user, guard = sekisho_user(), Guard(app)
    assert guard.claims([f"Bearer {user.token}"], *NO_COOKIE)
    sekisho_user.starting()
    began = time.monotonic()
    with pytest.raises(FeedStarting):
        guard.claims([f"Bearer {user.token}"], *NO_COOKIE)
    with pytest.raises(FeedStarting):
        asyncio.run(guard.aclaims([f"Bearer {user.token}"], *NO_COOKIE))
    assert time.monotonic() - began < 1
    assert app.state == "starting"
    sekisho_user.find_feed()
    assert guard.claims([f"Bearer {user.token}"], *NO_COOKIE)


def test_without_a_feed_there_is_none_to_lose(sekisho_user):
    kept = alone()
    for turn in (sekisho_user.lose_feed, sekisho_user.starting, sekisho_user.find_feed):
        with pytest.raises(pytest.fail.Exception, match="follows a feed"):
            turn()
    assert kept.state is None


def test_what_stands_in_for_the_remote_has_all_that_a_verifier_may_call(app, sekisho_user):
    stand_in = app.parts[1]
    assert isinstance(stand_in, _NoRemote)
    real = stand_in.own
    public = {name for name in {*dir(Remote), *vars(real)} if not name.startswith("_")}
    assert public - set(dir(stand_in)) == set()


# --- which verifiers -----------------------------------------------------------------------------------------------


def test_one_that_is_made_in_the_test_accepts_those_from_before(app, sekisho_user):
    user = sekisho_user()
    assert following().verify(user.token)
    assert alone().verify(user.token)


def test_without_a_verifier_the_error_says_what_to_do(sekisho_user):
    for make in (sekisho_user, sekisho_user.expired, sekisho_user.forged, sekisho_user.revoked):
        with pytest.raises(pytest.fail.Exception, match="import your application first"):
            make()


@pytest.mark.parametrize("differs", ["issuer", "audience"])
def test_verifiers_that_differ_have_to_be_named(app, sekisho_user, differs):
    other = following(**{differs: "https://other.example"})
    for make in (sekisho_user, sekisho_user.expired, sekisho_user.forged, sekisho_user.revoked):
        with pytest.raises(pytest.fail.Exception, match=r"https://other\.example.*verifier="):
            make()
    assert app.verify(sekisho_user(verifier=app).token)
    assert other.verify(sekisho_user(verifier=other).token)
    with pytest.raises(TokenExpired):
        other.verify(sekisho_user.expired(verifier=other).token)


def test_what_an_earlier_test_left_behind_does_not_count(app, sekisho_user):
    gc.disable()
    try:
        left = {"verifier": following(audience="earlier")}
        left["itself"] = left
        del left
        assert len(verifier.verifiers) == 2
        assert app.verify(sekisho_user().token)
    finally:
        gc.enable()


# --- nothing stays -------------------------------------------------------------------------------------------------


def new_users():
    keys = [KeySet.generate("EdDSA", now=1).active("sign") for _ in range(2)]
    return SekishoUsers(*keys)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_given_back(fails):
    apps, users = [following(), alone()], new_users()
    before = [app.parts for app in apps]
    in_use = [app.parts[0].in_use for app in apps]
    try:
        with users.at_the_verifiers():
            apps.append(following())
            user = users()
            users().log_out()
            users.lose_feed()
            assert all(app.parts[0] is not held for app, (held, _) in zip(apps, before, strict=False))
            assert not fails
    except AssertionError:
        assert fails
    assert [app.parts for app in apps[:2]] == before
    assert isinstance(apps[2].parts[1], Remote)
    assert verifier.on_new == []
    for app, (ring, *_) in zip(apps, in_use, strict=False):
        assert [key.kid for key in app.parts[0].in_use[0].keys] == [key.kid for key in ring.keys]
    with pytest.raises(TokenKeyUnknown):
        apps[1].verify(user.token)
    assert apps[1].verify(own_token())


def test_a_thread_that_runs_already_is_ended():
    app = following(jwks_url="http://127.0.0.1:9/jwks", revocations_url="http://127.0.0.1:9/revocations")
    app.start()
    threads = [thread for thread in threading.enumerate() if thread.name == "sekisho-verifier"]
    assert threads
    with new_users().at_the_verifiers():
        assert not any(thread.is_alive() for thread in threads)
        app.start()
    del CONNECTED[:]  # what the thread did before


def test_the_plugin_is_light():
    """Every run of pytest imports it, for whatever application."""
    code = "import sys, sekisho.testing; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"httpx2", "fastapi", "starlette", "django", "flask", "sqlalchemy", "pydantic", "structlog"} & {*loaded}
    sekisho = [name for name in loaded if name.startswith("sekisho.")]
    rooms = {name.split(".")[1] for name in sekisho}
    assert rooms == {"errors", "wire", "tokens", "verify", "testing"}
    assert "sekisho.verify.remote" not in sekisho


APPLICATION = f"""
    from sekisho import Verifier

    verifier = Verifier(issuer="{ISSUER}", audience="shop", jwks_url="{ISSUER}/jwks",
                        revocations_url="{ISSUER}/revocations", credential="secret")
"""

ITS_TESTS = """
    import sys
    import unittest

    import pytest

    from application import verifier
    from sekisho import TokenRevoked
    from sekisho.verify.remote import Remote

    OWN = verifier.parts
    OUTSIDE = []
    sys.addaudithook(lambda event, _: OUTSIDE.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)

    @pytest.fixture(autouse=True)
    def as_before():
        assert verifier.parts == OWN
        yield
        assert OUTSIDE == []

    def test_sync(sekisho_user):
        user = sekisho_user(session_id="s-1")
        assert verifier.verify(user.token) == user.claims
        user.log_out()
        with pytest.raises(TokenRevoked):
            verifier.verify(user.token)

    def test_that_fails(sekisho_user):
        sekisho_user.lose_feed()
        assert verifier.state == "fresh"

    @pytest.mark.anyio
    async def test_async(sekisho_user):
        assert verifier.verify(sekisho_user(session_id="s-1").token)

    class TestOfUnittest(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def _users(self, sekisho_user):
            self.sekisho_user = sekisho_user

        def test_it(self):
            assert verifier.verify(self.sekisho_user().token)

    def test_at_the_end():
        assert isinstance(verifier.parts[1], Remote)
        assert verifier.parts == OWN
"""


def test_it_loads_by_its_entry_point_and_leaves_everything_as_it_was(pytester):
    pytester.makepyfile(application=APPLICATION, test_application=ITS_TESTS)
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist", "-rA")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["E *AssertionError: assert 'lost' == 'fresh'"])


def test_an_error_points_to_the_line_of_the_application(pytester):
    pytester.makepyfile("def test_it(sekisho_user):\n    sekisho_user()\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    result.stdout.fnmatch_lines(["*there is no Verifier in this process yet: import your application first"])
    assert "testing.py" not in result.stdout.str()


# --- the examples, and the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", sorted((EXAMPLES / "tests").glob("test_*.py")), ids=lambda path: path.stem)
def test_the_tests_of_the_examples_pass(test):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SEKISHO_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"tests/{test.name}"]
    run = subprocess.run(command, cwd=EXAMPLES, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_example_has_tests():
    tested = {path.stem.removeprefix("test_") for path in (EXAMPLES / "tests").glob("test_*.py")}
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}


def test_the_code_of_the_page_is_the_code_that_runs():
    page = (ROOT / "docs/testing.md").read_text()
    shown = re.findall(r"<!-- (examples/\S+) -->\n```python\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 4
    for name, code in shown:
        assert code in (ROOT / name).read_text()
