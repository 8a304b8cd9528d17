"""The Hydra tree: every default stands here, the schema in ``fedwsa/schema/sections.py``."""
