"""Symptoms written by a language model."""
