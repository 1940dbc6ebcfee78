"""How long a GPU takes from the start of a process to the first token of a prompt, when kernels lie compiled on disk.

    python -m workbench.evaluation.second_start [--preset internlm-7b] [--mode int4] [--tokens 100]

starts a process twice. Each imports the package, packs random weights, reads a prompt and says when it had the first
token and the first one after that, which needs the captured decoding step. The first start compiles whatever
``WORKBENCH_CACHE`` does not hold yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from workbench.backends.kernels import require_gpu
from workbench.errors import WorkbenchError
from workbench.evaluation.gpu_benchmark import dummy_weights
from workbench.evaluation.gpu_options import GPU_MODES
from workbench.model.presets import PRESETS
from workbench.recipe import BuildLimits
from workbench.runtime.cuda_session import CudaOptions, CudaSession

ROOM = 16  # tokens that may follow the prompt


@dataclass(frozen=True)
class Start:
    """Seconds since a process was started.

    Attributes:
        imported: the package and torch.
        opened: weights are packed on the GPU.
        first_token, second_token: of the prompt, and of the first decoding step.
    """

    imported: float
    opened: float
    first_token: float
    second_token: float


def limits_of(tokens: int) -> BuildLimits:
    """Room for one prompt of so many tokens."""
    return BuildLimits(max_batch_size=1, max_input_len=tokens, max_output_len=ROOM)


def started(preset: str, mode: str, tokens: int) -> Start:
    """Start a process that reads a prompt of so many tokens, and wait for it.

    Raises:
        RuntimeError: it failed; its last words.
    """
    words = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--preset", preset, "--mode", mode]
    words += ["--tokens", str(tokens), "--child", repr(time.time())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:] or f"exit code {done.returncode}")
    return Start(**json.loads(done.stdout.strip().splitlines()[-1]))


def first_tokens(preset: str, mode: str, tokens: int, began: float) -> Start:
    """What the process does; ``began`` is the time of its start."""
    imported = time.time() - began
    config = PRESETS[preset]
    session = CudaSession(config, dummy_weights(config, GPU_MODES[mode]), CudaOptions(torch.float16, limits_of(tokens)))
    torch.cuda.synchronize()
    opened = time.time() - began
    ids = torch.randint(0, config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    session.prefill([ids]).argmax(-1).tolist()
    first = time.time() - began
    session.decode_greedy().tolist()
    return Start(imported, opened, first, time.time() - began)


def main(words: Sequence[str] | None = None) -> int:
    """Print both starts; 1 if one fails, 2 without a GPU or for no tokens."""
    parser = argparse.ArgumentParser(
        prog="python -m workbench.evaluation.second_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=PRESETS, default="internlm-7b", help="sizes of the model")
    parser.add_argument("--mode", choices=GPU_MODES, default="int4", help="weight type")
    parser.add_argument("--tokens", type=int, default=100, help="of the prompt")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    try:
        require_gpu("timing a start", otherwise="")
        limits_of(args.tokens)
        if args.child is not None:
            print(json.dumps(asdict(first_tokens(args.preset, args.mode, args.tokens, args.child))))
            return 0
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in ("first", "second"):
        try:
            start = started(args.preset, args.mode, args.tokens)
        except RuntimeError as error:
            print(f"error: the {name} start failed: {error}", file=sys.stderr)
            return 1
        parts = f"imports {start.imported:.1f}, weights packed {start.opened:.1f}"
        print(f"{name} start: {parts}, first token {start.first_token:.1f}, second token {start.second_token:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
