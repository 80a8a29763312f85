"""Weights from one form into another: `python -m sparkles.models.checkpoints merge-delta|export key=value ...`."""

import sys
from collections.abc import Callable

from sparkles.config import call
from sparkles.types import InputError

USAGE = """usage: python -m sparkles.models.checkpoints COMMAND key=value ...

  merge-delta base=FOLDER delta=FOLDER out=FOLDER [end_of_answer=TEXT]
      Add a Vicuna delta to LLaMA weights, both in the format of transformers. Goes on where it was interrupted.
      end_of_answer: '###' (v0) or '</s>' (v1.1), where neither the delta's name nor its vocabulary tells it.

        python -m sparkles.models.checkpoints merge-delta base=llama-7b-hf delta=vicuna-7b-delta-v0 out=vicuna-7b-v0

  export checkpoint=FILE out=FILE|FOLDER [config=FILE]
      Write the trained weights of a run's .ckpt, of our .safetensors or of the original's .pth as
        out=NAME.safetensors   with hashes of the base weights, the tokenizer and the prompt format
        out=NAME.pth           for the original's code: one linear projection, nothing else
        out=NAME               a folder for from_pretrained and the hub; config is the run's config.yaml, which is
                               found by itself for runs/NAME/checkpoints/*.ckpt

        python -m sparkles.models.checkpoints export checkpoint=runs/mine/checkpoints/last.ckpt out=mine.pth
"""


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE, end="")
        sys.exit(0 if arguments else 2)
    name, *pairs = arguments
    if name not in ("merge-delta", "export"):
        sys.exit(f"unknown command {name!r}; expected merge-delta or export. --help explains them")
    try:
        call(name, _command(name), pairs)
    except (InputError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")


def _command(name: str) -> Callable[..., None]:
    if name == "merge-delta":
        from sparkles.models.checkpoints.deltas import merge_delta

        return merge_delta
    from sparkles.models.checkpoints.export import export_projection

    return export_projection


if __name__ == "__main__":
    main()
