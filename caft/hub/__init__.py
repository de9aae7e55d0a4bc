"""Models of Hugging Face's hub: repository.py fetches and publishes them, the rest is what an
exported folder carries so that transformers loads it."""
