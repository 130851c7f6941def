"""The real servers that tests run against: PostgreSQL, Redis, a browser and Sekisho itself."""


class MissingPieceError(RuntimeError):
    """The machine lacks something that the tests need. The text says what to do about it."""
