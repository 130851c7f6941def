"""Whose address a request has: X-Forwarded-For counts from a trusted proxy alone, and only as far as it is known."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.web import address
from sekisho.web.address import client_address

PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8:ff::/48"), ip_network("127.0.0.1/32")]
ADDRESSES = st.ip_addresses().map(str)
HEADERS = st.lists(st.one_of(st.text(), st.lists(st.one_of(ADDRESSES, st.text(max_size=8)), max_size=5).map(",".join)))


@given(peer=ADDRESSES, header=HEADERS)
def test_without_trusted_proxies_the_peer_is_the_client_whatever_the_header_says(peer, header) -> None:
    assert client_address(peer, header, []) == client_address(peer, [], [])


@given(peer=ADDRESSES.filter(lambda text: "." not in text))
def test_the_answer_is_the_peer(peer) -> None:
    peer_address = ip_address(peer)
    assert client_address(peer, ["192.0.2.1"], []) == str(peer_address.ipv4_mapped or peer_address)


@given(client=ADDRESSES, invented=HEADERS)
def test_what_the_client_sends_itself_does_not_matter(client, invented) -> None:
    # the proxy 10.0.0.1 appends what it saw, to the same line or as a line of its own
    behind = client_address(client, [], [])
    proxies = [ip_network("10.0.0.1/32")]
    if behind == "10.0.0.1":
        return
    assert client_address("10.0.0.1", [*invented, client], proxies) == behind
    assert client_address("10.0.0.1", [",".join([*invented, client])], proxies) == behind


@given(peer=st.one_of(st.none(), st.text()), header=HEADERS)
def test_nothing_breaks_it_and_the_answer_is_an_address_or_unknown(peer, header) -> None:
    for given_peer in (peer, "10.0.0.1"):
        answer = client_address(given_peer, header, PROXIES)
        assert answer == "unknown" or str(ip_address(answer)) == answer


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        # an untrusted peer may write what it likes
        ("192.0.2.1", ["203.0.113.5"], "192.0.2.1"),
        ("192.0.2.1", ["203.0.113.5, 10.0.0.2"], "192.0.2.1"),
        # one proxy, two proxies, several lines
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, 10.0.0.2"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5", "10.0.0.2,\t10.0.0.3 "], "203.0.113.5"),
        ("10.0.0.1", ["198.51.100.9", "203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["198.51.100.9, 203.0.113.5, 10.0.0.2"], "203.0.113.5"),
        # only proxies: the outermost
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        # a hop that cannot be read: the last good one answers
        ("10.0.0.1", ["203.0.113.5, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.5,"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5,,10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.5", ""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5, 203.0.113.256"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4\n"], "10.0.0.1"),
        ("10.0.0.1", ["１.2.3.4"], "10.0.0.1"),
        ("10.0.0.1", ["01.2.3.4"], "10.0.0.1"),
        ("10.0.0.1", ["[203.0.113.5"], "10.0.0.1"),
        ("10.0.0.1", ["[]:80"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.5:http"], "10.0.0.1"),
        ("10.0.0.1", ['"203.0.113.5"'], "10.0.0.1"),
        # ports
        ("10.0.0.1", ["203.0.113.5:555"], "203.0.113.5"),
        ("10.0.0.1", ["[2001:db8::1]:80"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["203.0.113.5:1, 10.0.0.2:65535"], "203.0.113.5"),
        # one spelling for each host
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.5"], "203.0.113.5"),
        ("10.0.0.1", ["203.0.113.5, [::ffff:10.0.0.2]:99"], "203.0.113.5"),
        ("2001:DB8:FF:0::1", ["2001:0db8:0:0::0001"], "2001:db8::1"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("10.0.0.1", ["fe80::1%eth0"], "fe80::1"),
        ("10.0.0.1", ["203.0.113.5, 2001:db8:ff::1%eth0"], "203.0.113.5"),
        # a peer without an address: nothing vouches for the header
        (None, ["203.0.113.5"], "unknown"),
        ("", ["203.0.113.5"], "unknown"),
        ("/run/sekisho.sock", ["203.0.113.5"], "unknown"),
        ("testclient", ["203.0.113.5"], "unknown"),
    ],
)
def test_cases(peer, header, client) -> None:
    assert client_address(peer, header, PROXIES) == client


def test_what_is_too_long_for_an_address_is_not_remembered() -> None:
    """A client behind a trusted proxy could otherwise fill the memory with 30 KiB at a time."""
    before = address._parsed.cache_info().currsize
    for number in range(10):
        hop = f"{number}" * 81
        assert client_address("10.0.0.1", [hop], PROXIES) == "10.0.0.1"
    assert address._parsed.cache_info().currsize <= before + 1  # the proxy's own
