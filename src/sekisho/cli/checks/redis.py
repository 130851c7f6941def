"""Redis, reached as the server reaches it: by subscribing to a channel."""

import asyncio
from typing import Final

from sekisho.cli.checks.finding import Finding, Level
from sekisho.cli.output import masked_url
from sekisho.errors import StartRefused
from sekisho.storage.redis import RedisGrapevine

_PATIENCE_S: Final = 1.0
_SILENT: Final = "no answer within a second"


async def redis_check(url: str | None) -> Finding:
    """Without one there is nothing to ask."""
    if url is None:
        return Finding(level=Level.OK, name="redis", seen="none is set, and one node needs none")
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(why: str) -> None:
        if not answer.done():
            answer.set_result(_SILENT if why == TimeoutError.__name__ else why)

    try:
        grapevine = RedisGrapevine(url, "sekisho:doctor", on_lost=tell, on_back=lambda: None)
    except StartRefused as error:
        return Finding(level=Level.ERROR, name="redis", seen=error.detail, do="Correct SEKISHO_REDIS_URL.")
    listening = asyncio.create_task(grapevine.listen(lambda: tell("")))
    try:
        async with asyncio.timeout(_PATIENCE_S):
            why = await answer
    except TimeoutError:
        why = _SILENT
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await grapevine.close()
    if not why:
        return Finding(level=Level.OK, name="redis", seen=f"{masked_url(url)} answers")
    return Finding(
        level=Level.ERROR,
        name="redis",
        seen=f"{masked_url(url)} cannot be used ({why}), so each node counts failed attempts alone, more strictly",
        do="See that it runs, and that SEKISHO_REDIS_URL says where; or unset it.",
    )
