"""What the race detector reports, and what it does not, of small kernels with and without what orders them."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu.cuda_on_cpu import CpuKernel, Race, RaceError, compile_kernels, needs_compiler
from tests.cuda_on_cpu.kernel_argument import BEGIN, Argument
from workbench.backends.kernels.nvrtc import Launch

pytestmark = needs_compiler
SEEDS = range(3)
KERNELS = """
__shared__ u64 full[2], empty[2];

extern "C" __global__ void barrier(const Argument a) {
    int* held = (int*)memory;
    held[threadIdx.x] = a.in[threadIdx.x]; // barrier: first
    if (RIGHT) __syncthreads();
    a.out[threadIdx.x] = held[63 - threadIdx.x]; // barrier: second
}

// One warp fills two slots by turns, the other reads them; its lane 0 says so.
__device__ __forceinline__ void ring(const Argument& a, bool waits, bool meets) {
    const int lane = threadIdx.x % 32;
    const u32 slots = shared_address(memory);
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; i++) init_barrier(&full[i], 32), init_barrier(&empty[i], 1);
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < 6; i++) {
        const int slot = i % 2, phase = i / 2 % 2;
        if (threadIdx.x < 32) {
            if (i >= 2) has_passed(shared_address(&empty[slot]), phase ^ 1);
            copy_async(slots + slot * 512 + lane * 16, a.in + lane * 4); // arrival: second; phase: first
            arrive_when_copied(shared_address(&full[slot]));
        } else {
            if (waits) has_passed(shared_address(&full[slot]), phase);
            sum += load_shared_word(slots + slot * 512 + lane * 16); // arrival: first; phase: second
            if (meets) __syncwarp();
            if (lane == 0) arrive(shared_address(&empty[slot]));
        }
    }
    if (threadIdx.x >= 32) a.out[lane] = sum;
}
extern "C" __global__ void arrival(const Argument a) { ring(a, true, RIGHT); }
extern "C" __global__ void phase(const Argument a) { ring(a, RIGHT, true); }

extern "C" __global__ void counter(const Argument a) {
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        a.out[0] = 1; // counter: first
        if (RIGHT) add_release(a.counter, 1);
        else atomicAdd(a.counter, 1u);
    } else if (threadIdx.x == 0) {
        while (load_acquire(a.counter) < 1) {}
        a.out[blockIdx.x] = a.out[0]; // counter: second
    }
}

// The last block to come reads what all wrote; all threads fence, thread 0 counts.
extern "C" __global__ void fence(const Argument a) {
    __shared__ u32 ticket;
    a.out[blockIdx.x * 32 + threadIdx.x] = 1; // fence: first
    if (RIGHT) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) ticket = atomicAdd(a.counter, 1u);
    __syncthreads();
    if (ticket != gridDim.x - 1) return;
    __threadfence();
    int sum = 0;
    for (u32 block = 0; block < gridDim.x; block++) sum += a.out[block * 32 + 31 - threadIdx.x]; // fence: second
    a.out[gridDim.x * 32 + threadIdx.x] = sum;
}

extern "C" __global__ void group(const Argument a) {
    const u32 at = shared_address(memory) + threadIdx.x * 32;
    copy_async(at, a.in);
    group_copies();
    copy_async(at + 16, a.in); // group: first
    group_copies();
    wait_groups<RIGHT ? 0 : 1>();
    a.out[threadIdx.x] = load_shared_word(at) + load_shared_word(at + 16); // group: second
}

// A shuffle brings values, not what lanes wrote before.
extern "C" __global__ void lanes(const Argument a) {
    int* held = (int*)memory;
    held[threadIdx.x] = a.in[threadIdx.x]; // lanes: first
    const int other = __shfl_xor_sync(~0u, a.in[threadIdx.x], 1);
    if (RIGHT) __syncwarp();
    a.out[threadIdx.x] = held[threadIdx.x ^ 1] - other; // lanes: second
}

// Loads past coherence may be older than what their own launch wrote.
extern "C" __global__ void stream(const Argument a) {
    a.out[threadIdx.x] = 1; // stream: first
    __syncthreads();
    const uint4* from = (const uint4*)a.out + threadIdx.x / 4;
    const uint4 v = RIGHT ? load_fresh(from) : load_stream(from); // stream: second
    a.out[64 + threadIdx.x] = v.x;
}

extern "C" __global__ void begun(const Argument a) {
    if (threadIdx.x == 0) init_barrier(&full[0], 64); // begun: first
    if (RIGHT) __syncthreads();
    else for (int i = 0; i < 2; i++) __shfl_xor_sync(~0u, i, 1);
    if (RIGHT || threadIdx.x == 0) arrive(shared_address(&full[0]));
    else load_shared_word(shared_address(&full[0])); // begun: second
}

// Bytes of a word are memory of their own.
extern "C" __global__ void bytes(const Argument a) {
    ((u16*)a.out)[threadIdx.x] = 7; // bytes: first
    if (!RIGHT && threadIdx.x == 1) ((char*)a.out)[1] = 0; // bytes: second
    atomicMax(a.counter, threadIdx.x);
}
"""
NAMES = ["barrier", "arrival", "phase", "counter", "fence", "group", "lanes", "stream", "begun", "bytes"]


def _kernel(name: str, *, right: bool) -> CpuKernel:
    return compile_kernels(BEGIN + KERNELS, [f"-DRIGHT={int(right)}"], NAMES, "Argument", 2048, races=True)[name]


def _run(kernel: CpuKernel, name: str, seed: int) -> None:
    given, out = torch.arange(128, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    counter = torch.zeros(1, dtype=torch.int32)
    kernel.seed = seed
    argument = Argument(given.data_ptr(), out.data_ptr(), counter.data_ptr(), 0)
    blocks, threads = {"counter": (3, 32), "fence": (3, 32)}.get(name, (1, 64))
    kernel(Launch((blocks, 1), threads, cooperative=True), argument)


def _line(marker: str) -> str:
    found = [i for i, line in enumerate((BEGIN + KERNELS).split("\n"), 1) if marker in line.partition("//")[2]]
    assert len(found) == 1, marker
    return f"kernel:{found[0]}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_that_wait_do_not_race(name: str, seed: int) -> None:
    _run(_kernel(name, right=True), name, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_accesses_that_nothing_orders_are_named(name: str, seed: int) -> None:
    with pytest.raises(RaceError) as caught:
        _run(_kernel(name, right=False), name, seed)
    lines = {_line(f"{name}: first"), _line(f"{name}: second")}
    named = [{race.before.split(" ")[0], race.after.split(" ")[0]} for race in caught.value.races]
    assert lines in named, str(caught.value)


def test_each_pair_of_lines_is_reported_once_and_says_who() -> None:
    with pytest.raises(RaceError) as caught:
        _run(_kernel("counter", right=False), "counter", 0)
    first, second = _line("counter: first"), _line("counter: second")
    (race,) = caught.value.races
    assert (race.before, race.after, race.memory) == (first, second, "global")
    assert race.who[0] == "write by block 0, thread 0"
    assert f"global memory: {first} (write by block 0, thread 0), {second} (read by block " in str(race)
    assert isinstance(race, Race)
