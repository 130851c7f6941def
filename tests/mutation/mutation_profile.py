"""A pytest plugin for mutation runs: every mutant sees the same examples and is tried on every test that can kill it.

By hand, in a copy of the repository (mutmut leaves a folder ``mutants`` behind):

    PYTHONPATH=tests/mutation .venv/bin/mutmut run
    PYTHONPATH=tests/mutation .venv/bin/mutmut results
"""

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, Phase, settings

# Without a database: an example that killed one mutant must not help with the next, or the order would decide.
settings.register_profile(
    "mutation",
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutation")

# mutmut tries a mutant on the tests in which it saw the function run, and what a shared fixture runs it sees in the
# first of its tests alone. So no fixture is shared here.
_fixture = pytest.fixture
pytest.fixture = lambda function=None, **named: _fixture(function, **(named | {"scope": "function"}))

_generate = rsa.generate_private_key
_stock = {}


def _from_stock(public_exponent, key_size, *args):
    """One of three keys by turns, made once for all tests; mutmut's forks find them made. Bad arguments fail as ever."""
    kind = (public_exponent, key_size, *args)
    if kind not in _stock:
        _stock[kind] = itertools.cycle([_generate(*kind) for _ in range(3)])
    return next(_stock[kind])


rsa.generate_private_key = _from_stock
