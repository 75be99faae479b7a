"""What a person must see of the fleet's life, on the run's output."""

from __future__ import annotations

import time


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} fleet: {message}", flush=True)
