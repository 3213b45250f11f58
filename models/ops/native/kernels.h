/* Shared by the kernels: a vector of channels, its loads and stores, and elementary functions on it.
 *
 * GCC's vector extensions, which Clang has too, so that one source serves AVX-512, AVX2 and NEON. Channels are
 * innermost in memory; a vector holds LANES of them.
 */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4)));

#define INLINE static inline __attribute__((always_inline))

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Channels of the vector that begins at channel d. */
INLINE int count_of(int64_t channels, int64_t d) { return (int)min64(LANES, channels - d); }

/* Memory aligned to cache lines: a vector that crosses two takes twice as long to load. NULL if there is too little. */
INLINE void *reserve(int64_t bytes) { return aligned_alloc(64, (bytes / 64 + 1) * 64); }
INLINE void *reserve_zeros(int64_t bytes) {
    void *memory = reserve(bytes);
    return memory ? memset(memory, 0, bytes) : NULL;
}

/* A strided tensor (batch0, batch1, step, channel): strides in elements, channel stride 1. */
typedef struct { float *data; int64_t batch0, batch1, step; } View;

INLINE float *at(const View *v, int64_t b0, int64_t b1, int64_t t) {
    return v->data + b0 * v->batch0 + b1 * v->batch1 + t * v->step;
}

INLINE vec load(const float *p, int count) {
    if (count == LANES) return *(const vec *)p;
#ifdef __AVX512F__
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#else
    vec v = {0};
    memcpy(&v, p, count * sizeof(float));
    return v;
#endif
}

INLINE void store(float *p, vec v, int count) {
    if (count == LANES) *(vec *)p = v;
#ifdef __AVX512F__
    else _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#else
    else memcpy(p, &v, count * sizeof(float));
#endif
}

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec select_vec(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

/* NaN where a is NaN, as in PyTorch. */
INLINE vec max_vec(vec a, vec b) { return select_vec(a < b, b, a); }
INLINE vec min_vec(vec a, vec b) { return select_vec(b < a, b, a); }

INLINE float sum(const vec *v) {
    typedef float quarter __attribute__((vector_size(16), aligned(4)));
    quarter q = {0};
    for (int i = 0; i < LANES / 4; i++) q += ((const quarter *)v)[i];
    return (q[0] + q[1]) + (q[2] + q[3]);
}

INLINE vec reciprocal(vec x) {
#ifdef __AVX512F__
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);                                       /* one step of Newton's: 14 bits become 24 */
#else
    return 1.0f / x;
#endif
}

/* 2^x for x < 128, relative error below 2e-7: a polynomial of x - round(x), its exponent added as an integer. */
INLINE vec exp2_vec(vec x) {
#ifdef __AVX512F__
    vec whole = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = max_vec(x, splat(-126.0f));
    vec shifted = x + 12582912.0f;                                   /* 1.5 * 2^23: the fraction is rounded away */
    vec whole = shifted - 12582912.0f;
#endif
    vec f = x - whole;
    vec p = splat(1.32187e-3f);
    p = p * f + 9.67170e-3f;
    p = p * f + 5.550893e-2f;
    p = p * f + 2.4022238e-1f;
    p = p * f + 6.9314686e-1f;
    p = p * f + 1.0f;
#ifdef __AVX512F__
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return (vec)((ivec)p + (((ivec)shifted - 0x4B400000) << 23));
#endif
}

#define LOG2_E 1.44269504f

INLINE vec exp_vec(vec x) { return exp2_vec(x * LOG2_E); }

/* e^-|x|, from which softplus and sigmoid of x are computed. */
INLINE vec exp_minus_abs(vec x) { return exp_vec(min_vec(x, -x)); }

/* 1 / (1 + e^-x), given e^-|x|. */
INLINE vec sigmoid_of(vec x, vec e) {
    vec r = reciprocal(1.0f + e);
    return select_vec(x < 0.0f, e * r, r);
}

INLINE vec sigmoid(vec x) { return sigmoid_of(x, exp_minus_abs(x)); }

/* log(1 + e^x) = max(x, 0) + log1p(e), e = e^-|x|; log1p(e) = 2 atanh(s), s = e / (2 + e) <= 1/3: accurate for small e. */
INLINE vec softplus_of(vec x, vec e) {
    vec s = e * reciprocal(2.0f + e), t = s * s;
    vec p = splat(2.8161454e-1f);
    p = p * t + 2.7964345e-1f;
    p = p * t + 4.0024651e-1f;
    p = p * t + 6.6666320e-1f;
    p = p * t + 2.0f;
    return max_vec(x, splat(0.0f)) + s * p;
}
