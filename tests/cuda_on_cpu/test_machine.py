"""The machine that plays a GPU: its barriers, copies and warps, and what it says about kernels that are wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cuda_on_cpu.cuda_on_cpu import CpuKernel, KernelError, compile_kernels, needs_compiler
from tests.cuda_on_cpu.kernel_argument import BEGIN, Argument
from workbench.backends.kernels.nvrtc import Launch

pytestmark = needs_compiler
SEEDS = range(6)
KERNELS = """
__shared__ u64 full[4], empty[4];

// Every thread reads what another one left.
extern "C" __global__ void reverse(const Argument a) {
    __shared__ int held[128];
    held[threadIdx.x] = a.in[threadIdx.x];
    if (WAITS) __syncthreads();
    a.out[threadIdx.x] = held[127 - threadIdx.x];
}

// One warp brings chunks of 32 words, the other adds them up; a chunk has 4 slots.
extern "C" __global__ void ring(const Argument a) {
    const int lane = threadIdx.x % 32;
    const u32 slots = shared_address(memory);
    if (threadIdx.x == 0)
        for (int i = 0; i < 4; i++) init_barrier(&full[i], 32), init_barrier(&empty[i], EMPTY_COUNT);
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < a.size; i++) {
        const int slot = i % 4, phase = i / 4 % 2;
        if (threadIdx.x < 32) {
            if (i >= 4 && WAITS) has_passed(shared_address(&empty[slot]), phase ^ 1);
            copy_async(slots + slot * 512 + lane * 16, a.in + i * 128 + lane * 4);
            arrive_when_copied(shared_address(&full[slot]));
        } else {
            has_passed(shared_address(&full[slot]), phase);
            const uint4 v = load_shared(slots + slot * 512 + lane * 16);
            sum += v.x + v.y + v.z + v.w;
            __syncwarp();
            if (lane == 0) arrive(shared_address(&empty[slot]));
        }
    }
    if (threadIdx.x >= 32) a.out[lane] = sum;
}

// What was copied is read, waited for or not.
extern "C" __global__ void copy(const Argument a) {
    const u32 at = shared_address(memory) + threadIdx.x * 16;
    copy_async(at, a.in + threadIdx.x * 4);
    if (WAITS) wait_copies();
    a.out[threadIdx.x] = load_shared(at).x;
}

// All blocks wait for each other, then read what the next one wrote.
extern "C" __global__ void grid(const Argument a) {
    __shared__ int own;
    if (threadIdx.x == 0) own = blockIdx.x + 1;
    __syncthreads();
    if (threadIdx.x == 63) a.out[gridDim.x + blockIdx.x] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        add_release(a.counter, 1);
        if (WAITS) while (load_acquire(a.counter) < gridDim.x) {}
        a.out[blockIdx.x] = a.out[gridDim.x + (blockIdx.x + 1) % gridDim.x];
    }
}

extern "C" __global__ void beyond(const Argument a) { a.out[threadIdx.x == 7 ? 1ll << 40 : threadIdx.x] = 1; }

