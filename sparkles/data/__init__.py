"""From annotation files to batches: annotations -> samples -> token ids with image slots -> padded batches.

Reading order: `annotations`, `images`, `encoding`, `collate`, `mixture`, `datamodule`.
"""
