"""A pytest plugin for applications that use Sekisho."""
