"""The strict readers: every text has one reading, or none."""

import base64
import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pybase64 import _fallback

import sekisho.wire
from sekisho.wire import MAX_SAFE_INTEGER, WireError, b64url_decode, b64url_encode, json_object, now_s, now_us

quick = settings(deadline=None, max_examples=200)

# --- base64url -----------------------------------------------------------------------------------------------------


@quick
@given(st.binary(max_size=200))
def test_decoding_gives_back_what_was_encoded(data):
    assert b64url_decode(b64url_encode(data)) == data


@quick
@given(st.text(alphabet="ABCXYZabcxyz0189-_", max_size=40))
def test_a_text_that_is_read_is_the_only_spelling_of_its_bytes(text):
    try:
        data = b64url_decode(text)
    except WireError:
        return
    assert b64url_encode(data) == text


@quick
@given(st.text(max_size=40))
def test_any_text_is_base64url_or_a_wire_error(text):
    try:
        b64url_decode(text)
    except WireError:
        return
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "text",
    [
        "QQ==",
        "QQ=",
        "QUI=",
        "A",
        "AAAAA",
        "QR",  # the unused four bits are not zero
        "QUJ",  # the unused two bits are not zero
        "+/+/",
        "QUJD\n",
        "\nQUJD",
        "QU JD",
        "QUJD!!!!",
        "QUJ\0",
        "QUJＤ",  # a full-width D
        "QUJ\udc80",
    ],
)
def test_base64url_has_no_padding_no_foreign_characters_and_no_second_spelling(text):
    with pytest.raises(WireError):
        b64url_decode(text)


@pytest.fixture(params=["compiled", "python"])
def decoder(request, monkeypatch):
    """As pybase64 is where its C extension was built, and as it is where it was not."""
    if request.param == "python":
        monkeypatch.setattr(sekisho.wire, "b64decode", _fallback.b64decode)
        monkeypatch.setattr(sekisho.wire, "b64encode_as_string", _fallback.b64encode_as_string)


def read(text):
    """What is read, or ``None``. Nothing but a ``WireError`` comes out: no warning either, which would be an error."""
    try:
        return b64url_decode(text)
    except WireError:
        return None


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def strictly_read(text):
    """The only spelling of some bytes, as the standard library spells them."""
    if not set(text) <= set(ALPHABET) or len(text) % 4 == 1:
        return None
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return data if base64.urlsafe_b64encode(data).decode().rstrip("=") == text else None


CHARACTERS = [*map(chr, range(0x180)), *"\u0661\u2010\u2028\u203f\ufeff\uff0d\uff0b\uff3f\uff21\ud800\udc80\U0001f600"]


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("start", ["QUJDREVG", "AAAAAAAA", "____----"])
def test_every_character_at_every_place_is_read_only_where_it_spells_its_bytes_alone(start):
    accepted = 0
    for length in range(1, 9):
        for place, character in itertools.product(range(length), CHARACTERS):
            text = start[:place] + character + start[place + 1 : length]
            assert read(text) == strictly_read(text), ascii(text)
            accepted += read(text) is not None
    assert accepted > 300


@pytest.mark.usefixtures("decoder")
def test_every_short_text_of_the_awkward_characters_is_read_only_where_it_spells_its_bytes_alone():
    for length in range(6):
        for characters in itertools.product("AQgw-_+/= ", repeat=length):
            text = "".join(characters)
            assert read(text) == strictly_read(text), text


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 31, 32, 33, 64, 384])
def test_every_last_character_but_one_of_a_kind_is_refused(length):
    data = bytes(range(256)) * 2
    text = b64url_encode(data[:length])
    assert read(text) == data[:length]
    assert "=" not in text
    for more in ("=", "==", "===", "====", "A", "\n", " ", "\0", ".", "+", "/", "é"):
        assert read(text + more) == strictly_read(text + more)
        assert read(more + text) == strictly_read(more + text)
    assert sum(read(text[:-1] + last) == data[:length] for last in ALPHABET) == bool(length)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("text", ["+", "/", "+/+/", "AA+A", "AAA/", "A" * 4000 + "+AAA", "-_+/", "QQ+", "Q/"])
