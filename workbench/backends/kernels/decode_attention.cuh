// Attention of the new rows over the cache: RoPE, the write into the cache, INT8, pieces of long rows.

constexpr int VEC = KV8 ? 16 : 8;      // values of a head that a lane holds: 16 bytes of the cache
constexpr int ROW_LANES = DIM / VEC;   // lanes that hold one cached row
constexpr int ROWS_AT_ONCE = 32 / ROW_LANES;
constexpr int UNROLL = KV8 ? 2 : 4;
constexpr int GROUP = HEADS / KV_HEADS, PARTS = GROUP / QUERIES;
constexpr int ATTENTIONS = NB * KV_HEADS * PARTS;  // that need no other
// Where there are more of them than blocks, half of a block's warps take one each.
constexpr int TEAM = ATTENTIONS > BLOCKS ? CONSUMERS / 2 : CONSUMERS, TEAMS = CONSUMERS / TEAM, TEAM_THREADS = TEAM * 32;
constexpr float NOTHING = -1e30f;  // the largest score of no rows
constexpr float OUTSIDE = 2.0f * NOTHING;  // the score of a row that is not there: its weight is 0 beside NOTHING too

__device__ __forceinline__ void team_meets(int team) { meet<TEAM_THREADS>(2 + team); }

// Some of the cached rows of one head. Few rows are not divided: putting pieces together takes longer than they do.
struct AttentionUnit {
    int group, split, pieces, part, kv_head, n, length, begin, end;
    i64 base;  // of the head's rows in the cache, in values
    __device__ __forceinline__ AttentionUnit(const Step& s, int unit) {
        split = unit / ATTENTIONS, group = unit % ATTENTIONS;
        part = group % PARTS, kv_head = group / PARTS % KV_HEADS, n = group / (PARTS * KV_HEADS);
        length = held_start[n];
        pieces = max(1, min(SPLITS, (length + SPLIT_ROWS - 1) / SPLIT_ROWS));
        const int rows = (length + pieces - 1) / pieces;
        begin = split * rows, end = min(length, begin + rows);
        base = (i64)(n * KV_HEADS + kv_head) * s.max_len * DIM;
    }
};

__device__ __forceinline__ void floats_of_row(uint4 held_row, float* value) {
    const u32* word = (const u32*)&held_row;
#if KV8
#pragma unroll
    for (int i = 0; i < 4; i++) floats_of_bytes(word[i], value + 4 * i);
#else
#pragma unroll
    for (int i = 0; i < 4; i++) value[2 * i] = half_to_float((u16)word[i]), value[2 * i + 1] = half_to_float((u16)(word[i] >> 16));
#endif
}

// VEC values of a head of this step's query or key, and those across that RoPE mixes with them.
struct Unturned {
    uint4 own[VEC / 8], across[VEC / 8];
    __device__ __forceinline__ Unturned(const u16* head, int at) {
#pragma unroll
        for (int i = 0; i < VEC / 8; i++) {
            own[i] = load_fresh(head + at + 8 * i);
            across[i] = load_fresh(head + at + 8 * i + (at < DIM / 2 ? DIM / 2 : -DIM / 2));
        }
    }
    __device__ __forceinline__ void turn(int at, const float* cos, const float* sin, float* value) const {
        const u32 *a = (const u32*)own, *b = (const u32*)across;
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const float mixed = half_to_float((u16)(b[i / 2] >> (16 * (i % 2)))) * sin[i];
            value[i] = half_to_float((u16)(a[i / 2] >> (16 * (i % 2)))) * cos[i] + (at < DIM / 2 ? -mixed : mixed);
        }
    }
};

// A new key or value as the cache holds it: rounded, or quantized; written where ``writes``, and left in ``value``.
__device__ __forceinline__ void into_cache(char* cache, i64 at, float* value, float scale, bool writes) {
#if KV8
    u32 word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        const int q = integer_of(value[i], scale);
        word[i / 4] |= ((u32)q & 0xffu) << (8 * (i % 4));
        value[i] = (float)q;
    }
    if (writes) *(uint4*)(cache + at) = make_uint4(word[0], word[1], word[2], word[3]);
#else
    u16 rounded[8];
