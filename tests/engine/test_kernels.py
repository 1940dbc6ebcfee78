"""Reading the builder's log: recorded logs, the same builds made now, and logs that are not as expected."""

from __future__ import annotations

import dataclasses

import pytest
from recorded_builds import KINDS, BuildLog, build_decoder, build_expanded

from workbench.engine.kernels import (
    UNKNOWN,
    CompiledKernel,
    CompiledLinear,
    EngineStatistics,
    KernelTensor,
    LogMessage,
    by_profile,
    collecting_logger,
    compiled_linears,
    engine_statistics,
    error_messages,
    parse_kernels,
)

QUANTIZED = ("layers.0.attention.qkv", "layers.0.attention.o", "layers.0.mlp.gate_up", "layers.0.mlp.down")
PRECISION = {"dense": "fp16", "int8": "int8 weight-only, fp16 GEMM", "smoothquant": "int8 x int8"}


def precisions(log: BuildLog) -> dict[str, str]:
    compiled = compiled_linears(parse_kernels(log.messages), list(log.linears), log.linears)
    return {name: linear.precision for name, linear in compiled.items()}


@pytest.fixture
def int8() -> BuildLog:
    return BuildLog.load("int8")


# ---- recorded and live builds


@pytest.mark.parametrize("live", [False, True], ids=["recorded", "live"])
@pytest.mark.parametrize("kind", KINDS)
def test_precision_of_every_linear(kind: str, live: bool) -> None:
    log = build_decoder(pytest.importorskip("tensorrt_rtx"), kind) if live else BuildLog.load(kind)
    assert precisions(log) == {**dict.fromkeys(QUANTIZED, PRECISION[kind]), "lm_head": "fp16"}
    assert sorted(by_profile(parse_kernels(log.messages))) == [0, 1]


@pytest.mark.parametrize("live", [False, True], ids=["recorded", "live"])
def test_weight_dequantized_in_memory_is_expanded(live: bool) -> None:
    log = build_expanded(pytest.importorskip("tensorrt_rtx")) if live else BuildLog.load("expanded")
    assert precisions(log) == {"layers.0.mlp.down": "expanded"}


def test_kernels_have_types_and_sizes() -> None:
    kernel = parse_kernels(BuildLog.load("expanded").messages)[-1]
    assert (kernel.name, kernel.kind) == ("layers.0.mlp.down_myl0_2", "gemm")
    assert kernel.origin == "layers.0.mlp.down"
    assert [(each.dtype, each.dims) for each in kernel.inputs] == [("Half", (-1, 256)), ("Half", (256, 128))]
    assert [(each.dtype, each.dims) for each in kernel.outputs] == [("Half", (-1, 128))]
    assert kernel.tactic


def test_statistics_are_the_largest_of_all_profiles(int8: BuildLog) -> None:
    statistics = engine_statistics(int8.messages)
    assert statistics == EngineStatistics(activation_bytes=9601536, weights_bytes=1875344, scratch_bytes=9601536)
    assert engine_statistics([]) == EngineStatistics(None, None, None)


# ---- what is not certain is unknown


def edited(log: BuildLog, old: str, new: str, count: int = -1) -> BuildLog:
    messages = [dataclasses.replace(each, text=each.text.replace(old, new, count)) for each in log.messages]
    assert messages != log.messages
    return dataclasses.replace(log, messages=messages)


def without_kernel(log: BuildLog, name: str) -> BuildLog:
    def kept(text: str) -> str:
        return "\n".join(line for line in text.split("\n") if not line.startswith(f"Name: {name}"))

    messages = [dataclasses.replace(each, text=kept(each.text)) for each in log.messages]
    assert messages != log.messages
    return dataclasses.replace(log, messages=messages)


def test_no_listing_means_unknown(int8: BuildLog) -> None:
    log = dataclasses.replace(int8, messages=[each for each in int8.messages if each.severity == "INFO"])
    assert parse_kernels(log.messages) == []
    assert set(precisions(log).values()) == {UNKNOWN}


def test_a_missing_nameless_kernel_makes_its_neighbours_unknown(int8: BuildLog) -> None:
    found = precisions(without_kernel(int8, "__myl_CastMulCastFc_myl0_2,"))
    for name in QUANTIZED:
        assert found[name] == f"{UNKNOWN} (profile 0), {PRECISION['int8']} (profile 1)"
    assert found["lm_head"] == "fp16"


