"""Turn a checkpoint into a model folder: `zerosearch export CHECKPOINT FOLDER`.

A run that was stopped leaves only checkpoints; one that ended has its model in `policy/` already.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from zerosearch.command_line.flags import ending_in_a_sentence, flag_parser
from zerosearch.core.ranges import Dtype


def main() -> None:
    """Command line."""
    parser = flag_parser("export", __doc__)
    parser.add_argument("checkpoint", type=Path, help="file or folder of a run's checkpoints/")
    parser.add_argument("folder", type=Path, help="where the model is written")
    parser.add_argument("--dtype", choices=get_args(Dtype), help="default: as the run computed")
    arguments = parser.parse_args()
    from zerosearch.policy.conversion import convert

    with ending_in_a_sentence():
        print(convert(arguments.checkpoint, arguments.folder, arguments.dtype))
