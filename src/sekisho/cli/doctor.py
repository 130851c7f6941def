"""``sekisho doctor``: is this deployment as it should be?"""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer

from sekisho.cli.checks import configuration
from sekisho.cli.checks.database import database_checks
from sekisho.cli.checks.finding import Finding, Level, crashed, looked
from sekisho.cli.checks.keys import Keys
from sekisho.cli.checks.redis import redis_check
from sekisho.cli.output import AsJson, printable
from sekisho.errors import StartRefused
from sekisho.settings import Settings
from sekisho.wire import now_s


def doctor(
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 for warnings, too.")] = False,
) -> None:
    """Look at this deployment, and say for each finding what to do. Nothing is changed.

    Run it with the server's variables, in its folder, as its user. Exit code 0 when there are no errors (with --strict:
    neither errors nor warnings), else 1. Notes never count.
    """
    findings = examined()
    if as_json:
        typer.echo(json.dumps([_fields(finding) for finding in findings], indent=2))
    else:
        _show(findings)
    worst = max(finding.level for finding in findings)
    if worst >= (Level.WARNING if strict else Level.ERROR):
        raise typer.Exit(1)


def examined() -> list[Finding]:
    """Everything that was found. No check keeps another one from looking, except that settings must be readable."""
    try:
        settings = Settings()
    except StartRefused as refused:
        do = "Correct it; the rest is looked at then. docs/settings.md has every variable."
        return [Finding(level=Level.ERROR, name="settings", seen=fault, do=do) for fault in refused.faults]
    keys = Keys(settings, now=now_s())
    findings = [_read(settings)]
    findings += looked("user", configuration.user)
    findings += looked("issuer", lambda: configuration.issuer(settings))
    findings += looked("audience", lambda: configuration.audience(settings))
    findings += looked("proxies", lambda: configuration.proxies(settings))
    findings += looked("origins", lambda: configuration.origins(settings))
    findings += looked("lifetimes", lambda: configuration.lifetimes(settings))
    findings += looked("nodes", lambda: configuration.nodes(settings))
    findings += looked("keys", keys.read)
    if (key_set := keys.key_set) is not None:
        findings += looked("key_algorithm", lambda: keys.algorithm(key_set))
        findings += looked("key_age", lambda: keys.age(key_set))
        findings += looked("key_waiting", lambda: keys.waiting(key_set))
        findings += looked("key_retirable", lambda: keys.retirable(key_set))
    return findings + asyncio.run(_asked(settings, keys))


async def _asked(settings: Settings, keys: Keys) -> list[Finding]:
    findings: list[Finding] = []
    try:  # what was found before a crash stays found
        await database_checks(settings.database_url.get_secret_value(), keys.key_set, tell=findings.append)
    except Exception as error:  # noqa: BLE001 - as for every other check
        findings.append(crashed("database", error))
    try:
        findings.append(await redis_check(settings.redis_url.get_secret_value() if settings.redis_url else None))
    except Exception as error:  # noqa: BLE001
        findings.append(crashed("redis", error))
    return findings


def _read(settings: Settings) -> Finding:
    number, of = len(settings.model_fields_set), len(type(settings).model_fields)
    return Finding(level=Level.OK, name="settings", seen=f"{number} of {of} are set; sekisho settings shows all")


def _fields(finding: Finding) -> dict[str, str | None]:
    return {
        "level": finding.level.name.lower(),
        "name": finding.name,
        "seen": finding.seen,
        "do": finding.do or None,
    }


def _show(findings: Sequence[Finding]) -> None:
    """One finding, one line, however long: for grep."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        said = f"{finding.seen}. {finding.do}" if finding.do else finding.seen
        typer.echo(f"{finding.level.name.lower():7}  {finding.name:{width}}  {printable(said)}")
    counted = Counter(finding.level for finding in findings)
    worse = [(counted[level], level.name.lower()) for level in (Level.ERROR, Level.WARNING) if counted[level]]
    told = ", ".join(f"{number} {word}{'s' if number > 1 else ''}" for number, word in worse)
    typer.echo(f"{told or 'Nothing worse than a note'}.")
