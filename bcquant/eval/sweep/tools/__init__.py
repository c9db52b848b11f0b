"""One tool, one file exporting `TOOL`: its points, and how a point becomes a model."""
