"""From a name to files on this machine: found in the cache, downloaded, or converted once."""
