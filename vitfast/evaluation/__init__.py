"""Evaluation, prediction and reports of a trained model."""
