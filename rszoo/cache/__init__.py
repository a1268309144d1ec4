"""From a name to files on this machine: found, or made once, whoever asks."""
