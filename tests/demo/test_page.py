"""The page of `caft demo`: it finds what sentences speak of, and answers this machine alone."""

import base64
import http.client
import json
import threading

import cv2
import numpy as np
import pytest

from caft.errors import CheckpointError, ClusterError
from pipelines.demo.page import PAGE, SCENES, make_page


@pytest.fixture(scope="module")
def server():
    server = make_page(None, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    sent = {"Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    connection.request(method, path, None if body is None else json.dumps(body), sent)
    answer = connection.getresponse()
    return answer, answer.read()


def look(server, picture, text):
    answer, body = ask(server, "POST", "/look", {"picture": picture, "text": text})
    return answer.status, json.loads(body)


def brightness(url):
    data = np.frombuffer(base64.b64decode(url.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE).astype(float)


def test_each_scene_is_found_by_its_own_text_and_sentences_look_at_their_places(server):
    start = json.loads(ask(server, "GET", "/start")[1])
    assert len(start["scenes"]) == SCENES
    for n, caption in enumerate(start["captions"]):
        status, found = look(server, n, caption)
        assert status == 200
        assert found["ranking"][0] == n
        assert len(found["where"]) == caption.count(".")
        assert next(words for words, _ in found["seen"]) == "superpixels"
    _, found = look(server, 0, "In the upper left there is a large pink ring. The lower right")
    heat = brightness(found["where"][0][1])
    half = len(heat) // 2
    assert heat[:half, :half].mean() > 1.2 * heat[half:, half:].mean()


def test_an_image_of_one_s_own_is_read(server):
    photograph = cv2.imencode(".jpg", np.full((50, 80, 3), 120, np.uint8))[1].tobytes()
    status, found = look(server, base64.b64encode(photograph).decode(), "A grey wall.")
    assert status == 200
    assert brightness(found["where"][0][1]).shape[0] < brightness(found["where"][0][1]).shape[1]


@pytest.mark.parametrize(
    ("picture", "text", "said"),
    [
        (0, " ", "write 1 to 24 sentences"),
        (0, "One. " * 30, "write 1 to 24 sentences"),
        ("bm8gcGljdHVyZQ==", "A dog.", "image of 10 bytes cannot be decoded"),
        ("%%", "A dog.", "cannot be read"),
        (99, "A dog.", "cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_one_line(server, picture, text, said):
    status, found = look(server, picture, text)
    assert status == 400
    assert said in found["error"]
    assert "\n" not in found["error"]


def test_other_origins_and_other_names_of_this_machine_are_refused(server):
    assert ask(server, "GET", "/start", Host="evil.example")[0].status == 403
    assert ask(server, "POST", "/look", {}, Content_Type="text/plain")[0].status == 413
    answer, _ = ask(server, "GET", "/")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "//" not in PAGE.read_text().replace("<!doctype", "")  # nothing is loaded from elsewhere


def test_a_wrong_checkpoint_or_port_is_said(server, tmp_path):
    with pytest.raises(CheckpointError):
        make_page(str(tmp_path), 0)
    with pytest.raises(ClusterError, match=f"port {server.server_port} is in use"):
        make_page(None, server.server_port)
