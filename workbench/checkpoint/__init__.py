"""Files <-> weights: Hugging Face folders, the unified checkpoint, the embedded demo model."""
