"""Fuzzes everything that reads a token or a key: coverage-guided, each answer compared with a second reading.

    .venv/bin/python tests/fuzz/fuzz_token.py                          # until it finds something, or Ctrl-C
    .venv/bin/python tests/fuzz/fuzz_token.py -max_total_time=600      # ten minutes; `make test-long` does this
    .venv/bin/python tests/fuzz/fuzz_token.py folder/                  # goes on with a corpus, and adds to it
    .venv/bin/python tests/fuzz/fuzz_token.py crash-1f3a…              # one input that was found, once more

Other options are libFuzzer's (-help=1). Exit status 0: nothing found. Otherwise what went wrong is printed, and the
input is kept in the working folder that is named at the start; there answers.json tells what was accepted and refused.

Random bytes never get past a signature. So the first byte of an input chooses a mode, and most modes sign what the
rest of the input asks for: any header and payload, or good ones with some members changed.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sekisho", "reference"]):
    import key_modes
    import token_modes

import snippets
from answers import answers
from inputs import Input

TELL_EVERY = 4096  # inputs
MODES = {
    mode.__name__: mode
    for mode in (
        token_modes.raw_token,
        token_modes.edited_token,
        token_modes.signed_parts,
        token_modes.edited_header,
        token_modes.edited_claims,
        token_modes.refresh_token,
        key_modes.key_set,
        key_modes.edited_key,
        key_modes.wire_base64,
        key_modes.wire_json,
    )
}


def one_input(data: bytes) -> None:
    source = Input(data)
    mode = source.choice([*MODES.values()])
    try:
        mode(source)
    except BaseException:
        sys.stderr.write(f"mode {mode.__name__}, input {data!r}\n")
        raise


def telling(answers_file: Path) -> Callable[[bytes], None]:
    """``one_input``, which also writes now and then what was answered how often: libFuzzer ends without a last word."""
    runs = itertools.count(1)

    def run(data: bytes) -> None:
        one_input(data)
        if next(runs) % TELL_EVERY == 0:
            table = {f"{what}: {answer}": count for (what, answer), count in sorted(answers.items())}
            answers_file.write_text(json.dumps(table, indent=2), "ascii")

    return run


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="sekisho-fuzz-"))
    sys.stderr.write(f"working folder: {work}\n")
    seeds, dictionary = work / "seeds", work / "dictionary"
    seeds.mkdir()
    for number, seed in enumerate(snippets.seeds([*MODES])):
        (seeds / f"{number:04}").write_bytes(seed)
    dictionary.write_text(snippets.dictionary(), "ascii")
    options = [f"-dict={dictionary}", f"-artifact_prefix={work}/", "-timeout=20", "-rss_limit_mb=2048", "-max_len=4096"]
    given = sys.argv[1:]
    names = [argument for argument in given if not argument.startswith("-")]
    corpora = [] if any(Path(name).is_file() for name in names) else [str(seeds)]
    atheris.Setup([sys.argv[0], *options, *given, *corpora], telling(work / "answers.json"))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
