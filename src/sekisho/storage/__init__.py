"""Rows and the conditions on them; no policy. ``ports`` is what the services see, ``engine`` what the root builds."""
