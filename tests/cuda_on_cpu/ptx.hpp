// What kernels/ptx.cuh states for a GPU, and CUDA's own words and functions, for a CPU: over machine.hpp.
#pragma once

#include <math.h>

#include "machine.hpp"

typedef unsigned u32;
typedef unsigned short u16;
typedef unsigned long long u64;
typedef long long i64;

// ---- Words of CUDA C++

#define __device__
#define __global__
#define __constant__
#define __forceinline__ SHOWN_WHERE_CALLED
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("shared_memory"), used))
#define threadIdx machine::position.thread
#define blockIdx machine::position.block
#define gridDim machine::now->grid
#define blockDim machine::now->threads

struct uint2 {
    unsigned x, y;
};
struct __align__(16) uint4 {
    unsigned x, y, z, w;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- Functions of CUDA C++

template <class T>
inline T bits_of(const void* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

// A load that is seen as one of this kind.
template <class T>
SHOWN_WHERE_CALLED T load_as(const void* from, int kind) {
    races::touch(from, sizeof(T), kind, races::pc_here());
    races::Quiet here;
    return bits_of<T>(from);
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline u32 __float_as_uint(float value) { return bits_of<u32>(&value); }
inline float __uint_as_float(u32 value) { return bits_of<float>(&value); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fsqrt_rn(float value) { return sqrtf(value); }
inline float __expf(float value) { return expf(value); }
inline int __float2int_rn(float value) { return (int)nearbyintf(value); }
template <class T>
SHOWN_WHERE_CALLED T __ldg(const T* p) {
    return load_as<T>(p, races::READ | races::STREAM);
}
template <class T>
SHOWN_WHERE_CALLED T __ldcg(const T* p) {
    return load_as<T>(p, races::READ);
}
inline i64 clock64() { return ++machine::now->clock; }
[[noreturn]] inline void __trap() {
    machine::fail("trap");
    __builtin_unreachable();
}
inline void __threadfence() { races::fence(); }
inline void __syncthreads() { machine::meet(0, machine::now->threads.x); }
inline void __syncwarp() { machine::together(machine::named("syncwarp"), machine::order_lanes); }

template <class T>
inline T __shfl_xor_sync(unsigned, T value, int offset) {
    static_assert(sizeof(T) <= 8, "");
    races::Quiet here;
    memcpy(machine::now->fiber->lane, &value, sizeof value);
    machine::together(machine::named("shfl") + ((u64)offset << 40) + ((u64)sizeof(T) << 48), [offset](machine::Fiber* lanes) {
        T held[machine::WARP];
        for (int i = 0; i < machine::WARP; i++) memcpy(held + i, lanes[i].lane, sizeof(T));
        for (int i = 0; i < machine::WARP; i++) memcpy(lanes[i].lane, held + (i ^ offset), sizeof(T));
    });
    return bits_of<T>(machine::now->fiber->lane);
}

template <class T>
SHOWN_WHERE_CALLED T atomicMax(T* at, T value) {
    races::atomic(at, sizeof(T), races::WRITE, false, false, races::pc_here());
    races::Quiet here;
    const T old = *at;
    if (value > old) *at = value;
    machine::changed(at);
    return old;
}

template <class T>
SHOWN_WHERE_CALLED T added(T* at, T value, bool releases, bool acquires) {
    races::atomic(at, sizeof(T), races::WRITE, releases, acquires, races::pc_here());
    races::Quiet here;
    const T old = *at;
    *at = old + value;
    machine::changed(at);
    machine::let_other_blocks();
    return old;
}
template <class T>
SHOWN_WHERE_CALLED T atomicAdd(T* at, T value) { return added(at, value, false, false); }

// ---- Memory

inline u32 shared_address(const void* p) {
    const char* at = (const char*)p;
    if (at < machine::shared_begin() || at > machine::shared_begin() + machine::shared_size()) machine::fail("an address that is not shared");
    return (u32)(at - machine::shared_begin());
}

SHOWN_WHERE_CALLED uint4 load_aligned(const void* p, int kind) {
    if ((uintptr_t)p % 16) machine::fail("16 bytes from an address that is no multiple of 16");
    return load_as<uint4>(p, kind);
}

SHOWN_WHERE_CALLED uint4 load_stream(const uint4* p) { return load_aligned(p, races::READ | races::STREAM); }
SHOWN_WHERE_CALLED uint4 load_shared(u32 at) { return load_aligned(machine::at_shared(at, 16), races::READ); }
SHOWN_WHERE_CALLED u32 load_shared_word(u32 at) { return load_as<u32>(machine::at_shared(at, 4), races::READ); }
SHOWN_WHERE_CALLED uint4 load_fresh(const void* p) { return load_aligned(p, races::READ); }
SHOWN_WHERE_CALLED float load_fresh(const float* p) { return load_as<float>(p, races::READ); }
inline void prefetch_l2(const void*) {}
SHOWN_WHERE_CALLED void copy_async(u32 to, const void* from) { machine::copy_async(to, from, races::pc_here()); }
inline void wait_copies() { machine::wait_copies(); }
inline void group_copies() { machine::now->fiber->group++; }
template <int LATER>
inline void wait_groups() { machine::do_groups(machine::now->fiber, LATER); }

// ---- Threads and blocks that wait for each other

inline int thread_here() { return (int)machine::position.thread.x; }
template <int COUNT>
inline void give_registers() {}
template <int COUNT>
inline void take_registers() {}
template <int THREADS>
inline void meet(int barrier) { machine::meet(barrier, THREADS); }
SHOWN_WHERE_CALLED void init_barrier(u64* barrier, u32 count) {
    races::touch(barrier, 8, races::WRITE, races::pc_here());
    races::Quiet here;
    *machine::mbarrier(shared_address(barrier)) = {count, 0, count};
}
// Operations on an mbarrier are atomic; what they say of its memory matters before its beginning only.
SHOWN_WHERE_CALLED void use_barrier(u32 barrier) {
    races::touch(machine::at_shared(barrier, 8), 8, races::WRITE | races::ATOMIC, races::pc_here());
}
SHOWN_WHERE_CALLED bool has_passed(u32 barrier, u32 phase) {
    use_barrier(barrier);
    machine::wait_mbarrier(barrier, phase);
    return true;
}
SHOWN_WHERE_CALLED void arrive(u32 barrier) {
    use_barrier(barrier);
    races::Quiet here;
    machine::arrive(machine::now->block, barrier, races::arrival());
}
SHOWN_WHERE_CALLED void arrive_when_copied(u32 barrier) {
    use_barrier(barrier);
    machine::arrive_when_copied(barrier);
}
SHOWN_WHERE_CALLED void add_release(u32* counter, u32 value) { added(counter, value, true, false); }
SHOWN_WHERE_CALLED u32 load_acquire(const u32* counter) { return machine::poll(counter, races::pc_here()); }
SHOWN_WHERE_CALLED u32 take_ticket(u32* counter) { return added(counter, 1u, true, true); }
SHOWN_WHERE_CALLED void raise(u32* to, u32 value) { atomicMax(to, value); }
inline void wait_for_previous_kernel() {}
inline void start_next_kernel() {}

// ---- Arithmetic

inline _Float16 half_of(u32 bits) {
    const u16 low = (u16)bits;
    return bits_of<_Float16>(&low);
}
inline u16 bits_of_half(_Float16 value) { return bits_of<u16>(&value); }

inline float half_to_float(u16 h) {
    static float* table = nullptr;
    races::Quiet here;
    if (!table) {
        table = new float[1 << 16];
        for (u32 i = 0; i < 1 << 16; i++) table[i] = (float)half_of(i);
    }
    return table[h];
}
inline u16 float_to_half(float f) { return bits_of_half((_Float16)f); }
inline u32 halves_of(float low, float high) { return float_to_half(low) | (u32)float_to_half(high) << 16; }

// Both halves of pairs, in a type that holds sums and products of float16 exactly (or so nearly that rounding agrees).
template <class Compute>
inline u32 each_half(Compute compute) {
    u32 both = 0;
    for (int shift = 0; shift < 32; shift += 16) both |= (u32)bits_of_half((_Float16)compute(shift)) << shift;
    return both;
}
inline double wide(u32 pair, int shift) { return half_to_float((u16)(pair >> shift)); }
inline u32 sub2(u32 a, u32 b) { return each_half([=](int i) { return wide(a, i) - wide(b, i); }); }
inline u32 mul2(u32 a, u32 b) { return each_half([=](int i) { return wide(a, i) * wide(b, i); }); }
inline u32 fma2(u32 a, u32 b, u32 c) { return each_half([=](int i) { return wide(a, i) * wide(b, i) + wide(c, i); }); }

template <u32 MASK, u32 BITS>
inline u32 masked_or(u32 value) { return (value & MASK) | BITS; }

inline u32 permuted(u32 a, u32 b, u32 selector) {
    const u64 both = (u64)b << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; i++) {
        const u32 choice = selector >> (4 * i) & 15;
        const u32 byte = (u32)(both >> (8 * (choice & 7))) & 0xff;
        result |= (choice & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << (8 * i);
    }
    return result;
}
inline u32 __byte_perm(u32 a, u32 b, u32 selector) { return permuted(a, b, selector & 0x7777); }
inline float inverse_root(float value) { return 1.0f / sqrtf(value); }

// mma.sync's fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k32"): lane 4 g + t has in register r of A
// the row g + 8 (r % 2) and one word of k, t + 4 (r / 2); of B the column g and the words t, t + 4; of C two columns 2 t,
// 2 t + 1 of the rows g and g + 8. A word is 2 values of float16, 4 of INT8.
template <class Sum, int VALUES, class Value>
inline void multiply_tiles(machine::Fiber* lanes, Value value) {
    constexpr int K = 8 * VALUES;
    Sum a[16][K], b[8][K];
    for (int i = 0; i < machine::WARP; i++)
        for (int r = 0; r < 6; r++)
            for (int v = 0; v < VALUES; v++) {
                const int word = r < 4 ? i % 4 + r / 2 * 4 : i % 4 + (r - 4) * 4;
                const Sum one = value(lanes[i].lane[4 + r], v);
                if (r < 4) a[i / 4 + r % 2 * 8][word * VALUES + v] = one;
                else b[i / 4][word * VALUES + v] = one;
            }
    for (int i = 0; i < machine::WARP; i++)
        for (int r = 0; r < 4; r++) {
            const Sum *x = a[i / 4 + r / 2 * 8], *y = b[i % 4 * 2 + r % 2];
            Sum sum = bits_of<Sum>(lanes[i].lane + r);
            for (int k = 0; k < K; k++) sum += x[k] * y[k];
            memcpy(lanes[i].lane + r, &sum, 4);
        }
}

template <class Sum, class Compute>
inline void multiply_with_warp(const char* name, Sum* c, const u32 (&operand)[6], Compute compute) {
    races::Quiet here;
    u32* lane = machine::now->fiber->lane;
    memcpy(lane, c, 16), memcpy(lane + 4, operand, 24);
    machine::together(machine::named(name), compute);
    memcpy(c, machine::now->fiber->lane, 16);
}

inline void mma(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_with_warp("mma.s8", c, {a0, a1, a2, a3, b0, b1}, [](machine::Fiber* lanes) {
        multiply_tiles<int, 4>(lanes, [](u32 word, int i) { return (int)(signed char)(word >> (8 * i)); });
    });
}

inline void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    multiply_with_warp("mma.f16", c, {a0, a1, a2, a3, b0, b1}, [](machine::Fiber* lanes) {
        multiply_tiles<float, 2>(lanes, [](u32 word, int i) { return half_to_float((u16)(word >> (16 * i))); });
    });
}
