"""The endpoints that tell a router about the engine, and the few that steer it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from inference_backend.frames import WEIGHT_VERSION, error_body
from inference_backend.replies import PLAIN_HEADERS, bare, crashed, json_bytes, json_reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from inference_backend.driver import Driver
    from inference_backend.journal import Journal
    from inference_backend.lifecycle import Lifecycle
    from inference_backend.settings import Settings

VERSION = "0.5.23"
_HEALTH_S = 1.0  # SGLang generates a token and polls for it once a second
_SECTIONS = ("core", "memory", "spec", "lora", "disagg", "queues")


class Introspection:
    """Handlers that read the engine's state."""

    __slots__ = ("_driver", "_journal", "_lifecycle", "_registry", "_settings", "_started")

    def __init__(self, settings: Settings, driver: Driver, journal: Journal, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._driver = driver
        self._journal = journal
        self._lifecycle = lifecycle
        self._started = time.time()
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(settings, driver, journal))

    def routes(self) -> list[web.RouteDef]:
        """Every route of this module."""
        both = [("/model_info", self.model_info), ("/server_info", self.server_info)]
        return [
            _get("/", self.root),
            _get("/ready", self.ready),
            _get("/health", self.health),
            _get("/health_generate", self.health),
            _get("/v1/models", self.models),
            _get("/v1/models/{id:.+}", self.model),
            _get("/v1/loads", self.loads),
            _get("/metrics", self.metrics),
            _get("/metrics/", self.metrics),
            *(_get(path, handler) for path, handler in both),
            *(_get(path.replace("/", "/get_"), handler) for path, handler in both),
            web.post("/abort_request", self.abort_request),
            _get("/flush_cache", self.flush_cache),
            web.post("/flush_cache", self.flush_cache),
        ]

    async def root(self, http: web.Request) -> web.Response:
        """Say that somebody is here."""
        return json_reply("SGLang is running")

    async def ready(self, http: web.Request) -> web.Response:
        """At once: 200, or 503 while starting or draining."""
        return bare(200 if self._lifecycle.is_ready else 503)

    async def health(self, http: web.Request) -> web.Response:
        """As /ready, but an idle engine takes a second to prove itself."""
        if self._lifecycle.is_ready and not self._journal.in_flight:
            cost = self._settings.health_s
            await asyncio.sleep(_HEALTH_S * self._settings.time_scale if cost is None else cost)
        return await self.ready(http)

    async def models(self, http: web.Request) -> web.Response:
        """List the one model."""
        return json_reply({"object": "list", "data": [self._card()]})

    async def model(self, http: web.Request) -> web.Response:
        """Show one model's card."""
        name = http.match_info["id"]
        if name != self._settings.model_name:
            error = {
                "message": f"The model '{name}' does not exist",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
            return json_reply({"error": error}, 404)
        return json_reply(self._card())

    async def model_info(self, http: web.Request) -> web.Response:
        """Say what the model is."""
        return json_reply(
            {
                "model_path": self._settings.model_name,
                "tokenizer_path": self._settings.model_name,
                "is_generation": True,
                "preferred_sampling_params": None,
                "weight_version": WEIGHT_VERSION,
                "has_image_understanding": False,
                "has_audio_understanding": False,
                "model_type": "simulated",
                "architectures": ["SimulatedForCausalLM"],
            }
        )

    async def server_info(self, http: web.Request) -> web.Response:
        """Say what the server was started with, and what its scheduler does now."""
        settings = self._settings
        scheduler = self._driver.scheduler
        return json_reply(
            {
                "model_path": settings.model_name,
                "served_model_name": settings.model_name,
                "host": settings.host,
                "port": settings.port,
                "tp_size": 1,
                "dp_size": 1,
                "page_size": settings.page_tokens,
                "chunked_prefill_size": settings.profile.chunk_tokens,
                "max_running_requests": scheduler.max_running,
                "max_queued_requests": scheduler.max_queued,
                "context_length": settings.profile.context_tokens,
                "max_total_num_tokens": scheduler.kv.capacity,
                "max_req_input_len": settings.profile.context_tokens - 1,
                "speculative_algorithm": "SIMULATED" if settings.acceptance else None,
                "enable_metrics": True,
                "enable_cache_report": settings.cache_report,
                "kv_events": None,
                "frontend": "python",
                "version": VERSION,
                "internal_states": [scheduler.loads()],
                "simulated": {"profile": settings.profile.name, "time_scale": settings.time_scale},
            }
        )

    async def loads(self, http: web.Request) -> web.StreamResponse:
        """Load per data-parallel rank; there is one."""
        asked = http.query.get("include", "all").split(",")
        sections = set(_SECTIONS) if "all" in asked else set(asked)
        unknown = sections - set(_SECTIONS)
        if unknown:
            return await crashed(http)
        now = time.time()
        load: dict[str, Any] = {"timestamp": now, "dp_rank": 0, **self._driver.scheduler.loads()}
        load.update(self._sections(sections))
        return json_reply(
            {
                "timestamp": datetime.fromtimestamp(now, UTC).isoformat(),
                "version": VERSION,
                "accelerator": None,
                "num_accelerators": 1,
                "loads": [load],
            }
        )

    async def metrics(self, http: web.Request) -> web.Response:
        """Prometheus text, compressed for those who accept it."""
        reply = web.Response(
            body=generate_latest(self._registry),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8", **PLAIN_HEADERS},
        )
        if "gzip" in http.headers.get("accept-encoding", ""):
            reply.enable_compression(web.ContentCoding.gzip)
        return reply

    async def abort_request(self, http: web.Request) -> web.Response:
        """{"rid": prefix} or {"abort_all": true}; 200 whether or not anything matched, as SGLang does."""
        try:
            body = msgspec.json.decode(await http.read(), type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return json_bytes(400, error_body(400, str(error)))
        prefix = body.get("rid") or ""
        everything = bool(body.get("abort_all"))
        for record in list(self._journal.open):
            if record.request is not None and (everything or (prefix and record.rid.startswith(prefix))):
                self._driver.abort(record.request)
        return bare()

    async def flush_cache(self, http: web.Request) -> web.Response:
        """Forget the prefix cache; refused while requests run."""
        scheduler = self._driver.scheduler
        if scheduler.running or scheduler.waiting:
            return bare(400, "Flush cache failed.\n")
        scheduler.kv.flush()
        return bare(
            200,
            "Cache flushed.\nPlease check backend logs for more details. "
            "(When there are running or waiting requests, the operation will not be performed.)\n",
        )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._settings.model_name,
            "object": "model",
            "created": int(self._started),
            "owned_by": "sglang",
            "root": self._settings.model_name,
            "parent": None,
            "max_model_len": self._settings.profile.context_tokens,
        }

    def _sections(self, sections: set[str]) -> dict[str, Any]:
        scheduler = self._driver.scheduler
        found: dict[str, Any] = {}
        if "memory" in sections:
            found["memory"] = {
                "weight_gb": 0.0,
                "kv_cache_gb": 0.0,
                "graph_gb": 0.0,
                "token_capacity": scheduler.kv.capacity,
            }
        if "spec" in sections and self._settings.acceptance:
            found["speculative"] = {
                "accept_length": _accept_length(self._driver),
                "accept_rate": _accept_rate(self._driver),
            }
        if "queues" in sections:
            found["queues"] = {
                "waiting": len(scheduler.waiting),
                "grammar": 0,
                "paused": 0,
                "retracted": sum(1 for request in scheduler.waiting if request.retracted),
                "prealloc_ready": 0,
            }
        return found


def _get(path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.RouteDef:
    return web.get(path, handler, allow_head=False)  # FastAPI answers HEAD with 405


class EngineCollector(Collector):
    """The `sglang:` series, computed at scrape."""

    def __init__(self, settings: Settings, driver: Driver, journal: Journal) -> None:
        self._driver = driver
        self._journal = journal
        self._labels = {
            "model_name": settings.model_name,
            "engine_type": "unified",
            "tp_rank": "0",
            "pp_rank": "0",
            "moe_ep_rank": "0",
            "dp_rank": "0",
        }

    def collect(self) -> Iterable[Metric]:
        """Gauges, then counters."""
        scheduler = self._driver.scheduler
        core = scheduler.loads()
        totals = scheduler.totals
        gauges = {
            "num_running_reqs": core["num_running_reqs"],
            "num_queue_reqs": core["num_waiting_reqs"],
            "num_grammar_queue_reqs": 0,
            "num_retracted_reqs": totals.retracted,
            "token_usage": core["token_usage"],
            "num_used_tokens": core["num_used_tokens"],
            "max_total_num_tokens": scheduler.kv.capacity,
            "kv_available_tokens": scheduler.kv.free,
            "kv_evictable_tokens": scheduler.kv.evictable,
            "gen_throughput": core["gen_throughput"],
            "cache_hit_rate": core["cache_hit_rate"],
            "utilization": core["utilization"],
            "spec_accept_length": _accept_length(self._driver),
            "spec_accept_rate": _accept_rate(self._driver),
            "http_requests_active": self._journal.in_flight,
        }
        counters = {
            "prompt_tokens": totals.prompt_tokens,
            "generation_tokens": totals.generation_tokens,
            "cached_tokens": totals.cached_tokens,
            "num_requests": totals.requests,
            "num_aborted_requests": totals.aborted,
            "spec_verify_calls": totals.verify_steps,
        }
        for name, value in gauges.items():
            yield self._one(GaugeMetricFamily, name, value)
        for name, value in counters.items():
            yield self._one(CounterMetricFamily, name, value)

    def _one(
        self, family: type[GaugeMetricFamily | CounterMetricFamily], name: str, value: float
    ) -> GaugeMetricFamily | CounterMetricFamily:
        metric = family(f"sglang:{name}", f"Simulated {name}.", labels=list(self._labels))
        metric.add_metric(list(self._labels.values()), value)
        return metric


def _accept_length(driver: Driver) -> float:
    totals = driver.scheduler.totals
    return round(totals.verify_emitted / totals.verify_steps, 4) if totals.verify_steps else 0.0


def _accept_rate(driver: Driver) -> float:
    drafts = driver.scheduler.drafts
    return round(max(_accept_length(driver) - 1, 0) / drafts, 4) if drafts else 0.0
