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

// Consumer warps divide the rows of x among them.
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

// A value over its scale, rounded: the integer lies in the low byte. ``steps`` is 1 / scale; where the product with it
// lies too close to a tie to tell, the value is divided.
__device__ __forceinline__ u32 rounded(float value, float scale, float steps) {
    constexpr float half_even = 12582912.0f;  // 1.5 * 2^23
    float real = value * steps;
    const float whole = __fadd_rn(__fadd_rn(real, half_even), -half_even);
    if (fabsf(fabsf(real - whole) - 0.5f) < 1e-4f) real = __fdiv_rn(value, scale);
    return __float_as_uint(__fadd_rn(fminf(fmaxf(real, -127.0f), 127.0f), half_even));
}

// Eight float16 values as INT8.
__device__ __forceinline__ uint2 quantized(uint4 x, float scale, float steps) {
    const u32* pair = (const u32*)&x;
    u32 word[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const u32 a = rounded(half_to_float((u16)pair[2 * j]), scale, steps);
        const u32 b = rounded(half_to_float((u16)(pair[2 * j] >> 16)), scale, steps);
        const u32 c = rounded(half_to_float((u16)pair[2 * j + 1]), scale, steps);
        const u32 d = rounded(half_to_float((u16)(pair[2 * j + 1] >> 16)), scale, steps);
        word[j] = __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
    }
    return make_uint2(word[0], word[1]);
}

__device__ __forceinline__ float squares_of(uint4 eight, float sum) {
    const u32* word = (const u32*)&eight;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float low = half_to_float((u16)word[j]), high = half_to_float((u16)(word[j] >> 16));
        sum += low * low;
        sum += high * high;
    }
    return sum;
}

// RMSNorm(x) * weight for a product of KIND K; x also goes to ``kept``, where there is such.
template <int K>
__device__ __forceinline__ void load_normed(const Shape& shape, float epsilon, const u16* x, u16* kept, const float* calibrated) {
    constexpr int granules = HIDDEN / 8, turns = up(granules, ROW_THREADS), batch = turns < 8 ? turns : 8;
    const int here = thread_here(), row = here / ROW_THREADS, thread = here % ROW_THREADS;
    uint4* rows = (uint4*)(memory + (K == 3 ? AT_HALF + row * HALF_PITCH : AT_X + row * shape.pitch));
    const uint4 *weights = (const uint4*)(memory + AT_NORM), *from = (const uint4*)x;
    float inverse = 0.0f, largest = 0.0f;
#pragma unroll 1
    for (int turn = 0; turn < turns; turn += batch) {
        uint4 loaded[batch];
#pragma unroll
        for (int i = 0; i < batch; i++) {
            const int at = (turn + i) * ROW_THREADS + thread;
            loaded[i] = at < granules ? load_fresh(from + at) : make_uint4(0, 0, 0, 0);
        }
        if (turn == 0) {
            float sum = 0.0f;
            if constexpr (batch == turns) {
#pragma unroll
                for (int i = 0; i < batch; i++) sum = squares_of(loaded[i], sum);
            } else {
#pragma unroll 1
                for (int at = thread; at < granules; at += ROW_THREADS) sum = squares_of(load_fresh(from + at), sum);
            }
            sum = row_reduced<false>(sum);
            inverse = inverse_root(sum * (1.0f / HIDDEN) + epsilon);
        }
#pragma unroll
        for (int i = 0; i < batch; i++) {
            const int at = (turn + i) * ROW_THREADS + thread;
            if (at >= granules) continue;
            if (kept) ((uint4*)(kept + row * HIDDEN))[at] = loaded[i];
            const uint4 w = weights[at];
            u32* word = (u32*)&loaded[i];
            const u32* weight = (const u32*)&w;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float low = half_to_float((u16)word[j]) * inverse, high = half_to_float((u16)(word[j] >> 16)) * inverse;
                word[j] = mul2(halves_of(low, high), weight[j]);
                if (K == 3) largest = larger_of(largest, word[j]);
            }
            rows[at] = loaded[i];
        }
    }
    if constexpr (K == 3) {
        const float scale = row_scale_of(calibrated ? 0.0f : row_reduced<true>(largest), calibrated), steps = 1.0f / scale;
        if (thread == 0) column_scale[row] = scale;
        uint2* integers = (uint2*)(memory + AT_X + row * shape.pitch);
#pragma unroll 2
        for (int at = thread; at < granules; at += ROW_THREADS) integers[at] = quantized(rows[at], scale, steps);
    }
    // Values beyond k, which only a padded weight has, are zeros.
#pragma unroll 1
    for (int at = HIDDEN * x_width(K) / 16 + thread; at < shape.held_values * x_width(K) / 16; at += ROW_THREADS)
        ((uint4*)(memory + AT_X + row * shape.pitch))[at] = make_uint4(0, 0, 0, 0);
}

// The scale of every row of a product whose activations are quantized as they are: from the largest values that the
// blocks which made them left behind.
__device__ __forceinline__ void hold_scales(const u32* largest, const float* calibrated) {
    const int here = thread_here();
    if (here < NB) column_scale[here] = row_scale_of(calibrated ? 0.0f : load_fresh((const float*)largest + here), calibrated);
    consumers_meet();
}

// What this block found goes where hold_scales() will look for it; before the grid's barrier.
__device__ __forceinline__ void leave_largest(u32* largest) {
    consumers_meet();
    if (thread_here() == 0)
#pragma unroll
        for (int n = 0; n < NB; n++) {
            raise(largest + n, row_largest[n]);
            row_largest[n] = 0;
        }
}

// One segment of rows that are multiplied as they are; what is only copied is on its way afterwards.
template <int K>
__device__ __forceinline__ void load_plain(const Shape& shape, const u16* x, int segment) {
    const int here = thread_here();
    const int first = segment * shape.held_values, count = min(shape.held_values, shape.values - first) / 8;
    const int row = here / ROW_THREADS, thread = here % ROW_THREADS;
    const uint4* from = (const uint4*)(x + (i64)row * shape.values + first);
    char* to = memory + AT_X + segment % 2 * shape.buffer + row * shape.pitch;
    if constexpr (K == 3) {
        const float scale = column_scale[row], steps = 1.0f / scale;
#pragma unroll 2
        for (int at = thread; at < count; at += ROW_THREADS) ((uint2*)to)[at] = quantized(load_fresh(from + at), scale, steps);
    } else {
#pragma unroll 1
        for (int at = thread; at < count; at += ROW_THREADS) copy_async(shared_address(to + at * 16), from + at);
        const int wide = min(shape.held_values, shape.steps * step_values(K) - first) / 8;
#pragma unroll 1
        for (int at = count + thread; at < wide; at += ROW_THREADS) ((uint4*)to)[at] = make_uint4(0, 0, 0, 0);
    }
}
