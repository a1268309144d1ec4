"""Files that appear whole or not at all: temporary names, staging, locks, the cache's places, a safetensors writer."""
