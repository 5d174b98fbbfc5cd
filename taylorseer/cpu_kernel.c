/* The weighted sum of anchors in one pass over memory: every anchor is read once, the sum is kept in float32 in registers
 * and written once. Built with the package if there is a C compiler; taylorseer/cpu_kernel.py calls it. */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define X86
#include <immintrin.h>
#endif

#define MAX_SLOTS 9 /* predictors.py: MAX_ORDER + 1 */
#define SMALL 32768 /* with fewer elements one thread is faster than several; torch's own limit */
#define INLINE static inline __attribute__((always_inline))

/* One library for all processors: which of the three versions runs is decided when it is loaded. */
#ifdef X86
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif

/* Two bfloat16 numbers (each the upper half of a float32) at any even address. As one word they are split and joined
 * by shifts and masks, which is faster than widening and narrowing vectors. */
typedef uint32_t pair __attribute__((aligned(2), may_alias));

INLINE float number(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float lower(uint32_t both) { return number(both << 16); }
INLINE float upper(uint32_t both) { return number(both & 0xffff0000u); }

/* Bits whose upper half is the nearest bfloat16, and the even one of two equally near. NaN stays NaN: if a sum of
 * bfloat16 numbers is NaN, its lower half is 0, as in one of them or in the processor's own NaN, so nothing is carried
 * into the upper half. */
INLINE uint32_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits + 0x7fffu + (bits >> 16 & 1);
}

/* `count` is a constant wherever these two are inlined, so that the loops over slots are unrolled. */

INLINE void sum_float32(const void *const *slots, const float *weights, const int count, void *sum, int64_t begin,
                        int64_t end) {
    const float *slot[MAX_SLOTS];
    float weight[MAX_SLOTS], *out = sum;
    for (int k = 0; k < count; k++) {
        slot[k] = slots[k];
        weight[k] = weights[k];
    }
#pragma GCC ivdep
    for (int64_t i = begin; i < end; i++) {
        float total = weight[0] * slot[0][i];
        for (int k = 1; k < count; k++) total += weight[k] * slot[k][i];
        out[i] = total;
    }
}

INLINE void sum_bfloat16(const void *const *slots, const float *weights, const int count, void *sum, int64_t begin,
                         int64_t end) {
    const pair *slot[MAX_SLOTS];
    float weight[MAX_SLOTS];
    pair *out = sum;
    for (int k = 0; k < count; k++) {
        slot[k] = slots[k];
        weight[k] = weights[k];
    }
#pragma GCC ivdep
    for (int64_t i = begin; i < end; i++) {
        float first = weight[0] * lower(slot[0][i]), second = weight[0] * upper(slot[0][i]);
        for (int k = 1; k < count; k++) {
            first += weight[k] * lower(slot[k][i]);
            second += weight[k] * upper(slot[k][i]);
        }
        out[i] = rounded(first) >> 16 | (rounded(second) & 0xffff0000u);
    }
}

#ifdef X86
#define ROUNDS_ITSELF "avx512f,avx512bw,avx512bf16"

/* The same with the processor's own rounding to bfloat16, which treats numbers below 2^-126 as 0. */
__attribute__((target(ROUNDS_ITSELF))) INLINE void sum_avx512_bfloat16(const void *const *slots, const float *weights,
                                                                      const int count, void *sum, int64_t begin,
                                                                      int64_t end) {
    const __m512i upper_half = _mm512_set1_epi32((int)0xffff0000);
    uint16_t alternating[32];
    for (int i = 0; i < 32; i++) alternating[i] = i / 2 + i % 2 * 16;
    const __m512i order = _mm512_loadu_si512(alternating);
    int64_t i = begin;
    for (; i + 16 <= end; i += 16) {
        __m512 first, second;
        for (int k = 0; k < count; k++) {
            const __m512i both = _mm512_loadu_si512((const pair *)slots[k] + i);
            const __m512 weight = _mm512_set1_ps(weights[k]);
            const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(both, upper_half));
            first = k ? _mm512_fmadd_ps(weight, low, first) : _mm512_mul_ps(weight, low);
            second = k ? _mm512_fmadd_ps(weight, high, second) : _mm512_mul_ps(weight, high);
        }
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_storeu_si512((pair *)sum + i, _mm512_permutexvar_epi16(order, halves));
    }
    sum_bfloat16(slots, weights, count, sum, i, end);
}
#endif

#define CASE(dtype, count) \
    case count: \
        sum_##dtype(slots, weights, count, out, begin, end); \
        break;

#define DEFINE(target, dtype) \
    target static void part_##dtype(const void *const *slots, const float *weights, int count, void *out, \
                                    int64_t begin, int64_t end) { \
        switch (count) { \
            CASE(dtype, 1) CASE(dtype, 2) CASE(dtype, 3) CASE(dtype, 4) CASE(dtype, 5) \
            CASE(dtype, 6) CASE(dtype, 7) CASE(dtype, 8) CASE(dtype, 9) \
        } \
    }

DEFINE(EVERY_PROCESSOR, float32)
DEFINE(EVERY_PROCESSOR, bfloat16)
#ifdef X86
DEFINE(__attribute__((target(ROUNDS_ITSELF))), avx512_bfloat16)
#endif

typedef void part(const void *const *, const float *, int, void *, int64_t, int64_t);

/* The terms of the sum: the slots whose weights are not 0. */
struct terms {
    const void *slots[MAX_SLOTS];
    float weights[MAX_SLOTS];
    int count;
};

static struct terms terms_of(const void *slots, const float *weights, int count, int64_t slot_bytes) {
    struct terms used = {.count = 0};
    for (int k = 0; k < count; k++) {
        if (weights[k] == 0) continue;
        used.slots[used.count] = (const char *)slots + k * slot_bytes;
        used.weights[used.count++] = weights[k];
    }
    return used;
}

static void in_parts(part *sum_of, const struct terms *used, void *out, int64_t numel, int threads) {
    if (numel < SMALL || threads < 2) {
        sum_of(used->slots, used->weights, used->count, out, 0, numel);
        return;
    }
    const int64_t each = ((numel + threads - 1) / threads + 63) / 64 * 64;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t begin = each * thread, end = begin + each < numel ? begin + each : numel;
        if (begin < end) sum_of(used->slots, used->weights, used->count, out, begin, end);
    }
}

/* sum_k weights[k] * slots[k] over `count` slots, at most MAX_SLOTS, of `numel` elements each, one after another in
 * memory. Slots of weight 0 are not read. */

void weighted_sum_float32(const void *slots, const float *weights, int count, void *out, int64_t numel, int threads) {
    const struct terms used = terms_of(slots, weights, count, numel * 4);
    in_parts(part_float32, &used, out, numel, threads);
}

void weighted_sum_bfloat16(const void *slots, const float *weights, int count, void *out, int64_t numel, int threads) {
    const struct terms used = terms_of(slots, weights, count, numel * 2);
    part *sum_of = part_bfloat16;
#ifdef X86
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw")) sum_of = part_avx512_bfloat16;
#endif
    in_parts(sum_of, &used, out, numel / 2, threads);
    if (numel % 2) { /* the last one has no partner */
        float total = 0;
        for (int k = 0; k < used.count; k++)
            total += used.weights[k] * number((uint32_t)((const uint16_t *)used.slots[k])[numel - 1] << 16);
        ((uint16_t *)out)[numel - 1] = rounded(total) >> 16;
    }
}
