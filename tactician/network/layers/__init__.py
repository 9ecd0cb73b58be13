"""Layer classes, by topic; each module also has the ``add_*`` methods of its layers."""
