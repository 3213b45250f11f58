/* The taps of a depth-wise 3x3 convolution along a row, for a block of LANES channels: they stay in registers. */
#pragma once
#include "kernels.h"

/* Columns `from` to `to` of a row and of its two neighbours, which are NULL outside the image. */
typedef struct { const float *row[3]; int64_t channels, width, from, to; } Window;

INLINE vec pixel(const Window *v, int r, int64_t w, int64_t d, int count) {
    return v->row[r] && w >= 0 && w < v->width ? load(v->row[r] + w * v->channels + d, count) : all(0);
}

/* The convolution of channels d to d + count: out[w - from], `stride` floats apart. `flip` reverses
 * the taps, which gives the gradient with respect to the input. */
INLINE void convolve(const Window *v, int64_t d, int count, const float *weight, int flip, float *out, int64_t stride) {
    vec tap[9], left[3], here[3], right[3];
    for (int k = 0; k < 9; k++) tap[k] = load(weight + (flip ? 8 - k : k) * v->channels + d, count);
    for (int r = 0; r < 3; r++) left[r] = pixel(v, r, v->from - 1, d, count), here[r] = pixel(v, r, v->from, d, count);
    for (int64_t w = v->from; w < v->to; w++) {
        vec sum[3];
#pragma GCC unroll 3
        for (int r = 0; r < 3; r++) {
            right[r] = pixel(v, r, w + 1, d, count);
            sum[r] = tap[3 * r] * left[r] + tap[3 * r + 1] * here[r] + tap[3 * r + 2] * right[r];
            left[r] = here[r], here[r] = right[r];
        }
        store(out + (w - v->from) * stride, sum[0] + sum[1] + sum[2], count);
    }
}
