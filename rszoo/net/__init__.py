"""Everything about a single URL: its properties, requests to it, and downloads that can be resumed."""
