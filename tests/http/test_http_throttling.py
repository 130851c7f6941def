"""Throttling: whoever guesses is slowed down, and cannot lock anybody else out."""

import pytest
from outsiders import OTHER_PASSWORD, PASSWORD, bearer, is_problem, log_in, me, new_email, sign_up, try_login

WRONG = "not the password at all"


def is_throttled(response, *, at_most_s):
    is_problem(response, 429, "throttled")
    assert 1 <= int(response.headers["retry-after"]) <= at_most_s
    assert "set-cookie" not in response.headers
    assert "www-authenticate" not in response.headers


def guess_until_throttled(client, email):
    for _ in range(5):
        is_problem(try_login(client, email, WRONG), 401, "wrong_credentials")
    is_throttled(try_login(client, email, WRONG), at_most_s=30)


def test_the_sixth_guess_in_half_a_minute_is_refused(client):
    email = sign_up(client)
    guess_until_throttled(client, email)
    is_throttled(try_login(client, email, PASSWORD), at_most_s=30)  # the right one too, or it would stand out
    for spelling in (email.upper(), email.replace("example", "ｅｘａｍｐｌｅ")):
        is_throttled(try_login(client, spelling, WRONG), at_most_s=30)


def test_an_unknown_account_is_throttled_alike(client):
    email = new_email()
    guess_until_throttled(client, email)
    is_throttled(try_login(client, email, PASSWORD), at_most_s=30)


def test_the_right_password_of_a_disabled_account_counts_as_wrong(client, server):
    """Else the throttle would tell it from the wrong ones."""
    email = sign_up(client)
    server.run("users", "disable", email)
    for _ in range(5):
        is_problem(try_login(client, email), 401, "wrong_credentials")
    is_throttled(try_login(client, email), at_most_s=30)


def test_an_account_is_throttled_wherever_the_guesses_come_from(client, connect, server):
    email = sign_up(client)
    for _ in range(5):
        is_problem(try_login(connect(server), email, WRONG), 401, "wrong_credentials")
    is_throttled(try_login(connect(server), email, WRONG), at_most_s=30)


def test_a_known_device_gets_in_while_strangers_are_throttled(client, connect, server):
    email = sign_up(client)
    owner, attacker, other_user = connect(server), connect(server), connect(server)
    log_in(owner, email)
    cookie = owner.cookies["sekisho_device"]
    log_in(other_user)
    guess_until_throttled(attacker, email)
    is_throttled(try_login(connect(server), email), at_most_s=30)
    # A device that is known to another account is a stranger to this one.
    is_throttled(try_login(other_user, email), at_most_s=30)
    response = try_login(owner, email)
    assert response.status_code == 200
    assert owner.cookies["sekisho_device"] == cookie  # and stays the same device
    is_throttled(try_login(attacker, email), at_most_s=30)


def test_a_known_device_is_throttled_by_itself(connect, server, client):
    email = sign_up(client)
    stolen = connect(server)
    log_in(stolen, email)
    guess_until_throttled(stolen, email)
    assert try_login(connect(server), email).status_code == 200


def test_an_invented_device_is_nobody(client, connect, server):
    email = sign_up(client)
    guess_until_throttled(client, email)
    inventor = connect(server)
    inventor.cookies.set("sekisho_device", "invented", domain="127.0.0.1")
    is_throttled(try_login(inventor, email), at_most_s=30)


def test_a_device_does_not_choose_its_own_name(client, connect, server):
    """What a client makes up is not taken over at login."""
    email = sign_up(client)
    inventor = connect(server)
    response = inventor.post(
        "/login", json={"email": email, "password": PASSWORD}, headers={"Cookie": "sekisho_device=mine"}
    )
    assert response.status_code == 200
    assert response.cookies["sekisho_device"] != "mine"


def test_another_network_is_unaffected(client, connect, server):
    """30 guesses, each for another account; the /24 is refused, its neighbour and everyone else is not."""
    guesser, neighbour, stranger = (
        connect(server, address=address) for address in ("198.18.7.5", "198.18.7.250", "198.18.8.5")
    )
    email = sign_up(client)
    for _ in range(30):
        is_problem(try_login(guesser, new_email(), WRONG), 401, "wrong_credentials")
    is_throttled(try_login(guesser, new_email(), WRONG), at_most_s=61)
    is_throttled(try_login(neighbour, email), at_most_s=61)
    assert try_login(stranger, email).status_code == 200


def test_a_success_clears_the_account(client):
    email = sign_up(client)
    for _ in range(3):
        for _ in range(4):
            is_problem(try_login(client, email, WRONG), 401, "wrong_credentials")
        assert try_login(client, email).status_code == 200
        client.cookies.clear()


def test_guesses_of_the_current_password_are_throttled(client):
    tokens = log_in(client)

    def change(current):
        body = {"current_password": current, "new_password": OTHER_PASSWORD}
        return client.post("/password", json=body, headers=bearer(tokens.access))

    for _ in range(5):
        is_problem(change(WRONG), 401, "wrong_credentials")
    is_throttled(change(WRONG), at_most_s=30)
    is_throttled(change(PASSWORD), at_most_s=30)
    assert me(client, tokens.access).status_code == 200


def test_sign_ups_from_one_network_are_counted(client, other_client):
    """Taken or not: each answer tells something. Refused input tells nothing and does not count."""
    taken = sign_up(client)
    for _ in range(5):
        client.post("/signup", json={"email": "no address", "password": PASSWORD})
    for _ in range(59):
        is_problem(client.post("/signup", json={"email": taken, "password": PASSWORD}), 409, "email_taken")
    for email in (taken, new_email()):
        is_throttled(client.post("/signup", json={"email": email, "password": PASSWORD}), at_most_s=600)
    sign_up(other_client)
    assert try_login(client, taken).status_code == 200


def test_what_a_client_writes_itself_is_not_believed(server, connect):
    """The proxy appended the last address; all before it is the client's invention."""
    client = connect(server, address="192.0.2.44, 192.0.2.55")
    tokens = log_in(client)
    (session,) = client.get("/sessions", headers=bearer(tokens.access)).json()["sessions"]
    assert session["address"] == "192.0.2.55"


@pytest.mark.parametrize("trusted", [True, False])
def test_an_address_that_anyone_can_write_counts_only_from_a_proxy(serve, connect, trusted):
    server = serve(env={"SEKISHO_TRUSTED_PROXIES": "127.0.0.1/32"} if trusted else {})
    responses = [
        try_login(connect(server), new_email(), WRONG) for _ in range(31)
    ]  # each from another network, it says
    assert [response.status_code for response in responses] == [401] * 30 + [401 if trusted else 429]


def test_devices_gathered_with_an_old_password_are_strangers_after_its_change(client, connect, server):
    """Else whoever knew it once would have as many lanes to guess in as devices."""
    email = sign_up(client)
    gathered = connect(server)
    tokens = log_in(gathered, email)
    change = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    assert client.post("/password", json=change, headers=bearer(tokens.access)).status_code == 200
    guess_until_throttled(connect(server), email)
    is_throttled(try_login(gathered, email, WRONG), at_most_s=30)


def test_only_the_devices_seen_last_stay_known(client, connect, server):
    email = sign_up(client)
    first = connect(server)
    log_in(first, email)
    for _ in range(10):
        log_in(connect(server), email)
    guess_until_throttled(connect(server), email)
    is_throttled(try_login(first, email), at_most_s=30)
