// What kernels of CUDA C++ share: conversions, operands of mma.sync and how integers become them. No headers needed.

typedef unsigned u32;
typedef unsigned short u16;

__device__ __forceinline__ uint4 load_stream(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

__device__ __forceinline__ float half_to_float(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ __forceinline__ u16 float_to_half(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// Two floats as a float16 pair, each rounded once.
__device__ __forceinline__ u32 halves_of(float low, float high) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

__device__ __forceinline__ u32 add2(u32 a, u32 b) {
    u32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ u32 sub2(u32 a, u32 b) {
    u32 d;
    asm("sub.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ u32 mul2(u32 a, u32 b) {
    u32 d;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// c += A (16 x 32 INT8) * B (32 x 8 INT8)
__device__ __forceinline__ void mma(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// c += A (16 x 16 float16) * B (16 x 8 float16)
__device__ __forceinline__ void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four INT8 values to two float16 pairs: 1024 + 128 + q has q in its low mantissa bits.
__device__ __forceinline__ void halves_of_bytes(u32 q, u32& low, u32& high) {
    u32 biased = q ^ 0x80808080u;
    asm("prmt.b32 %0, %1, %2, 0x4140;" : "=r"(low) : "r"(biased), "r"(0x64646464u));
    asm("prmt.b32 %0, %1, %2, 0x4342;" : "=r"(high) : "r"(biased), "r"(0x64646464u));
    low = sub2(low, 0x64806480u);
    high = sub2(high, 0x64806480u);
}

// Four INT8 values to float32: 2^23 + 128 + q has q in its low mantissa bits.
__device__ __forceinline__ void floats_of_bytes(u32 q, float* value) {
    const u32 biased = q ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 bits;
        asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bits) : "r"(biased), "r"(0x4b000000u), "r"(0x7440u + i));
        value[i] = __uint_as_float(bits) - 8388736.0f;
    }
}

// Eight nibbles q + 8, where nibble p < 4 is value 2p and nibble p + 4 is value 2p + 1, to four float16 pairs.
__device__ __forceinline__ void integers_of_nibbles(u32 q, u32* pairs) {
    u32 shifted = q >> 8, p0, p1, p2, p3;
    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;" : "=r"(p0) : "r"(q));
    asm("lop3.b32 %0, %1, 0x00f000f0, 0x64006400, 0xea;" : "=r"(p1) : "r"(q));
    asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xea;" : "=r"(p2) : "r"(shifted));
    asm("lop3.b32 %0, %1, 0x00f000f0, 0x64006400, 0xea;" : "=r"(p3) : "r"(shifted));
    pairs[0] = sub2(p0, 0x64086408u);
    pairs[1] = fma2(p1, 0x2c002c00u, 0xd480d480u);  // (1024 + 16u) / 16 - 72 = u - 8
    pairs[2] = sub2(p2, 0x64086408u);
    pairs[3] = fma2(p3, 0x2c002c00u, 0xd480d480u);
}

// ``numerics.quantize_int8`` of one value.
__device__ __forceinline__ int integer_of(float value, float scale) {
    return __float2int_rn(fminf(fmaxf(__fdiv_rn(value, scale), -127.0f), 127.0f));
}

// The same, given 1 / scale: divides only where the product with it lies too close to a tie to tell.
__device__ __forceinline__ int integer_near(float value, float scale, float steps) {
    float real = value * steps;
    const float tie = fabsf(real - truncf(real));
    if (fabsf(tie - 0.5f) < 1e-4f) real = __fdiv_rn(value, scale);
    return __float2int_rn(fminf(fmaxf(real, -127.0f), 127.0f));
}
