/* A product of a few pixels with a small matrix, for the 1x1 convolutions inside a pass: y (rows, N) = x (rows, K) w (K, N).
 *
 * w is packed in panels of PANEL vectors of outputs, so that a block of TILE_ROWS x PANEL sums stays in registers while
 * k runs, and the panel in the first-level cache.
 */
#pragma once
#include "kernels.h"

#define PANEL 3
#ifdef __AVX512F__
#define TILE_ROWS 8                                 /* 24 of 32 registers hold sums */
#else
#define TILE_ROWS 4                                 /* 12 of AVX2's 16; 24 of NEON's 32 */
#endif

/* Loads a vector once: GCC would load it again in each multiply-add, and be limited by that. */
#ifdef __AVX__
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v) (void)0
#endif

INLINE int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

/* Output channel n of w (N, K), as PyTorch keeps it, becomes column n of the panels; `to` is padded with zeros to a
 * multiple of LANES columns, which the caller has cleared. */
INLINE void pack(const float *w, int64_t K, int64_t N, int64_t columns, int64_t first, float *to) {
    for (int64_t n = 0; n < N; n++) {
        int64_t column = first + n, panel = column / (PANEL * LANES) * PANEL * LANES;
        int64_t width = min64(PANEL * LANES, columns - panel);
        for (int64_t k = 0; k < K; k++) to[panel * K + k * width + column - panel] = w[n * K + k];
    }
}

/* `rows` times `panel` vectors of sums. */
INLINE void matmul_block(const float *x, int64_t x_step, const float *w, int64_t K, int rows, int panel, float *y,
                         int64_t y_step) {
    vec sums[TILE_ROWS][PANEL];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int c = 0; c < panel; c++) sums[r][c] = splat(0);
    for (int64_t k = 0; k < K; k++) {
        vec columns[PANEL];
#pragma GCC unroll 3
        for (int c = 0; c < panel; c++) {
            columns[c] = load(w + (k * panel + c) * LANES, LANES);
            KEEP(columns[c]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vec value = splat(x[r * x_step + k]);
            KEEP(value);
#pragma GCC unroll 3
            for (int c = 0; c < panel; c++) sums[r][c] += value * columns[c];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int c = 0; c < panel; c++) store(y + r * y_step + c * LANES, sums[r][c], LANES);
}

INLINE void matmul_panel(const float *x, int64_t x_step, const float *w, int64_t rows, int64_t K, int panel, float *y,
                         int64_t y_step) {
    int64_t r = 0;
    for (; r + TILE_ROWS <= rows; r += TILE_ROWS)
        matmul_block(x + r * x_step, x_step, w, K, TILE_ROWS, panel, y + r * y_step, y_step);
    for (; r < rows; r++) matmul_block(x + r * x_step, x_step, w, K, 1, panel, y + r * y_step, y_step);
}

/* `columns`: of w and y, a multiple of LANES. */
static void matmul(const float *x, int64_t x_step, const float *w, int64_t rows, int64_t K, int64_t columns, float *y,
                   int64_t y_step) {
    for (int64_t n = 0; n < columns; n += PANEL * LANES, w += K * PANEL * LANES) {
        int64_t vectors = min64(PANEL, (columns - n) / LANES);
        if (vectors == 3) matmul_panel(x, x_step, w, rows, K, 3, y + n, y_step);
        else if (vectors == 2) matmul_panel(x, x_step, w, rows, K, 2, y + n, y_step);
        else matmul_panel(x, x_step, w, rows, K, 1, y + n, y_step);
    }
}
