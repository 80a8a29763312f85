"""Sparkles: train, measure and talk to chat models that see several images at once."""

__version__ = "0.1.0"