def test_the_standard_alphabet_is_refused_without_a_warning(text):
    with pytest.raises(WireError):
        b64url_decode(text)


# --- JSON: what is read --------------------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def depth_of(value):
    if isinstance(value, dict | list):
        return 1 + max(map(depth_of, value.values() if isinstance(value, dict) else value), default=0)
    return 1


@quick
@given(st.dictionaries(st.text(max_size=8), values, max_size=5).filter(lambda value: depth_of(value) <= 8))
def test_an_object_that_was_written_is_read_back(value):
    assert json_object(json.dumps(value).encode()) == value
    assert json_object(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{}", {}),
        (b' {"a" : [1, 2.5, true, null, "x"]}\r\n', {"a": [1, 2.5, True, None, "x"]}),
        (b'{"a":9007199254740991,"b":-9007199254740991}', {"a": 2**53 - 1, "b": -(2**53) + 1}),
        (b'{"a":1e3,"b":-0.5E-2}', {"a": 1000.0, "b": -0.005}),
        (b'{"\\u0073ub":"\\ud83d\\ude00"}', {"sub": "\U0001f600"}),
        (b'{"a":{"a":1},"b":{"a":2}}', {"a": {"a": 1}, "b": {"a": 2}}),
    ],
)
def test_what_the_rules_allow_is_read(data, value):
    assert json_object(data) == value


# --- JSON: what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"sub":"x","\\u0073ub":"y"}',
        b'{"x":{"a":1,"a":2}}',
        b'{"x":[[{"y":{"a":1,"a":2}}]]}',
        b'{"":1,"":2}',
    ],
)
def test_a_duplicate_name_is_refused_at_any_depth(data):
    with pytest.raises(WireError, match="duplicate"):
        json_object(data)


@pytest.mark.parametrize(
    "number",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "1e400",
        "-1e400",
        "9" * 400 + ".0",
        "1" + "0" * 400,
        "9" * 5000,
        "-" + "9" * 5000,
        "9007199254740992",  # what 2^53 + 1 is to a reader of floating-point numbers
        "-9007199254740992",
        "9007199254740993",
        "99999999999999999",
        "01",
        "+1",
        "1.",
        ".5",
        "0x10",
        "1_000",
        "٣",  # an Arabic digit, which int() would read
    ],
)
def test_a_number_that_readers_disagree_about_is_refused(number):
    with pytest.raises(WireError):
        json_object(f'{{"exp":{number}}}'.encode())
    with pytest.raises(WireError):
        json_object(f'{{"x":[{{"exp":{number}}}]}}'.encode())


@pytest.mark.parametrize("digits", [18, 400, 4300, 5000, 1_000_000])
def test_digits_are_counted_before_they_are_read(digits):
    """int() takes quadratic time, and from 4301 digits on it says something else."""
    with pytest.raises(WireError, match="out of range"):
        json_object(b'{"exp":' + b"9" * digits + b"}")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-16-be"),
        "{}".encode("utf-32"),
        b'{"a":"\xff"}',
        b'{"a":"\xc0\xaf"}',  # overlong
        b'{"a":"\xe0\x80\xaf"}',  # overlong
        b'{"a":"\xed\xa0\x80"}',  # a surrogate in UTF-8
        b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}',  # a pair of them (CESU-8)
        b'{"a":"\xf4\x90\x80\x80"}',  # beyond U+10FFFF
        b'{"a":"\xc3"}',  # cut off
        b'{"a":"x\x00y"}',  # a control character, not escaped
        b'{"a":"x\ny"}',
    ],
)
def test_only_utf8_without_a_bom_is_read(data):
    with pytest.raises(WireError):
        json_object(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"\\udfff":1}',
        b'{"x":[{"a":"\\ud83dx"}]}',
    ],
)
def test_a_lone_surrogate_is_refused(data):
    with pytest.raises(WireError, match="surrogate"):
        json_object(data)