#pragma unroll
    for (int i = 0; i < 8; i++) rounded[i] = float_to_half(value[i]), value[i] = half_to_float(rounded[i]);
    if (writes)
        *(uint4*)(cache + at * 2) = make_uint4(rounded[0] | (u32)rounded[1] << 16, rounded[2] | (u32)rounded[3] << 16,
                                               rounded[4] | (u32)rounded[5] << 16, rounded[6] | (u32)rounded[7] << 16);
#endif
}

struct Softmax {
    __align__(16) float sum[QUERIES][VEC];
    float largest[QUERIES], total[QUERIES];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int h = 0; h < QUERIES; h++) {
            largest[h] = NOTHING, total[h] = 0.0f;
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[h][i] = 0.0f;
        }
    }

    // Take in what the lanes that lie ``offset`` apart hold.
    __device__ __forceinline__ void merge(int offset) {
#pragma unroll
        for (int h = 0; h < QUERIES; h++) {
            const float other = __shfl_xor_sync(~0u, largest[h], offset), both = fmaxf(largest[h], other);
            const float mine = __expf(largest[h] - both), theirs = __expf(other - both);
            total[h] = total[h] * mine + __shfl_xor_sync(~0u, total[h], offset) * theirs;
#pragma unroll
            for (int i = 0; i < VEC; i++) sum[h][i] = sum[h][i] * mine + __shfl_xor_sync(~0u, sum[h][i], offset) * theirs;
            largest[h] = both;
        }
    }
};

__device__ __forceinline__ float row_dot(const float* query, const float* key) {
    float dot = 0.0f;
#pragma unroll
    for (int i = 0; i < VEC; i++) dot += query[i] * key[i];
#pragma unroll
    for (int o = 1; o < ROW_LANES; o <<= 1) dot += __shfl_xor_sync(~0u, dot, o);
    return dot;
}

// The rows that a warp takes of one unit: UNROLL times ROWS_AT_ONCE together, then as many TEAM times further on.
struct CachedRows {
    static constexpr int step = ROWS_AT_ONCE * UNROLL, width = KV8 ? 1 : 2;
    const char *keys, *values;
    int row, end;
    uint4 key[UNROLL] = {}, value[UNROLL] = {};

    __device__ __forceinline__ CachedRows(const Layer& layer, const AttentionUnit& u, int warp, int lane) {
        const i64 at = (u.base + lane % ROW_LANES * VEC) * width;
        keys = layer.key + at, values = layer.value + at;
        row = u.begin + warp * step, end = u.end;
    }
    __device__ __forceinline__ void load(uint4* to, const char* from, int first, int lane) const {
        if (first >= end) return;
#pragma unroll
        for (int i = 0; i < UNROLL; i++)
            to[i] = load_stream((const uint4*)(from + (i64)min(first + i * ROWS_AT_ONCE + lane / ROW_LANES, end - 1) * (DIM * width)));
    }
};

__device__ __forceinline__ void attend_rows(CachedRows& rows, const float (&query)[QUERIES][VEC], float key_scale, int lane, Softmax& soft) {
#pragma unroll 1
    for (; rows.row < rows.end; rows.row += TEAM * CachedRows::step) {
        const int next = rows.row + TEAM * CachedRows::step;
        float score[QUERIES][UNROLL];
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            float held_key[VEC];
            floats_of_row(rows.key[i], held_key);
            const bool inside = rows.row + i * ROWS_AT_ONCE + lane / ROW_LANES < rows.end;
#pragma unroll
            for (int h = 0; h < QUERIES; h++) {
                const float dot = row_dot(query[h], held_key) * key_scale;
                score[h][i] = inside ? dot : OUTSIDE;
            }
        }
        rows.load(rows.key, rows.keys, next, lane);
#pragma unroll
        for (int h = 0; h < QUERIES; h++) {
            float newest = soft.largest[h];
#pragma unroll
            for (int i = 0; i < UNROLL; i++) newest = fmaxf(newest, score[h][i]);
            const float shrink = __expf(soft.largest[h] - newest);
            soft.largest[h] = newest;
            soft.total[h] *= shrink;
#pragma unroll
            for (int i = 0; i < VEC; i++) soft.sum[h][i] *= shrink;
#pragma unroll
            for (int i = 0; i < UNROLL; i++) {
                score[h][i] = __expf(score[h][i] - newest);
                soft.total[h] += score[h][i];
            }
        }
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            float held_value[VEC];
            floats_of_row(rows.value[i], held_value);
#pragma unroll
            for (int h = 0; h < QUERIES; h++)
#pragma unroll
                for (int j = 0; j < VEC; j++) soft.sum[h][j] += score[h][i] * held_value[j];
        }
        rows.load(rows.value, rows.values, next, lane);
    }
}

