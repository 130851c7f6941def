"""The events of the feed: what is written is what is read, and what is garbage is a ValueError."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.verify.stream import (
    PIECE,
    Entries,
    Heartbeat,
    Position,
    event,
    grouped,
    position,
    read_entries,
    read_heartbeat,
)

NOW = 1_800_000_000
MAX_NUMERIC_DATE = 2**40


def lines_of(written):
    assert written.endswith(b"\n\n")
    return dict(line.split(": ", 1) for line in written.decode().rstrip("\n").split("\n"))


# --- as documented -------------------------------------------------------------------------------------------------


def test_a_revoked_event():
    written = event("revoked", grouped({"s1": NOW, "s2": NOW + 5, "s3": NOW}, ["kid-1"]), Position("b7", 12))
    assert written == (
        b"event: revoked\nid: b7:12\n"
        b'data: {"sessions":{"1800000000":["s1","s3"],"1800000005":["s2"]},"keys":["kid-1"]}\n\n'
    )


def test_a_piece_of_a_snapshot_that_is_not_the_last_has_no_id():
    written = event("snapshot", grouped({"s1": NOW}, more=True))
    assert written == b'event: snapshot\ndata: {"sessions":{"1800000000":["s1"]},"more":true}\n\n'


def test_an_empty_snapshot():
    assert event("snapshot", Entries(), Position("b7", 0)) == b"event: snapshot\nid: b7:0\ndata: {}\n\n"
    assert read_entries("{}") == Entries()


@pytest.mark.parametrize(("age_ms", "text"), [(0, "0"), (150, "150"), (None, "null")])
def test_a_heartbeat(age_ms, text):
    written = event("heartbeat", Heartbeat(age_ms, 2000), Position("b7", 12))
    assert written == f'event: heartbeat\nid: b7:12\ndata: {{"age_ms":{text},"open_ms":2000}}\n\n'.encode()
    assert read_heartbeat(lines_of(written)["data"]) == Heartbeat(age_ms, 2000)


def test_a_reader_passes_over_members_of_a_later_version():
    assert read_entries('{"sessions":{},"users":["u"],"keys":["k"]}') == Entries({}, ["k"])
    assert read_heartbeat('{"age_ms":1,"open_ms":2,"load":{"x":[1]}}') == Heartbeat(1, 2)


def test_a_full_piece_is_far_below_what_a_reader_takes():
    full = grouped({f"{number:036}": NOW + number for number in range(PIECE)})
    assert len(event("snapshot", full)) < 1024 * 1024


# --- there and back ------------------------------------------------------------------------------------------------

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
times = st.integers(1, MAX_NUMERIC_DATE - 1)


@given(st.dictionaries(ids, times, max_size=20), st.lists(ids, max_size=5), st.booleans())
def test_entries_are_read_as_they_were_written(lapses_at, keys, more):
    written = event("revoked", grouped(lapses_at, keys, more=more), Position("boot", 1))
    assert written.count(b"\n") == 4  # no line ends within
    read = read_entries(lines_of(written)["data"])
    assert {sid: at for at, sids in read.by_time() for sid in sids} == lapses_at
    assert (read.keys, read.more) == (keys, more)


@given(
    st.text(st.characters(exclude_characters=":\n\r\0", exclude_categories=["Cs"]), min_size=1),
    st.integers(0, 10**15 - 1),
)
def test_a_position_is_read_as_it_was_written(boot, number):
    assert position(str(Position(boot, number))) == Position(boot, number)


# --- garbage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "b7",
        "b7:",
        ":5",
        "b7:-1",
        "b7:+1",
        "b7: 1",
        "b7:1 ",
        "b7:1.0",
        "b7:1_0",
        "b7:0x1",
        "b7:١",
        "b7:1:2",
        "b7:" + "9" * 16,
        "b7:" + "9" * 10_000,
        "b7:²",
    ],
)
def test_no_position(text):
    assert position(text) is None


@given(st.text())
def test_whatever_a_position_is_it_raises_nothing(text):
    found = position(text)
    assert found is None or (found.boot and found.number >= 0)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "null",
        "[]",
        "1",
        '"x"',
        "{",
        "{}x",
        '{"sessions":[]}',
        '{"sessions":{"1":"s1"}}',
        '{"sessions":{"1":[1]}}',
        '{"sessions":{"1":[null]}}',
        '{"sessions":{"1":[""]}}',
        '{"keys":"k"}',
        '{"keys":[""]}',
        '{"more":1}',
        '{"sessions":{"0":[]}}',
        '{"sessions":{"-5":[]}}',
        '{"sessions":{"x":[]}}',
        '{"sessions":{"":["s"]}}',
        '{"sessions":{"1.5":[]}}',
        '{"sessions":{"1e9":[]}}',
        '{"sessions":{"nan":[]}}',
        '{"sessions":null}',
        f'{{"sessions":{{"{MAX_NUMERIC_DATE}":[]}}}}',
        '{"sessions":{"' + "9" * 10_000 + '":[]}}',
        json.dumps({"sessions": {"5": ["s" * 257]}}),
        '{"keys":["\ud800"]}',
        "[" * 100_000,
        '{"later":' + "[" * 100_000,
        '{"sessions":{"1":' + "[" * 100_000,
    ],
    ids=lambda data: ascii(data)[:40],
)
def test_no_entries(data):
    with pytest.raises(ValueError):
        read_entries(data).by_time()


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{}",
        "null",
        "[]",
        '{"age_ms":1}',
        '{"open_ms":1}',
        '{"age_ms":-1,"open_ms":1}',
        '{"age_ms":1,"open_ms":-1}',
        '{"age_ms":1.5,"open_ms":1}',
        '{"age_ms":"1","open_ms":1}',
        '{"age_ms":true,"open_ms":1}',
        '{"age_ms":1,"open_ms":null}',
        f'{{"age_ms":{2**53},"open_ms":1}}',
        '{"age_ms":1,"open_ms":1e400}',
        '{"age_ms":NaN,"open_ms":1}',
        '{"age_ms":1,"open_ms":1}}',
        '{"later":' + "[" * 100_000,
        "\ud800",
    ],
    ids=lambda data: ascii(data)[:40],
)
def test_no_heartbeat(data):
    with pytest.raises(ValueError):
        read_heartbeat(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
almost = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("sessions", "keys", "more", "age_ms", "open_ms"), json_values)
).map(json.dumps)


@given(st.text(st.characters()) | json_values.map(json.dumps) | almost)
def test_garbage_is_a_value_error_and_nothing_else(data):
    for read in (lambda: read_entries(data).by_time(), lambda: read_heartbeat(data)):
        try:
            read()
        except ValueError:
            continue