def nested(levels, core):
    return ('{"a":' * (levels - 1) + core + "}" * (levels - 1)).encode()


@pytest.mark.parametrize("core", ["{}", "[]"])
def test_eight_levels_are_read_and_nine_are_not(core):
    assert json_object(nested(8, core))
    with pytest.raises(WireError, match="deep"):
        json_object(nested(9, core))


@pytest.mark.parametrize("opening", [b'{"a":', b'{"a":[', b"["])
def test_nesting_without_end_is_refused_and_costs_nothing(opening):
    with pytest.raises(WireError):
        json_object(opening * 100_000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"[]",
        b'[{"a":1}]',
        b'"a"',
        b"1",
        b"null",
        b"true",
        b"{}{}",
        b'{"a":1} {"a":1}',
        b"{}x",
        b"{}\x00",
        b"\x00{}",
        b"\x0b{}",  # white space to Python, not to JSON
        b"\xc2\xa0{}",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":[1,]}',
        b"{a:1}",
        b'{"a":True}',
        b'{"a":undefined}',
        b'{/**/"a":1}',
        b'{"a":"\\x41"}',
        b'{"a":"\\u12"}',
        b'{"a"',
    ],
)
def test_anything_but_one_json_object_is_refused(data):
    with pytest.raises(WireError):
        json_object(data)


def test_strings_and_names_have_a_longest_length():
    assert json_object(b'{"a":"' + b"x" * 1024 + b'"}')
    for data in (b'{"a":"' + b"x" * 1025 + b'"}', b'{"' + b"x" * 1025 + b'":1}', b'{"a":["' + b"x" * 1025 + b'"]}'):
        with pytest.raises(WireError, match="too long"):
            json_object(data)
    assert json_object(b'{"a":"xxxx"}', max_string=4)
    with pytest.raises(WireError, match="too long"):
        json_object(b'{"a":"xxxxx"}', max_string=4)


# --- JSON: whatever comes ------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b'"', b":", b",", b'"a"', b'"sub":', b"1", b"-", b"e9", b".", b"NaN", b"Infinity"),
        *(
            b"\\u",
            b"\\ud800",
            b"d83d",
            b"\xef\xbb\xbf",
            b"\xff",
            b"\xed\xa0\x80",
            b"\x00",
            b"null",
            b"true",
            b" ",
            b"\n",
        ),
        *(b"9" * 30, b"9" * 5000, b'{"a":{"a":', b"[[[[[[[["),
    ]
)


@quick
@given(st.binary(max_size=200) | st.lists(pieces, max_size=30).map(b"".join))
def test_any_bytes_are_an_object_or_a_wire_error(data):
    try:
        value = json_object(data)
    except WireError:
        return
    assert isinstance(value, dict)
    assert value == json.loads(data)  # where we read anything, we read what everyone reads


@quick
@given(st.dictionaries(st.text(max_size=5), values, max_size=3), st.data())
def test_json_with_a_changed_byte_is_an_object_or_a_wire_error(value, data):
    text = bytearray(json.dumps(value).encode())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(json_object(bytes(text)), dict)
    except WireError:
        return


@pytest.mark.parametrize("data", [b'{"hunter2":', b'{"a":"hunter2"', b"hunter2", b'{"a":"hunter2\xff"}'])
def test_the_error_does_not_quote_the_data(data):
    with pytest.raises(WireError) as caught:
        json_object(data)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# --- the clock -----------------------------------------------------------------------------------------------------


def test_the_clocks_give_whole_seconds_and_whole_microseconds_of_one_time():
    before, micros, after = now_s(), now_us(), now_s()
    assert isinstance(before, int)
    assert isinstance(micros, int)
    assert before <= math.floor(micros / 1_000_000) <= after
