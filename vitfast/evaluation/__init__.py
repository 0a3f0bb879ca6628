"""Evaluation, prediction and plots of a trained model."""
