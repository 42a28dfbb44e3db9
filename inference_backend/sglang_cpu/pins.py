"""What the environment holds. Each group is one `pip install`; the order matters.

torch first and exactly: another requirement line (`torch>=…`, or SGLang's own) can bring gigabytes of CUDA.
SGLang and its kin come last and without their dependencies, which are for GPUs; what its CPU path imports
stands in `IMPORTED`.
"""

from __future__ import annotations

from typing import Final

SGLANG: Final = "0.5.23"
TORCH: Final = ("torch==2.13.0",)
IMPORTED: Final = (
    # the HTTP front end
    "fastapi",
    "uvicorn>=0.51",
    "uvloop",
    "python-multipart",
    "orjson",
    "msgspec",
    "pydantic",
    "aiohttp",
    "requests",
    "openai==2.8.0",
    "anthropic",
    # the model, its tokenizer and its grammar back ends
    "transformers==5.19.0",
    "tokenizers==0.23.2",
    "safetensors",
    "sentencepiece==0.2.1",
    "tiktoken",
    "partial_json_parser",
    "gguf",
    "einops",
    "numpy",
    "scipy",
    "pillow",
    "soundfile==0.13.1",
    "blobfile==3.0.0",
    "llguidance",
    "interegular",
    "jsonschema",
    "regex",
    # its processes and what they tell each other
    "pyzmq",
    "psutil",
    "setproctitle",
    "prometheus-client",
    "dill",
    "pybase64",
    "xxhash",
    "zstandard",
    "distro",
    "packaging",
    "loguru",
    "watchfiles",
    "IPython",
)
BARE: Final = (
    f"sglang=={SGLANG}",
    "torchvision==0.28.0",
    "apache-tvm-ffi==0.1.11",
    "compressed-tensors==0.18.0",
    "openai-harmony==0.0.4",
    "xgrammar==0.2.7",
)
