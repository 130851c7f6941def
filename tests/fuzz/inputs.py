"""What the fuzzer's bytes ask for: choices, pieces of text, and objects with some members changed."""

from functools import partial

import snippets

MAX_EDITS = 8


class Input:
    """The fuzzer's bytes, taken from the front. What is missing reads as zero."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def choice(self, options):
        return options[self.byte() % len(options)]

    def number(self) -> int:
        return self.byte() << 8 | self.byte()

    def piece(self) -> bytes:
        """Up to the next 0xFF, which UTF-8 never has."""
        piece, _, _ = self.data[self.at :].partition(b"\xff")
        self.at += len(piece) + 1
        return piece

    def rest(self) -> bytes:
        rest, self.at = self.data[self.at :], len(self.data)
        return rest


def edited(members: dict[bytes, bytes], source: Input) -> bytes:
    """The object as JSON, or nearly: its members replaced, left out, doubled, moved and joined by others."""
    items = [*members.items()]
    for _ in range(MAX_EDITS):
        if not source or not items:
            break
        edit(items, source)
    return b"{" + b",".join(name + b":" + value for name, value in items) + b"}" + source.rest()


def edit(items: list[tuple[bytes, bytes]], source: Input) -> None:
    op, at = source.byte() % 9, source.byte() % len(items)
    name, value = items.pop(at)
    put = partial(items.insert, at)
    match op:
        case 0:
            put((name, source.piece()))
        case 1:
            put((name, source.choice(snippets.VALUES)))
        case 2:
            put((name, repeated(source)))
        case 3:
            put((name, value))
            items.insert(source.byte() % len(items), (name, source.piece() or value))
        case 4:
            put((b'"' + source.piece() + b'"', source.choice(snippets.VALUES)))
            put((name, value))
        case 5:
            put((source.choice(snippets.NAMES), source.choice(snippets.VALUES)))
            put((name, value))
        case 6:
            put((source.piece() + name + source.piece(), source.piece() + value + source.piece()))
        case 7:
            put((name, b'"' + b"x" * source.choice(snippets.LENGTHS) + b'"'))
        case _:
            pass  # left out


def repeated(source: Input) -> bytes:
    """A long string, or what begins with a bracket many times, without quotes."""
    piece, times = source.piece(), 1 + source.number() % 2048
    return piece * times if piece[:1] in {b"[", b"{"} else b'"' + piece * times + b'"'
