"""`ltfast tune`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ltfast.cli.options import some_of
from ltfast.cli.parser import command_parser
from ltfast.terminal import say

if TYPE_CHECKING:
    from ltfast.benchmark.tune import Answer

ABOUT = "find the fastest launch settings of each GPU kernel on this machine's GPU, and use them from then on"


def tune(argv: Sequence[str]) -> int:
    parser = command_parser("tune", ABOUT)
    parser.add_argument("--ops", help="comma-separated names of ops; default: all; an unknown name lists them")
    parser.add_argument("--out", help="file to write; default: the user's own, which launches look in first "
                        "(`ltfast info` shows it)")  # fmt: skip
    args = parser.parse(argv)

    import torch

    from ltfast.engine import check
    from ltfast.errors import SettingError

    check(torch.cuda.is_available(), "device", "a GPU that PyTorch finds; launch settings are found by timing kernels",
          "none")  # fmt: skip

    from ltfast.benchmark import tune as tuning
    from ltfast.ops.core import tuned
    from ltfast.ops.core.launch import chip_of

    ops = some_of("ops", args.ops, tuning.op_names())
    device = torch.device("cuda", torch.cuda.current_device())
    path = tuned.user_file(chip_of(device).name) if args.out is None else Path(args.out)
    if path is None:
        raise SettingError("out", "a file, because this user has no home folder for a cache", None)
    answers = tuning.tune(device, ops=ops or None, show=_show)
    tuning.write(path, device, answers)
    better = sum(bool(answer.changes) for answer in answers)
    say(f"written to {path}: {better} of {len(answers)} launches differ from the rules")
    return 0


def _show(answer: "Answer") -> None:
    name, arguments = answer.key
    found = ", ".join(f"{key} {value}" for key, value in answer.changes.items()) or "the rule's"
    say(
        f"{name} ({arguments}): {found}; {answer.best_ms:.4f} ms a step of {answer.case}, {answer.rule_ms:.4f} ms by "
        f"the rule; {answer.tried} tried"
    )
