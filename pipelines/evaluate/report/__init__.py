"""Pages about finished evaluations, each one HTML file that needs nothing beside it.
Made of `metrics.json` and `examples.json` alone, so that any page can be drawn again later."""
