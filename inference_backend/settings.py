"""What one simulated engine is started with.  Seconds are wall seconds unless a name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference_backend.profiles import PROFILES, Profile


@dataclass(frozen=True, slots=True)
class Settings:
    """One field per option of `simulate`; the command line has the explanations."""

    host: str = "127.0.0.1"
    port: int = 0
    grpc_port: int | None = None  # None: no gRPC
    model: str = ""  # empty: the profile's
    profile: Profile = field(default_factory=lambda: PROFILES["qwen3-8b-h100"])
    time_scale: float = 1.0
    max_running: int | None = None
    max_queued: int | None = None
    kv_tokens: int | None = None
    page_tokens: int = 64
    acceptance: tuple[float, ...] = ()
    keep_alive_s: float = 5.0
    load_s: float = 0.0
    startup_s: float = 0.0
    health_s: float | None = None  # None: SGLang's one second, in simulated time
    drain_s: float = 10.0
    linger_s: float = 0.0
    unary_abort_s: float = 0.0
    mean_output_tokens: int = 128
    header_overrides: bool = False
    cache_report: bool = True
    history: int = 1_000
    seed: int = 0

    @property
    def model_name(self) -> str:
        """The model's name as served."""
        return self.model or self.profile.model