// Sums of ``count`` softmaxes that lie ``stride`` floats apart, each [QUERIES][DIM], then [QUERIES] of (largest, total).
template <bool FRESH>
__device__ __forceinline__ float merged(const float* pieces, int count, int stride, int h, int d, float& largest, float& total) {
    largest = NOTHING, total = 0.0f;
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < count; i++) {
        const float* piece = pieces + i * stride;
        largest = fmaxf(largest, FRESH ? load_fresh(piece + QUERIES * DIM + 2 * h) : piece[QUERIES * DIM + 2 * h]);
    }
#pragma unroll 8
    for (int i = 0; i < count; i++) {
        const float* piece = pieces + i * stride;
        const float *at = piece + QUERIES * DIM + 2 * h, *value = piece + h * DIM + d;
        const float weight = __expf((FRESH ? load_fresh(at) : at[0]) - largest);
        total += weight * (FRESH ? load_fresh(at + 1) : at[1]);
        sum += weight * (FRESH ? load_fresh(value) : value[0]);
    }
    return sum;
}

// The new row goes into the cache, and is what the softmax begins with.
__device__ __forceinline__ void begin_with_new_row(const Layer& layer, const AttentionUnit& u, const Unturned& raw_key, const uint4* raw_value,
                                                   const float* cos, const float* sin, const float (&query)[QUERIES][VEC],
                                                   float key_scale, float value_scale, int lane, Softmax& soft) {
    const int at = lane % ROW_LANES * VEC;
    const bool writes = u.part == 0 && lane < ROW_LANES;
    const i64 row = u.base + (i64)u.length * DIM + at;
    float key[VEC], value[VEC];
    raw_key.turn(at, cos, sin, key);
    const u32* word = (const u32*)raw_value;
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        key[i] = half_to_float(float_to_half(key[i]));
        value[i] = half_to_float((u16)(word[i / 2] >> (16 * (i % 2))));
    }
    into_cache(layer.key, row, key, key_scale, writes);
    into_cache(layer.value, row, value, value_scale, writes);
#pragma unroll
    for (int h = 0; h < QUERIES; h++) {
        const float score = row_dot(query[h], key) * key_scale;
        if (lane < ROW_LANES) {
            soft.largest[h] = score, soft.total[h] = 1.0f;
#pragma unroll
            for (int i = 0; i < VEC; i++) soft.sum[h][i] = value[i];
        }
    }
}

// The warps' softmaxes, or the pieces of several blocks, become context.
__device__ __forceinline__ void put_together(const Step& s, const AttentionUnit& u, const float* scratch, float value_scale, u32* largest_of_rows) {
    const int team = thread_here() / TEAM_THREADS, here = thread_here() % TEAM_THREADS;
    u16* context = s.context + (i64)u.n * CONTEXT + (u.kv_head * GROUP + u.part * QUERIES) * DIM;
    float* pieces = s.partial + (i64)u.group * SPLITS * PIECE;
    float largest_context = 0.0f;
    auto store = [&](int i, float value) {
        context[i] = float_to_half(value);
        largest_context = fmaxf(largest_context, fabsf(half_to_float(float_to_half(value))));
    };
    auto tell = [&] {  // for whoever quantizes the context
        if (KIND != 3) return;
        largest_context = warp_largest(largest_context);
        if (here % 32 == 0 && largest_context > 0.0f) atomicMax(largest_of_rows + u.n, __float_as_uint(largest_context));
    };
#pragma unroll 1
    for (int i = here; i < QUERIES * DIM; i += TEAM_THREADS) {
        float largest, total;
        const float sum = merged<false>(scratch, TEAM, PIECE, i / DIM, i % DIM, largest, total) * value_scale;
        if (u.pieces == 1) {
            store(i, __fdividef(sum, total));
        } else {
            float* mine = pieces + u.split * PIECE;
            mine[i] = sum;
            if (i % DIM == 0) mine[QUERIES * DIM + i / DIM * 2] = largest, mine[QUERIES * DIM + i / DIM * 2 + 1] = total;
        }
    }
    if (SPLITS == 1 || u.pieces == 1) {
        tell();
        return;
    }
    team_meets(team);
    if (here == 0) tickets[team] = take_ticket(s.arrived + u.group);
    team_meets(team);
    if (tickets[team] != u.pieces - 1) return;
    if (here == 0) s.arrived[u.group] = 0;
#pragma unroll 1
    for (int i = here; i < QUERIES * DIM; i += TEAM_THREADS) {
        float largest, total;
        const float sum = merged<true>(pieces, u.pieces, PIECE, i / DIM, i % DIM, largest, total);
        store(i, __fdividef(sum, total));
    }
    tell();
}

