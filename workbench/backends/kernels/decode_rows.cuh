// Rows of x on their way into shared memory: normed, quantized, or as they are.

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int o = 16; o; o >>= 1) value += __shfl_xor_sync(~0u, value, o);
    return value;
}

__device__ __forceinline__ float warp_largest(float value) {
#pragma unroll
    for (int o = 16; o; o >>= 1) value = fmaxf(value, __shfl_xor_sync(~0u, value, o));
    return value;
}

// Consumer warps divide the rows of x among them: 8 / NB warps to a row.
constexpr int ROW_WARPS = CONSUMERS / NB, ROW_THREADS = ROW_WARPS * 32;

template <bool LARGEST>
__device__ __forceinline__ float row_reduced(float value) {
    const int here = thread_here();
    const int warp = here / 32, first = warp / ROW_WARPS * ROW_WARPS;
    value = LARGEST ? warp_largest(value) : warp_sum(value);
    if (ROW_WARPS == 1) return value;
    consumers_meet();
    if (here % 32 == 0) warp_values[warp] = value;
    consumers_meet();
    value = warp_values[first];
#pragma unroll
    for (int i = 1; i < ROW_WARPS; i++) value = LARGEST ? fmaxf(value, warp_values[first + i]) : value + warp_values[first + i];
    return value;
}

__device__ __forceinline__ float row_scale_of(float largest, const float* calibrated) {
    const float scale = calibrated ? *calibrated : __fdiv_rn(largest, 127.0f);
    return !calibrated && scale == 0.0f ? 1.0f : scale;
}

__device__ __forceinline__ float larger_of(float largest, u32 pair) {
    const float low = half_to_float((u16)pair), high = half_to_float((u16)(pair >> 16));
    return fmaxf(largest, fmaxf(fabsf(low), fabsf(high)));
}

// Eight float16 values as INT8; ``steps`` is 1 / scale.
__device__ __forceinline__ uint2 quantized(uint4 x, float scale, float steps) {
    const u32* pair = (const u32*)&x;
    u32 q[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; j++)
        q[j / 4] |= ((u32)integer_near(half_to_float((u16)(pair[j / 2] >> (16 * (j % 2)))), scale, steps) & 0xffu) << (8 * (j % 4));
    return make_uint2(q[0], q[1]);
}

// x = RMSNorm(x + residual) * weight for a product of KIND K; the sum also goes to memory.
template <int K>
__device__ __forceinline__ void load_normed(const Shape& shape, float epsilon, const u16* x, const u16* residual, u16* summed,
                                            const float* calibrated) {
    const int here = thread_here();
    constexpr int granules = HIDDEN / 8, turns = up(granules, ROW_THREADS), batch = turns < 8 ? turns : 8;
    const int row = here / ROW_THREADS, thread = here % ROW_THREADS;
    uint4* rows = (uint4*)(memory + (K == 3 ? AT_HALF + row * HALF_PITCH : AT_X + row * shape.pitch));
    const uint4* weights = (const uint4*)(memory + AT_NORM);
    float squares = 0.0f;
#pragma unroll 1
    for (int turn = 0; turn < turns; turn += batch) {
        uint4 loaded[batch], other[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            const int at = (turn + i) * ROW_THREADS + thread;
            loaded[i] = at < granules ? load_fresh((const uint4*)x + at) : make_uint4(0, 0, 0, 0);
            other[i] = at < granules && residual ? load_fresh((const uint4*)residual + at) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < batch; i++) {
            const int at = (turn + i) * ROW_THREADS + thread;
            u32 *word = (u32*)&loaded[i], *added = (u32*)&other[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (residual) word[j] = add2(word[j], added[j]);
                const float low = half_to_float((u16)word[j]), high = half_to_float((u16)(word[j] >> 16));
                squares += low * low;
                squares += high * high;
            }
            if (at >= granules) continue;
            rows[at] = loaded[i];
            if (blockIdx.x == 0 && summed) ((uint4*)(summed + row * HIDDEN))[at] = loaded[i];
        }
    }
    const float root = __fsqrt_rn(__fdiv_rn(row_reduced<false>(squares), (float)HIDDEN) + epsilon);
    const float inverse = __fdiv_rn(1.0f, root);
    float largest = 0.0f;
#pragma unroll 2
    for (int at = thread; at < granules; at += ROW_THREADS) {
        uint4 held_x = rows[at], w = weights[at];
        u32 *word = (u32*)&held_x, *weight = (u32*)&w;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float low = half_to_float((u16)word[j]) * inverse, high = half_to_float((u16)(word[j] >> 16)) * inverse;
            word[j] = mul2(halves_of(low, high), weight[j]);
            if (K == 3) largest = larger_of(largest, word[j]);
        }
        rows[at] = held_x;
    }
    if constexpr (K == 3) {
        const float scale = row_scale_of(calibrated ? 0.0f : row_reduced<true>(largest), calibrated);
        const float steps = __fdiv_rn(1.0f, scale);
        if (thread == 0) column_scale[row] = scale;
        uint2* integers = (uint2*)(memory + AT_X + row * shape.pitch);
#pragma unroll 2
        for (int at = thread; at < granules; at += ROW_THREADS) integers[at] = quantized(rows[at], scale, steps);
    }
    // Values beyond k, which only a padded weight has, are zeros.
