"""Things that know nothing of video: registry, distributed, logging, files."""
