"""The openpi policy protocol in a few lines: what a robot sends over its WebSocket and gets back.

The server speaks first, one binary MessagePack frame of metadata; then each observation is answered by
one frame of actions. A text frame is the server's traceback. Arrays travel as maps with the keys
`__ndarray__`, `data`, `dtype` and `shape`, all bytes. Imports nothing of the project.
"""

from __future__ import annotations

from typing import Any

import msgspec

IMAGE_SIDE = 224  # pixels; what openpi's clients resize to before they send


class PolicyError(Exception):
    """The server answered with a traceback, or with something that is no map."""


def array(data: bytes, dtype: str, shape: tuple[int, ...]) -> dict[bytes, Any]:
    """Map that stands for a numpy array of `dtype` (as numpy's `dtype.str`) and `shape`."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def observation(image_side: int = IMAGE_SIDE) -> bytes:
    """One observation of an arm: two camera images of `image_side` pixels square, state and prompt."""
    pixels = bytes(range(256)) * (image_side * image_side * 3 // 256 + 1)
    image = array(pixels[: image_side * image_side * 3], "|u1", (image_side, image_side, 3))
    return msgspec.msgpack.encode(
        {
            "observation/image": image,
            "observation/wrist_image": image,
            "observation/state": array(bytes(8 * 8), "<f8", (8,)),
            "prompt": "pick up the red cup",
        }
    )


def read_map(frame: bytes | str) -> dict[Any, Any]:
    """Decode a frame of metadata or actions; PolicyError when it is neither."""
    if isinstance(frame, str):
        raise PolicyError(frame.strip().splitlines()[-1] if frame.strip() else "an empty text frame")
    try:
        decoded = msgspec.msgpack.decode(frame)
    except msgspec.DecodeError as error:
        raise PolicyError(f"not MessagePack: {error}") from error
    if not isinstance(decoded, dict):
        raise PolicyError(f"a {type(decoded).__name__} where a map belongs")
    return decoded