#pragma unroll 1
    for (int at = HIDDEN * x_width(K) / 16 + thread; at < shape.held_values * x_width(K) / 16; at += ROW_THREADS)
        ((uint4*)(memory + AT_X + row * shape.pitch))[at] = make_uint4(0, 0, 0, 0);
    consumers_meet();
}

// The scale of every row of a product whose activations are quantized as they are.
__device__ __forceinline__ void measure_rows(const Shape& shape, const u16* x, const float* calibrated) {
    const int here = thread_here(), granules = shape.values / 8;
    const int row = here / ROW_THREADS, thread = here % ROW_THREADS;
    float largest = 0.0f;
    if (!calibrated) {
#pragma unroll 4
        for (int at = thread; at < granules; at += ROW_THREADS) {
            const uint4 loaded = load_fresh((const uint4*)(x + (i64)row * shape.values) + at);
            const u32* pair = (const u32*)&loaded;
#pragma unroll
            for (int j = 0; j < 4; j++) largest = larger_of(largest, pair[j]);
        }
        largest = row_reduced<true>(largest);
    }
    if (thread == 0) column_scale[row] = row_scale_of(largest, calibrated);
    consumers_meet();
}

// One segment of rows that are multiplied as they are.
template <int K>
__device__ __forceinline__ void load_plain(const Shape& shape, const u16* x, int segment) {
    const int here = thread_here();
    const int first = segment * shape.held_values, count = min(shape.held_values, shape.values - first) / 8;
    const int row = here / ROW_THREADS, thread = here % ROW_THREADS;
    const uint4* from = (const uint4*)(x + (i64)row * shape.values + first);
    char* to = memory + AT_X + row * shape.pitch;
    if constexpr (K == 3) {
        const float scale = column_scale[row], steps = __fdiv_rn(1.0f, scale);
#pragma unroll 2
        for (int at = thread; at < count; at += ROW_THREADS) ((uint2*)to)[at] = quantized(load_fresh(from + at), scale, steps);
    } else {
#pragma unroll 1
        for (int at = thread; at < count; at += ROW_THREADS) copy_async(shared_address(to + at * 16), from + at);
        const int wide = min(shape.held_values, shape.steps * step_values(K) - first) / 8;
#pragma unroll 1
        for (int at = count + thread; at < wide; at += ROW_THREADS) ((uint4*)to)[at] = make_uint4(0, 0, 0, 0);
        asm volatile("cp.async.wait_all;" ::: "memory");
    }
    consumers_meet();
}
