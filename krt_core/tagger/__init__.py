"""How the model of a run is used: tags of photos, thresholds, and files for other programs (docs/tagging.md)."""
