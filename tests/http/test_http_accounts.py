"""Sign-up and login: the password policy, one account for all spellings of an address, one answer to every failure."""

import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from outsiders import OTHER_PASSWORD, PASSWORD, is_problem, new_email, seen, sign_up, try_login


def attempt(client, email, password):
    return client.post("/signup", json={"email": email, "password": password})


# --- the policy ----------------------------------------------------------------------------------------------------

NAME = "hatsuhana.of.the.checkpoint"


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("", "password_too_short"),
        ("fourteen chars", "password_too_short"),
        ("🚧" * 14, "password_too_short"),
        ("e\N{COMBINING ACUTE ACCENT}" * 14, "password_too_short"),  # counted after NFC
        ("a" * 257, "password_too_long"),
        ("1234567890123456", "password_common"),
        ("qwertyuiopasdfgh", "password_common"),
        ("QWERTYUIOPASDFGH", "password_common"),
        (f"{NAME}@example.com", "password_is_context"),
        (NAME.upper(), "password_is_context"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_passwords_that_nobody_may_take(client, password, code):
    response = attempt(client, f"{NAME}@example.com", password)
    problem = is_problem(response, 422, code)
    assert problem["fields"] == [{"field": "password", "code": code}]
    if password:
        assert password.lower() not in response.text.lower()


@pytest.mark.parametrize(
    "password",
    [
        "fifteen letters",
        "a" * 14 + "b",
        "x" * 64 + "y",
        "関所" * 128,
        "🚧" * 15,
        " " * 7 + "\t" + "\n" + " " * 6 + "a",
        "pass word pass word",
        "\"\\{}[]%s%n$(id)`'",
        PASSWORD + "\x7f\x1b[0m",
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_passwords_of_every_kind_work(client, password):
    email = sign_up(client, password=password)
    assert try_login(client, email, password).status_code == 200
    for wrong in (password + " ", password[:-1], password.upper() + "!", password.strip() + "\0"):
        is_problem(try_login(client, email, wrong), 401, "wrong_credentials")


def test_a_password_is_the_same_in_every_normal_form(client):
    composed = unicodedata.normalize("NFC", "café über alle Straßen")
    email = sign_up(client, password=composed)
    assert try_login(client, email, unicodedata.normalize("NFD", composed)).status_code == 200
    is_problem(try_login(client, email, "cafe uber alle Strassen"), 401, "wrong_credentials")


def test_no_password_is_cut(client):
    """As bcrypt would, at 72 bytes."""
    email = sign_up(client, password="x" * 100 + "a")
    is_problem(try_login(client, email, "x" * 100 + "b"), 401, "wrong_credentials")
    is_problem(try_login(client, email, "x" * 100), 401, "wrong_credentials")


# --- spellings of an address ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("{}@example.com", "{}@EXAMPLE.com"),
        ("{}@example.com", "{upper}@example.com"),
        ("{}@bücher.example", "{}@xn--bcher-kva.example"),
        ("{}@BÜCHER.example", "{}@bu\N{COMBINING DIAERESIS}cher.example"),
        ("{}@関所.example", "{}@関所。example"),
        ("{}@example.com", "{}@ｅｘａｍｐｌｅ.com"),
        ("ａ{}@example.com", "a{}@example.com"),
        ("é{}@example.com", "e\N{COMBINING ACUTE ACCENT}{}@example.com"),
    ],
)
def test_spellings_of_one_address_are_one_account(client, first, second):
    name, _, _ = new_email().partition("@")
    one, other = (spelling.format(name, upper=name.upper()) for spelling in (first, second))
    assert one != other
    response = attempt(client, one, PASSWORD)
    assert response.status_code == 201, response.text
    assert response.json()["email"] == one  # kept as typed
    is_problem(attempt(client, other, OTHER_PASSWORD), 409, "email_taken")
    for spelling in (one, other):
        assert try_login(client, spelling).status_code == 200


@pytest.mark.parametrize("other", ["{}+tag@example.com", "{}.@example.org", "{}@example.co", "{}@sub.example.com"])
def test_other_addresses_are_other_accounts(client, other):
    name, _, _ = new_email().partition("@")
    sign_up(client, f"{name}@example.com")
    is_problem(try_login(client, other.format(name)), 401, "wrong_credentials")


def test_of_forty_sign_ups_at_once_one_succeeds(client, rows):
    email = new_email()
    spellings = [email, email.upper(), email.replace("example", "EXAMPLE"), email.replace("example", "ｅｘａｍｐｌｅ")]
    passwords = [f"a gate on the old road, number {number}" for number in range(40)]
    with ThreadPoolExecutor(40) as people:
        calls = people.map(lambda number: attempt(client, spellings[number % 4], passwords[number]), range(40))
        responses = list(calls)
    statuses = [response.status_code for response in responses]
    assert sorted(statuses) == [201] + [409] * 39
    for response in responses:
        if response.status_code == 409:
            is_problem(response, 409, "email_taken")
    assert rows.one(f"SELECT count(*) FROM users WHERE email_canonical = '{email}'") == ["1"]
    winner = passwords[statuses.index(201)]
    assert try_login(client, email, winner).status_code == 200


# --- one answer ----------------------------------------------------------------------------------------------------


def test_nobody_learns_from_login_who_has_an_account(client, connect, server):
    email, disabled = sign_up(client), sign_up(client)
    server.run("users", "disable", disabled)
    answers = [
        seen(try_login(connect(server), address, password))
        for address, password in (
            (new_email(), PASSWORD),
            (email, OTHER_PASSWORD),
            (email, ""),
            (disabled, PASSWORD),
            (disabled, OTHER_PASSWORD),
            ("not an address", PASSWORD),
            ("", PASSWORD),
            ("x" * 5000, PASSWORD),
        )
    ]
    assert len({str(answer) for answer in answers}) == 1
    is_problem(try_login(connect(server), new_email()), 401, "wrong_credentials")


def test_parallel_logins_open_sessions_of_their_own(client):
    email = sign_up(client)
    with ThreadPoolExecutor(8) as devices:
        responses = list(devices.map(lambda _: try_login(client, email), range(8)))
    assert [response.status_code for response in responses] == [200] * 8
    assert len({response.json()["refresh_token"] for response in responses}) == 8