// The first cached rows are on their way before ``join()``, after which the new rows are there.
template <class Join>
__device__ __forceinline__ void attend(const Step& s, const Layer& layer, u32* largest_of_rows, Join join) {
    const int warp = thread_here() / 32 % TEAM, lane = thread_here() % 32, team = thread_here() / TEAM_THREADS;
    float* scratch = (float*)(memory + AT_X) + team * TEAM * PIECE;
    const int at = lane % ROW_LANES * VEC, first = blockIdx.x + team * BLOCKS;
    bool joined = false;
#pragma unroll 1
    for (int unit = first; unit < ATTENTIONS * SPLITS; unit += TEAMS * BLOCKS) {
        const AttentionUnit u(s, unit);
        if (u.split >= u.pieces) continue;
        CachedRows rows(layer, u, warp, lane);
        rows.load(rows.key, rows.keys, rows.row, lane);
        rows.load(rows.value, rows.values, rows.row, lane);
        if (!joined) join();
        joined = true;
        const u16* qkv = s.qkv + (i64)u.n * QKV;
        const int head = u.kv_head * GROUP + u.part * QUERIES;
        const bool has_new_row = u.split == 0 && warp == TEAM - 1;
        __align__(16) float cos[VEC], sin[VEC];
        float query[QUERIES][VEC];
#pragma unroll
        for (int i = 0; i < VEC; i += 4) {
            *(float4*)(cos + i) = *(const float4*)&angles[u.n][0][at % (DIM / 2) + i];
            *(float4*)(sin + i) = *(const float4*)&angles[u.n][1][at % (DIM / 2) + i];
        }
        const Unturned raw_key(qkv + (HEADS + u.kv_head) * DIM, at);
        uint4 raw_value[VEC / 8];
#pragma unroll
        for (int i = 0; i < VEC / 8; i++) raw_value[i] = load_fresh(qkv + (HEADS + KV_HEADS + u.kv_head) * DIM + at + 8 * i);
        const float key_scale = KV8 ? layer.key_scale[u.kv_head * SCALE_STRIDE] : 1.0f;
        const float value_scale = KV8 ? layer.value_scale[u.kv_head * SCALE_STRIDE] : 1.0f;
#pragma unroll
        for (int h = 0; h < QUERIES; h++) {
            const Unturned raw(qkv + (head + h) * DIM, at);
            raw.turn(at, cos, sin, query[h]);
#pragma unroll
            for (int i = 0; i < VEC; i++) query[h][i] = half_to_float(float_to_half(query[h][i] * ATTENTION_SCALE));
        }
        Softmax soft;
        soft.clear();
        if (has_new_row)
            begin_with_new_row(layer, u, raw_key, raw_value, cos, sin, query, key_scale, value_scale, lane, soft);
        attend_rows(rows, query, key_scale, lane, soft);
#pragma unroll
        for (int o = ROW_LANES; o < 32; o <<= 1) soft.merge(o);
        if (lane < ROW_LANES) {
            float* mine = scratch + warp * PIECE;
#pragma unroll
            for (int h = 0; h < QUERIES; h++) {
#pragma unroll
                for (int i = 0; i < VEC; i += 4) *(float4*)(mine + h * DIM + at + i) = *(const float4*)(soft.sum[h] + i);
                if (lane == 0) mine[QUERIES * DIM + 2 * h] = soft.largest[h], mine[QUERIES * DIM + 2 * h + 1] = soft.total[h];
            }
        }
        team_meets(team);
        put_together(s, u, scratch, value_scale, largest_of_rows);
        team_meets(team);
    }
    if (!joined) join();
}
