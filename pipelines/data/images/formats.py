"""The image formats that are read, by Pillow's name, with the endings of their files' names.
One list for the decoder, tars, folders and lists of paths."""

from __future__ import annotations

ENDINGS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
}
FORMATS = tuple(ENDINGS)
IMAGES = tuple(ending for endings in ENDINGS.values() for ending in endings)
# Images whose format is not read: each is a rejected row, so that it is counted.
UNREAD = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".svgz", ".psd", ".ico"),
    *(".tga", ".exr", ".hdr", ".pcx", ".ppm", ".pgm", ".pbm", ".pnm", ".eps", ".xcf", ".bpg"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".dds", ".flif"),
)
