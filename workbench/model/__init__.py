"""The decoder, written once over a small set of operations. Start here: internlm.py, then ops.py."""
