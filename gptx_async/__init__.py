"""gptx_async."""
