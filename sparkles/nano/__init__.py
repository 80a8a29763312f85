"""The miniature: a world of drawn scenes, its language, its data sets, its judge and its pretrained weights.

The core never imports this package; configuration reaches it by `_target_`.
"""
