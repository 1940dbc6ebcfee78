"""``workbench summarize``: summaries of articles by an engine and by Hugging Face, judged by ROUGE."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.calibration_flags import tell_of_the_hub
from workbench.cli.command import Command, Outcome, UsageError
from workbench.cli.progress_bars import ProgressBars
from workbench.cli.run import BACKENDS
from workbench.cli.tokenizer_flags import add_trust_flag

if TYPE_CHECKING:
    from workbench.evaluation.summarization import Article, Interval, Summaries, SummarizationOptions

DATA_TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
DATASET = "cnn_dailymail:3.0.0"


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--test_trt_llm", action="store_true", help="judge the engine")
    parser.add_argument("--test_hf", action="store_true", help="judge Hugging Face's model, on the CPU")
    parser.add_argument("--engine_dir", type=Path, metavar="ENG", help="engine folder (a checkpoint folder will do)")
    parser.add_argument("--hf_model_dir", type=Path, metavar="M", help="Hugging Face checkpoint")
    parser.add_argument("--tokenizer_dir", type=Path, metavar="M", help="(default: --hf_model_dir)")
    add_trust_flag(parser)
    parser.add_argument(
        "--data_type", choices=tuple(DATA_TYPES), default="fp16", help="of Hugging Face (default: fp16)"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the engine (default: auto)")
    data = parser.add_argument_group("articles")
    data.add_argument(
        "--dataset",
        default=DATASET,
        metavar="NAME[:CONFIG]",
        help=f"on the hub, a folder, or a .jsonl or .parquet file; columns article, highlights (default: {DATASET})",
    )
    data.add_argument("--split", default="test", help="part of the dataset (default: test)")
    data.add_argument("--dataset_dir", metavar="DIR", help="where downloads are kept")
    data.add_argument("--max_ite", type=int, default=20, metavar="N", help="articles to judge (default: 20)")
    data.add_argument("--batch_size", type=int, default=1, metavar="N", help="articles at once (default: 1)")
    data.add_argument("--max_input_length", type=int, default=923, metavar="N", help="of a prompt (default: 923)")
    data.add_argument("--output_len", type=int, default=100, metavar="N", help="of a summary (default: 100)")
    data.add_argument("--num_beams", type=int, default=1, metavar="N", help="1: generation is greedy")
    gate = parser.add_argument_group("judgement")
    gate.add_argument("--check_accuracy", action="store_true", help="fail when the engine's ROUGE-1 is too low")
    gate.add_argument(
        "--tensorrt_llm_rouge1_threshold", type=float, default=15.0, metavar="F1", help="too low (default: 15)"
    )
    gate.add_argument("--eval_ppl", action="store_true", help="also the perplexity of the reference summaries")


def _run(args: argparse.Namespace) -> Outcome:
    _check(args)

    from workbench.evaluation.summarization import METRICS, SummarizationOptions, difference, read_articles
    from workbench.runtime.tokenizer import load_tokenizer

    options = SummarizationOptions(args.output_len, args.max_input_length, args.batch_size, args.eval_ppl)
    _check_folders(args)
    tokenizer = load_tokenizer(args.tokenizer_dir or args.hf_model_dir, trust_remote_code=args.trust_remote_code)
    articles = read_articles(
        args.dataset, args.max_ite, split=args.split, cache_dir=args.dataset_dir, opening=tell_of_the_hub
    )
    if len(articles) < args.max_ite:
        print(f"--max_ite {args.max_ite}: {args.dataset} has {len(articles)} articles")
    ours, reason = None, None
    if args.test_trt_llm:
        ours, reason, options = _judge_engine(args, tokenizer, articles, options)
        _show("workbench", ours)
    theirs = _judge_hugging_face(args, tokenizer, articles, options) if args.test_hf else None
    if theirs is not None:
        _show(f"Hugging Face {DATA_TYPES[args.data_type]}", theirs)
    differences = None
    if ours is not None and theirs is not None:
        differences = {name: difference(ours, theirs, name) for name in METRICS}
        _show_differences(differences)
    passed = _gate(args, ours)
    return Outcome(
        {
            "dataset": args.dataset,
            "articles": len(articles),
            "max_input_length": options.max_input_len,
            "output_len": options.output_len,
            "reason": reason,
            "workbench": None if ours is None else ours.to_dict(),
            "hugging_face": None if theirs is None else theirs.to_dict(),
            "difference": None if differences is None else {name: asdict(value) for name, value in differences.items()},
            "threshold": args.tensorrt_llm_rouge1_threshold if args.check_accuracy else None,
            "summaries": _summaries(articles, ours, theirs),
        },
        passed=passed,
    )


def _check(args: argparse.Namespace) -> None:
    if not args.test_trt_llm and not args.test_hf:
        raise UsageError("nothing to judge is named", fix="give --test_trt_llm, --test_hf or both")
    needs = {"engine_dir": "test_trt_llm", "hf_model_dir": "test_hf"}
    for name, test in needs.items():
        if getattr(args, test) and getattr(args, name) is None:
            raise UsageError(f"--{test} without --{name}", fix=f"give --{name}")
    if args.tokenizer_dir is None and args.hf_model_dir is None:
        raise UsageError("no tokenizer is named", fix="give --tokenizer_dir or --hf_model_dir")
    if args.check_accuracy and not args.test_trt_llm:
        raise UsageError("--check_accuracy without --test_trt_llm", fix="add --test_trt_llm and --engine_dir")
    if args.num_beams != 1:
        raise UsageError(f"--num_beams {args.num_beams}", allowed="1: there is no beam search yet")
    if args.max_ite < 1:
        raise UsageError(f"--max_ite {args.max_ite}", allowed="whole numbers from 1")


def _check_folders(args: argparse.Namespace) -> None:
    """Refuse a folder of another kind before articles are fetched."""
    from workbench.bench.open_session import folder_kind
    from workbench.checkpoint.hf_config import read_model_config

    if args.test_trt_llm:
        folder_kind(args.engine_dir)
    if args.test_hf:
        read_model_config(args.hf_model_dir)


def _judge_engine(
    args: argparse.Namespace, tokenizer: Any, articles: list[Article], options: SummarizationOptions
) -> tuple[Summaries, str, SummarizationOptions]:
    """The engine's summaries, which backend made them, and the options as far as its limits let them be."""
    from workbench.bench.open_session import open_session
    from workbench.evaluation.summarization import Summarizer, fitting_input_len, summarize
    from workbench.runtime.tokenizer import check_special_ids

    opened = open_session(args.engine_dir, args.backend)
    try:
        check_special_ids(tokenizer, opened.session.config.vocab_size)
        print(opened.reason, flush=True)
        longest = fitting_input_len(opened.session, options)
        if longest < options.max_input_len:
            print(f"--max_input_length {options.max_input_len}: the engine's limits leave {longest}")
            options = replace(options, max_input_len=longest)
        with ProgressBars() as report:
            ours = summarize(Summarizer.of_session(opened.session), tokenizer, articles, options, report)
    finally:
        opened.session.close()
    return ours, opened.reason, options


