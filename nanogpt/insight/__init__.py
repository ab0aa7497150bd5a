"""Analyses of texts, models and finished runs, and the plots and reports made of them."""
