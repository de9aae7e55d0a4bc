"""What gpu_acceptance.py asks of a machine with GPUs, a section in each module."""