def _judge_hugging_face(
    args: argparse.Namespace, tokenizer: Any, articles: list[Article], options: SummarizationOptions
) -> Summaries:
    import torch

    from workbench.evaluation.hf_reference import HFReference
    from workbench.evaluation.summarization import Summarizer, summarize
    from workbench.runtime.tokenizer import check_special_ids

    reference = HFReference.open(args.hf_model_dir, getattr(torch, DATA_TYPES[args.data_type]))
    check_special_ids(tokenizer, reference.config.vocab_size)
    with ProgressBars() as report:
        return summarize(Summarizer.of_hugging_face(reference), tokenizer, articles, options, report)


def _show(name: str, summaries: Summaries) -> None:
    print(f"\n{name}: {summaries.tokens} tokens in {summaries.seconds:.1f} s, {summaries.tokens_per_s:.1f} tokens/s")
    for metric, interval in summaries.rouge.items():
        print(f"  {metric:<7} {_text(interval)}")
    if summaries.perplexity is not None:
        print(f"  perplexity of the reference summaries {summaries.perplexity:.3f}")


def _show_differences(differences: dict[str, Interval]) -> None:
    print("\nworkbench - Hugging Face, article by article:")
    for metric, interval in differences.items():
        verdict = "no difference" if interval.low <= 0 <= interval.high else "a difference"
        print(f"  {metric:<7} {_text(interval)}: {verdict}")


def _text(interval: Interval) -> str:
    return f"{interval.mean:6.2f} (95 % interval {interval.low:.2f} to {interval.high:.2f})"


def _gate(args: argparse.Namespace, ours: Summaries | None) -> bool:
    if not args.check_accuracy or ours is None:
        return True
    rouge1, threshold = ours.rouge["rouge1"], args.tensorrt_llm_rouge1_threshold
    passed = bool(rouge1.mean >= threshold)
    unsure = ", but so few articles leave it open" if rouge1.low <= threshold <= rouge1.high else ""
    print(f"\ngate ROUGE-1 >= {threshold:g}: {'passed' if passed else 'FAILED'}{unsure}")
    return passed


def _summaries(articles: list[Article], ours: Summaries | None, theirs: Summaries | None) -> list[dict[str, Any]]:
    return [
        {
            "reference": article.highlights,
            "workbench": None if ours is None else ours.texts[place],
            "hugging_face": None if theirs is None else theirs.texts[place],
        }
        for place, article in enumerate(articles)
    ]


COMMAND = Command(
    name="summarize",
    summary="Summarize articles with an engine and with Hugging Face, and judge both by ROUGE.",
    example="""
workbench summarize --test_trt_llm --test_hf --hf_model_dir demo/model --data_type fp16 --engine_dir demo/engine
echo '{"article": "A bridge was built in 1900. It is 9 m long.", "highlights": "A bridge was built."}' > demo/news.jsonl
workbench summarize --test_trt_llm --engine_dir demo/engine --tokenizer_dir demo/model --dataset demo/news.jsonl
""",
    add_flags=_add_flags,
    run=_run,
    instead={"--checkpoint_dir": "give it as --engine_dir", "--model_dir": "give it as --hf_model_dir"},
)
