"""A verifier that follows its issuer in surroundings that are not as they should be: proxies, forks, restarts."""

import logging
import time

import pytest

from sekisho.errors import FeedLost
from sekisho.tokens import Keyring, algorithms
from sekisho.tokens.keys import Key
from sekisho.tokens.revoked import RevokedSessions
from sekisho.verify import Verifier, remote
from sekisho.verify.held import Held
from servers.odd_issuer import OddIssuer
from servers.ports import free_port

K1 = Key("key-1", algorithms.generate("EdDSA"))
CREDENTIAL = "sekisho_vc_" + "c" * 43


@pytest.fixture
def issuer():
    with OddIssuer() as issuer:
        issuer.publish([K1])
        yield issuer


@pytest.fixture
def follower():
    made = []

    def make(**named):
        made.append(Verifier(issuer="https://auth.example.com", audience="shop", **named))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def test_http_on_this_machine_never_goes_by_way_of_a_proxy(issuer, follower, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    verifier = follower(jwks_url=issuer.jwks_url, revocations_url=issuer.revocations_url, credential=CREDENTIAL)
    assert verifier.wait(10)
    assert verifier.state == "fresh"


@pytest.mark.parametrize("proxy", ["socks5://user:S3CRET@127.0.0.1:1", "odd://user:S3CRET@127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used_is_told_once_and_the_view_is_lost_in_time(proxy, follower, monkeypatch, caplog):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setattr(remote, "_AGAIN_S", 0.02)
    clock = {"boot": 5000.0}
    monkeypatch.setattr(remote, "since_boot", lambda: clock["boot"])
    verifier = follower(
        keys=Keyring([K1]), revocations_url="https://auth.example.com/revocations", credential=CREDENTIAL
    )
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            assert verifier.state == "starting"
            time.sleep(0.03)
        clock["boot"] += 31
        assert verifier.state == "lost"
    assert len(caplog.records) == 1
    assert "S3CRET" not in caplog.text
    held = Held(Keyring([]), revoked=RevokedSessions(), allow_shared_secret=False, remember=0, clock=time.time)
    asker = remote.Remote(
        held, jwks_url=None, revocations_urls=["https://auth.example.com/revocations"], credential=CREDENTIAL
    )
    with pytest.raises(FeedLost) as raised:
        asker.ask("token")
    assert "S3CRET" not in str(raised.value)


def test_who_waits_after_a_restart_hears_of_keys_that_have_not_changed(issuer, follower):
    verifier = follower(jwks_url=issuer.jwks_url)
    assert verifier.wait(10)
    verifier.close()  # as after a fork: another thread
    assert verifier.wait(10)


def test_an_event_id_that_no_header_can_hold_is_not_taken(issuer, follower, caplog):
    issuer.boot = "a b\x01"
    verifier = follower(keys=Keyring([K1]), revocations_url=issuer.revocations_url, credential=CREDENTIAL)
    assert not verifier.wait(0.5)
    issuer.boot = "good"
    assert verifier.wait(10)
