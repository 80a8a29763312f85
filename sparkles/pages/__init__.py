"""Pages to look at: a run's report and a data set, each in one file.

Reading order: `page` (pictures, dialogues, what any page consists of), `dialogues` (a data set); a run's report is made
in `sparkles.eval.report`. Their templates, style and script lie in `templates`.
"""
