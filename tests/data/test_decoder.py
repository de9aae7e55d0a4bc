"""The decoding process: what ends or stalls it costs one row, and it never outlives its parent."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import poison_images
import pytest
from PIL import Image

from pipelines.data.config import ImageConfig
from pipelines.data.images.decoder import Decoder
from pipelines.data.images.prepare import ImageRefused, hash_image, prepare_image

CONFIG = ImageConfig()


def photograph(side_px: int, kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((side_px, side_px)).save(buffer, kind)
    return buffer.getvalue()


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_it_gives_what_prepare_image_gives():
    with Decoder(CONFIG) as decoder:
        for data in (photograph(100), photograph(900), photograph(300, "GIF")):
            assert decoder.prepare(data) == prepare_image(data, CONFIG)
        for bad in (b"", b"<html>", photograph(100)[:500]):
            with pytest.raises(ImageRefused) as refusal:
                decoder.prepare(bad)
            with pytest.raises(ImageRefused) as expected:
                prepare_image(bad, CONFIG)
            assert refusal.value.args == expected.value.args


def test_another_function_can_take_its_place():
    data = photograph(100)
    with Decoder(CONFIG, hash_image) as decoder:
        assert decoder.prepare(data) == hash_image(data, CONFIG)
    with Decoder(CONFIG, poison_images.obey) as decoder:
        assert decoder.prepare(b"same x") == {"image": b"same x"}
        assert decoder.prepare(b"change " + bytes(3_000_000)) == {"image": bytes(3_000_000)}
        assert decoder.prepare(b"change ") == {"image": b""}


@pytest.mark.parametrize(
    ("poison", "detail"),
    [
        (b"segfault", "killed by SIGSEGV"),
        (b"exit 3", "exit status 3"),
        (b"raise", "RuntimeError: not said to be refused"),
        (b"sleep 60", "not done after 0.5 s"),
        (b"eat 8000000000", "MemoryError"),
    ],
)
def test_a_poison_image_costs_its_own_row_alone(poison, detail):
    config = ImageConfig(decode_timeout_s=0.5, jpeg_quality=77)
    with Decoder(config, poison_images.obey) as decoder:
        for _ in range(2):
            assert decoder.prepare(b"fine")["quality"] == 77
            with pytest.raises(ImageRefused) as refusal:
                decoder.prepare(poison)
            assert refusal.value.args[0] == "decoder_crash"
            assert detail in refusal.value.args[1]
        assert decoder.prepare(b"fine")["quality"] == 77


def test_no_row_is_lost_to_a_kill_from_outside(tmp_path):
    with Decoder(CONFIG, poison_images.obey) as decoder:
        first = decoder.prepare(b"fine")["pid"]
        os.kill(first, signal.SIGKILL)  # between images
        assert gone(first)
        second = decoder.prepare(b"fine")["pid"]
        assert second != first
        third = decoder.prepare(b"once " + bytes(tmp_path / "seen"))["pid"]  # at an image
        assert third not in (first, second)


def test_closing_ends_the_child():
    with Decoder(CONFIG, poison_images.obey) as decoder:
        pid = decoder.prepare(b"fine")["pid"]
    assert gone(pid)


@pytest.mark.parametrize("busy", [False, True])
def test_the_child_does_not_outlive_its_parent(busy):
    code = f"""
import poison_images, threading
from pipelines.data.config import ImageConfig
from pipelines.data.images.decoder import Decoder
decoder = Decoder(ImageConfig(decode_timeout_s=2), poison_images.obey)
print(decoder.prepare(b"fine")["pid"], flush=True)
decoder.prepare(b"sleep 60") if {busy} else threading.Event().wait()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_the_child_imports_neither_torch_nor_ray():
    code = """
import sys
import pipelines.data.images.decoder
print([name for name in ("torch", "ray", "pyarrow") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    seen = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert seen.strip() == "[]"
