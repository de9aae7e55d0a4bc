"""A GPU without a GPU: whole training steps on fake tensors of device cuda, counted by operation.
Used by gpu_roofline.py, which predicts a step's time from the counts, and by tests/gpu_free."""
