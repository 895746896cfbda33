"""The status page that a worker serves: read only, one page and its JSON."""
