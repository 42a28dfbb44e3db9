"""The simulated SGLang engine: composition of its parts, and its life from listen to exit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from inference_backend.completions import CHAT, COMPLETION, GENERATE, Completions
from inference_backend.driver import Driver
from inference_backend.introspection import Introspection
from inference_backend.journal import Journal
from inference_backend.lifecycle import Lifecycle
from inference_backend.probes import Probes
from inference_backend.ready import announce
from inference_backend.replies import json_reply
from inference_backend.scheduler import Scheduler

if TYPE_CHECKING:
    from inference_backend.settings import Settings

_HEAD_BYTES = 64 * 1024  # uvicorn's limit for a head; aiohttp's own is 8 KiB a line
_CLEANUP_S = 0.1  # aiohttp spends it twice on a stream that outlived the drain


def make_driver(settings: Settings) -> Driver:
    """One scheduler and what runs it; must be called inside the loop that will."""
    scheduler = Scheduler(
        settings.profile,
        max_running=settings.max_running,
        max_queued=settings.max_queued,
        kv_tokens=settings.kv_tokens,
        page_tokens=settings.page_tokens,
        acceptance=settings.acceptance,
        seed=settings.seed,
    )
    return Driver(scheduler, settings.time_scale, asyncio.get_running_loop())


def application(
    settings: Settings, driver: Driver, journal: Journal, lifecycle: Lifecycle
) -> web.Application:
    """All HTTP routes over one driver."""
    completions = Completions(settings, driver, journal, asyncio.get_running_loop())
    app = web.Application(client_max_size=0)  # no cap, as SGLang has none
    app.add_routes(
        [
            web.post("/v1/chat/completions", completions.handler(CHAT)),
            web.post("/v1/completions", completions.handler(COMPLETION)),
            web.post("/generate", completions.handler(GENERATE)),
            *Introspection(settings, driver, journal, lifecycle).routes(),
            *Probes(journal).routes(),
        ]
    )
    allowed: dict[str, list[str]] = {}
    for route in app.router.routes():
        if route.resource is not None:
            allowed.setdefault(route.resource.canonical, []).append(route.method)

    async def no_route(http: web.Request) -> web.Response:
        if http.path in allowed:
            reply = json_reply({"detail": "Method Not Allowed"}, 405)
            reply.headers["allow"] = ", ".join(allowed[http.path])
            return reply
        return json_reply({"detail": "Not Found"}, 404)

    app.router.add_route("*", "/{path:.*}", no_route)
    return app


async def serve(settings: Settings) -> None:
    """Listen, print the ready line, serve until SIGTERM, drain."""
    loop = asyncio.get_running_loop()
    if settings.load_s:
        await asyncio.sleep(settings.load_s)  # the port refuses while the weights load
    journal = Journal(settings.history)
    lifecycle = Lifecycle(settings.startup_s, loop)
    lifecycle.watch_signals()
    driver = make_driver(settings)
    runner = web.AppRunner(
        application(settings, driver, journal, lifecycle),
        handler_cancellation=True,  # a lost connection cancels its handler
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=settings.keep_alive_s,
        max_line_size=_HEAD_BYTES,
        max_field_size=_HEAD_BYTES,
        shutdown_timeout=_CLEANUP_S,
    )
    await runner.setup()
    services = None
    if settings.grpc_port is not None:
        from inference_backend.rpc.sglang import serve_scheduler  # noqa: PLC0415 -- of an extra, and slow to import

        services = await serve_scheduler(settings, driver, journal, lifecycle)
    # HTTP last: whoever finds /ready to answer finds gRPC there as well.
    site = web.TCPSite(runner, settings.host, settings.port, backlog=1_024)
    await site.start()
    announce("http", settings.host, runner.addresses[0][1], grpc_port=services.port if services else 0)
    await lifecycle.stopping.wait()
    if services is not None:
        await services.set_serving(serving=False)
    await lifecycle.drained(lambda: journal.in_flight, settings.drain_s, settings.linger_s)
    if services is not None:
        await services.stop()
    await runner.cleanup()