extern "C" __global__ void warp(const Argument a) {
    const int lane = threadIdx.x % 32;
    if (WAITS || lane < 16) a.out[threadIdx.x] = __shfl_xor_sync(~0u, a.in[threadIdx.x], 5);
    else __syncwarp();
}
"""


def _kernel(name: str, *, waits: bool = True, empty_count: int = 1) -> CpuKernel:
    options = [f"-DWAITS={int(waits)}", f"-DEMPTY_COUNT={empty_count}"]
    return compile_kernels(
        BEGIN + KERNELS, options, ["reverse", "ring", "copy", "grid", "beyond", "warp"], "Argument", 4 * 512
    )[name]


def _run(kernel: CpuKernel, seed: int, *, threads: int, size: int = 0, blocks: int = 1) -> tuple[Tensor, Tensor]:
    given = torch.arange(1, 1 + max(128, size * 128), dtype=torch.int32)
    out, counter = torch.full((128,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    kernel.seed = seed
    argument = Argument(given.data_ptr(), out.data_ptr(), counter.data_ptr(), size)
    kernel(Launch((blocks, 1), threads, cooperative=True), argument)
    return given, out


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_meet_see_what_each_other_wrote(seed: int) -> None:
    given, out = _run(_kernel("reverse"), seed, threads=128)
    assert torch.equal(out, given[:128].flip(0))


def test_a_missing_barrier_shows() -> None:
    kernel = _kernel("reverse", waits=False)
    for seed in SEEDS:
        given, out = _run(kernel, seed, threads=128)
        assert not torch.equal(out, given[:128].flip(0))
        assert (out == -1).any()  # shared memory as it was before


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ring_of_copies_goes_round(seed: int) -> None:
    given, out = _run(_kernel("ring"), seed, threads=64, size=11)
    assert torch.equal(out[:32], given.view(11, 32, 4).sum((0, 2)).int())


def test_a_ring_that_does_not_wait_for_free_slots_shows() -> None:
    kernel = _kernel("ring", waits=False)
    expected = torch.arange(1, 1 + 11 * 128).view(11, 32, 4).sum((0, 2)).int()

    def found(seed: int) -> Tensor | None:
        try:
            return _run(kernel, seed, threads=64, size=11)[1][:32]
        except KernelError:  # its phases go out of step
            return None

    results = [found(seed) for seed in SEEDS]
    assert not any(result is not None and torch.equal(result, expected) for result in results)


def test_a_copy_that_is_not_waited_for_shows() -> None:
    given, out = _run(_kernel("copy"), 0, threads=32)
    assert torch.equal(out[:32], given[:128:4])
    _, out = _run(_kernel("copy", waits=False), 0, threads=32)
    assert not torch.equal(out[:32], given[:128:4])


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_have_their_own_shared_memory_and_meet_at_a_counter(seed: int) -> None:
    _, out = _run(_kernel("grid"), seed, threads=64, blocks=5)
    assert out[:5].tolist() == [2, 3, 4, 5, 1]


def test_blocks_that_do_not_wait_for_each_other_show() -> None:
    found = [_run(_kernel("grid", waits=False), seed, threads=64, blocks=5)[1][:5].tolist() for seed in SEEDS]
    assert any(-1 in out for out in found)


def test_the_same_seed_is_the_same_order() -> None:
    kernel = _kernel("reverse", waits=False)
    found = [_run(kernel, seed, threads=128)[1] for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_deadlock_says_who_waits_where() -> None:
    with pytest.raises(KernelError, match="nobody can go on") as caught:
        _run(_kernel("ring", empty_count=2), 0, threads=64, size=11)
    said = str(caught.value)
    assert "threads 0 to 31 wait for phase 0 of the mbarrier" in said
    assert "threads 32 to 63 wait for phase" in said


def test_a_grid_that_is_not_there_at_once_cannot_meet() -> None:
    kernel = _kernel("grid")
    out, counter = torch.zeros(128, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    argument = Argument(None, out.data_ptr(), counter.data_ptr(), 0)
    with pytest.raises(KernelError, match="threads 0 to 0 wait for memory that holds 3"):
        kernel(Launch((5, 1), 64), argument)


def test_lanes_of_a_warp_take_part_in_one_operation() -> None:
    given, out = _run(_kernel("warp"), 1, threads=64)
    assert torch.equal(out[:64], given[torch.arange(64) ^ 5])
    with pytest.raises(KernelError, match="lanes of a warp take part in operations"):
        _run(_kernel("warp", waits=False), 1, threads=64)


def test_an_address_where_there_is_no_memory_is_named_by_its_thread() -> None:
    with pytest.raises(KernelError, match=r"block \(0, 0\), thread 7: an address where there is no memory"):
        _run(_kernel("beyond"), 1, threads=64)


def test_instructions_of_a_gpu_belong_into_one_file() -> None:
    with pytest.raises(AssertionError, match=r"ptx\.cuh"):
        compile_kernels('void f() { asm("nop;"); }', [], ["f"], "Argument", 0)
