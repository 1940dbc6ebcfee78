"""``workbench benchmark``: decode and prefill speed against Hugging Face, on this machine's CPU."""
