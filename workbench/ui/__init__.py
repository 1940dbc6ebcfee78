"""Widgets and plots; the only place that imports ipywidgets."""