def test_other_weight_sizes_make_nameless_kernels_unknown(int8: BuildLog) -> None:
    log = dataclasses.replace(int8, linears={**int8.linears, "layers.0.attention.o": (256, 999)})
    assert precisions(log) == {**dict.fromkeys(QUANTIZED, UNKNOWN), "lm_head": "fp16"}


def test_names_out_of_order_are_unknown() -> None:
    log = BuildLog.load("smoothquant")
    swapped = edited(edited(edited(log, "mlp.down_", "mlp.X_"), "attention.o_", "mlp.down_"), "mlp.X_", "attention.o_")
    assert all("unknown (profile 0)" in precision for precision in precisions(swapped).values())


def test_a_name_wins_over_the_place(int8: BuildLog) -> None:
    named = edited(int8, "Name: __myl_CastMulCastFc_myl0_2,", "Name: layers.0.attention.qkv_myl0_2,")
    assert precisions(named)["layers.0.attention.qkv"] == PRECISION["int8"]


def test_an_unreadable_line_is_kept_as_unknown(int8: BuildLog) -> None:
    log = edited(int8, "Name: __myl_CastMulCastFc_myl0_2,", "Nom: __myl_CastMulCastFc_myl0_2,")
    assert [kernel.kind for kernel in parse_kernels(log.messages)].count(UNKNOWN) == 1
    assert precisions(log)["layers.0.attention.qkv"].startswith(UNKNOWN)


def fused(name: str, activation: str, weight: str) -> CompiledKernel:
    return CompiledKernel(
        f"{name}_myl0_1",
        "runtime_fusion",
        (KernelTensor("x", activation, (-1, 8)),),
        (KernelTensor("scale", "Float", (1, 4)), KernelTensor("w", weight, (8, 4))),
        (KernelTensor("y", "Half", (-1, 4)),),
        "",
    )


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (fused("__myl_Fc", "Half", "Half"), "fp16"),
        (fused("__myl_FcAdd", "BFloat16", "BFloat16"), "bf16"),
        (fused("__myl_CastMulCastFc", "BFloat16", "Int8"), "int8 weight-only, bf16 GEMM"),
        (fused("__myl_ReplCastMulCastFc", "Half", "Int4"), "int4 weight-only, fp16 GEMM"),
        (fused("__myl_FcMul", "Int8", "Int8"), "int8 x int8"),
        (fused("__myl_FcMul", "FP8", "FP8"), "fp8 x fp8"),
        # Activations may be quantized inside the kernel: types alone do not tell.
        (fused("__myl_MulRounCastFc", "Half", "Int8"), UNKNOWN),
        (fused("__myl_CastMulFcAddMulEtc", "Half", "Int8"), UNKNOWN),
        (fused("__myl_CastFc", "Float", "Half"), UNKNOWN),
        # Not a product with a matrix at all.
        (fused("__myl_GathCastMul", "Half", "Half"), UNKNOWN),
    ],
)
def test_precision_of_fused_kernels(kernel: CompiledKernel, expected: str) -> None:
    assert compiled_linears([kernel], ["lm_head"])["lm_head"] == CompiledLinear("lm_head", {0: expected})


# ---- the logger


def test_there_is_one_logger_that_keeps_what_matters() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = collecting_logger(trt)
    assert collecting_logger(trt) is logger
    logger.clear()
    severity = trt.ILogger.Severity
    for level, text in (
        (severity.VERBOSE, "Tactic 3 took"),
        (severity.VERBOSE, "Layers:\nName: a"),
        (severity.INFO, "Total Weights Memory: 12 bytes"),
        (severity.ERROR, "no"),
        (severity.INTERNAL_ERROR, "never"),
        (severity.ERROR, "no"),
    ):
        logger.log(level, text)  # type: ignore[attr-defined]
    assert [each.text for each in logger.messages][:2] == ["Layers:\nName: a", "Total Weights Memory: 12 bytes"]
    assert error_messages(logger.messages) == ["no", "never"]
    assert engine_statistics(logger.messages).weights_bytes == 12
    logger.clear()
    assert logger.messages == []


def test_the_last_engine_in_the_log_counts(int8: BuildLog) -> None:
    messages = [LogMessage("VERBOSE", "Layers:\nName: old"), *int8.messages]
    assert parse_kernels(messages) == parse_kernels(int8.messages)
