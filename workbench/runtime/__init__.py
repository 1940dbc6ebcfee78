"""Token ids in, token ids out: sessions, the KV cache, generation."""
