"""For whoever receives access tokens. Imports the token core and nothing of the issuer."""

from sekisho.verify.freshness import WhenLost
from sekisho.verify.verifier import Verifier

__all__ = ["Verifier", "WhenLost"]
