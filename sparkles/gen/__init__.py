"""Dialogue data written by a language model: what it replies becomes dialogues, or a counted reason why not."""
