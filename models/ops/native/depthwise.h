/* The taps of a depth-wise 3x3 convolution along a row, for a block of LANES channels: they stay in registers. */
#pragma once
#include "kernels.h"

/* Columns `from` to `to` of a row and of its two neighbours, which are NULL outside the image. */
typedef struct { const float *row[3]; int64_t channels, width, from, to; } Window;

/* Three pixels of each row around a position. A row outside the image is replaced by the middle one, times zero taps. */
typedef struct { const float *row[3]; vec left[3], here[3]; } Taps;

INLINE Taps first_taps(const Window *v, int64_t d, int count) {
    Taps t;
    for (int r = 0; r < 3; r++) {
        t.row[r] = (v->row[r] ? v->row[r] : v->row[1]) + d;
        t.left[r] = v->from > 0 ? load(t.row[r] + (v->from - 1) * v->channels, count) : splat(0);
        t.here[r] = load(t.row[r] + v->from * v->channels, count);
    }
    return t;
}

/* The sum over the nine pixels, given the three on the right, and one step to the right. */
INLINE vec weigh(const vec *tap, Taps *t, const vec *right) {
    vec sum[3];
#pragma GCC unroll 3
    for (int r = 0; r < 3; r++) {
        sum[r] = tap[3 * r] * t->left[r] + tap[3 * r + 1] * t->here[r] + tap[3 * r + 2] * right[r];
        t->left[r] = t->here[r], t->here[r] = right[r];
    }
    return sum[0] + sum[1] + sum[2];
}

/* The convolution of channels d to d + count: out[w - from], `stride` floats apart. `flip` reverses
 * the taps, which gives the gradient with respect to the input. */
INLINE void convolve(const Window *v, int64_t d, int count, const float *weight, int flip, float *out, int64_t stride) {
    vec tap[9], right[3];
    Taps t = first_taps(v, d, count);
    for (int k = 0; k < 9; k++)
        tap[k] = v->row[k / 3] ? load(weight + (flip ? 8 - k : k) * v->channels + d, count) : splat(0);
    int64_t w = v->from, inside = min64(v->to, v->width - 1);
    for (; w < inside; w++, out += stride) {
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) right[r] = load(t.row[r] + (w + 1) * v->channels, count);
        store(out, weigh(tap, &t, right), count);
    }
    right[0] = right[1] = right[2] = splat(0);
    if (w < v->to) store(out, weigh(tap, &t, right), count);
}
