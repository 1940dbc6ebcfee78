// What kernels of CUDA C++ share: how integers become operands of mma.sync, and values integers. Over ptx.cuh.

// Four INT8 values to two float16 pairs: 1024 + 128 + q has q in its low mantissa bits.
__device__ __forceinline__ void halves_of_bytes(u32 q, u32& low, u32& high) {
    const u32 biased = q ^ 0x80808080u;
    low = sub2(permuted(biased, 0x64646464u, 0x4140u), 0x64806480u);
    high = sub2(permuted(biased, 0x64646464u, 0x4342u), 0x64806480u);
}

// Four INT8 values to float32: 2^23 + 128 + q has q in its low mantissa bits.
__device__ __forceinline__ void floats_of_bytes(u32 q, float* value) {
    const u32 biased = q ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; i++) value[i] = __uint_as_float(permuted(biased, 0x4b000000u, 0x7440u + i)) - 8388736.0f;
}

// Eight nibbles q + 8, where nibble p < 4 is value 2p and nibble p + 4 is value 2p + 1, to four float16 pairs.
__device__ __forceinline__ void integers_of_nibbles(u32 q, u32* pairs) {
    const u32 shifted = q >> 8;
    pairs[0] = sub2(masked_or<0x000f000fu, 0x64006400u>(q), 0x64086408u);
    pairs[1] = fma2(masked_or<0x00f000f0u, 0x64006400u>(q), 0x2c002c00u, 0xd480d480u);  // (1024 + 16u) / 16 - 72 = u - 8
    pairs[2] = sub2(masked_or<0x000f000fu, 0x64006400u>(shifted), 0x64086408u);
    pairs[3] = fma2(masked_or<0x00f000f0u, 0x64006400u>(shifted), 0x2c002c00u, 0xd480d480u);
}

// Eight nibbles as integers_of_nibbles() takes them, times the group's scale: each rounded once, as the oracle rounds its
// dequantized weight.
__device__ __forceinline__ void halves_of_nibbles(u32 q, u32 scale, u32* pairs) {
    integers_of_nibbles(q, pairs);
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = mul2(pairs[i], scale);
}

// ``numerics.quantize_int8`` of one value.
__device__ __forceinline__ int integer_of(float value, float scale) {
    return __float2int_rn(fminf(fmaxf(__fdiv_rn(value, scale), -127.0f), 127.0f));
}
