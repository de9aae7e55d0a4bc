"""Functions in the place of `prepare_image` whose images end or stall the decoding process."""

import os
import signal
import time
from pathlib import Path

from pipelines.data.images.prepare import ImageRefused


def obey(data: bytes, config) -> dict:
    """Do what the image says."""
    word, _, rest = data.partition(b" ")
    match word:
        case b"segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"exit":
            os._exit(int(rest))
        case b"sleep":
            time.sleep(float(rest))
        case b"once":  # breaks the first time that it is tried
            if not Path(rest.decode()).exists():
                Path(rest.decode()).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case b"eat":
            return {"eaten": len(bytearray(int(rest)))}
        case b"raise":
            raise RuntimeError("not said to be refused")
        case b"refuse":
            raise ImageRefused("too_small", "as asked")
        case b"change":
            return {"image": rest}
        case b"same":
            return {"image": data}
    return {"pid": os.getpid(), "quality": config.jpeg_quality}
