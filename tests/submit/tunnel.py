"""What `kubectl port-forward ... LOCAL:REMOTE` does: a loopback port that leads to another one."""

import socket
import sys
import threading
from urllib.parse import urlparse


def pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


local = int(sys.argv[1].split(":")[0])
there = urlparse(sys.argv[2])
with socket.create_server(("127.0.0.1", local)) as server:
    while True:
        near, _ = server.accept()
        far = socket.create_connection((there.hostname, there.port))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=pump, args=pair, daemon=True).start()
