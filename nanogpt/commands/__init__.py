"""The commands ``fit``, ``validate``, ``predict``, ``score`` and ``ladder``."""
