"""The page of a search: what was found, and where each sentence looks in the best images.
From hits to HTML with the report's page kit; a page loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caft.inputs import picture_pixels
from caft.pictures import data_url, to_canvas
from pipelines.embed.embedding import Embedding
from pipelines.evaluate.adapters import Adapter
from pipelines.evaluate.adapters.own import CAFTAdapter
from pipelines.evaluate.report.anatomy import about_heat, anatomy
from pipelines.evaluate.report.page import page_environment
from pipelines.search.model import Query
from pipelines.search.pictures import read_images
from pipelines.search.rank import Hit

TEMPLATES = Path(__file__).parent / "templates"
MOST_SENTENCES = 8  # heat maps of an image


def search_page(
    embedding: Embedding,
    adapter: Adapter,
    query: Query,
    hits: Sequence[Hit],
    heat_maps: int,
    caption: str | None,
    facts: dict[str, str],
) -> str:
    """What was found, as one HTML page.

    Args:
        heat_maps: how many of the best images are shown with a heat map for each sentence.
        facts: names and values for the page's end.
    """
    rows = read_images(embedding, [hit.row for hit in hits])
    found = []
    for number, (hit, row) in enumerate(zip(hits, rows, strict=True)):
        shown: dict[str, Any] = {"hit": hit, "src": None, "why": row.get("detail", "")}
        if row["image"] is not None:
            shown["src"] = _drawn(row["image"])
            if number < heat_maps and isinstance(adapter, CAFTAdapter) and query.sentences:
                rule = adapter.model.config.image.preprocess
                shown["anatomy"] = anatomy(
                    adapter.model,
                    picture_pixels(row["image"], rule),
                    (),
                    query.sentences,
                    MOST_SENTENCES,
                    rule,
                )
        found.append(shown)
    about = about_heat(adapter.model) if isinstance(adapter, CAFTAdapter) else ""
    return (
        page_environment(TEMPLATES)
        .get_template("search.html.j2")
        .render(
            caption=caption,
            image=None if query.image is None else _drawn(query.image),
            found=found,
            rows=embedding.rows,
            about_heat=about,
            facts=facts,
        )
    )


def _drawn(image: bytes) -> str:
    return data_url(to_canvas(picture_pixels(image, "squash")))
