/* Parts of the network's blocks on a CPU, without gradients, each in one pass over the features. Intermediate features are
 * held for only a few rows of pixels at a time.
 *
 *     feed_forward       x += W_out (SiLU(a) b)       (a, b) = W_d W_in norm(x), W_d depth-wise 3x3
 *     branches           f = W_out a, gate = b        the same (a, b); or f alone
 *     gated_projection   out = x + W_out (SiLU(gate) W_in [h, v])
 *
 * Features are Views of (image, row, column, channel); matrices are (outputs, inputs), as PyTorch keeps them.
 */
#include "depthwise.h"
#include "matmul.h"

#define TILE 32                                     /* pixels whose intermediate features stay in the cache */
#define MIN_SHARE 4                                 /* rows or columns of a thread, which needs one more on each side */

typedef struct {
    View x;
    int64_t batch, height, width, channels;
    const float *norm_weight, *norm_bias, *W_in, *W_d, *W_out;
    int64_t half, halves, outputs;                  /* channels of a; 2, or 1 without b; channels of W_out's result */
    View f, gate;                                    /* of `branches`: of the region alone */
    int64_t top, bottom, left, right;               /* the region computed */
    float eps;
    int32_t threads;
} Pass;

typedef struct {
    View x, h, v, scale_h, scale_v, gate, out;       /* h and v are multiplied by their scales, where there are any */
    int64_t batch, height, width, channels;
    const float *W_in, *W_out;
    int32_t threads;
} Gated;

/* The rows [top, bottom) and columns [left, right) of one thread, and its buffers. `hidden` holds W_in norm(x) for the
 * columns [first, last): a ring of three rows (slot h % 3), and in slots 3 and 4 the rows just above and below the share,
 * which are read first because another thread overwrites them. */
typedef struct {
    int64_t top, bottom, left, right, first, last;
    int in_place;
    float *hidden, *pixels, *result;
} Share;

/* `full`: the channels fill all vectors. */
INLINE void normalise(const Pass *p, const float *x, float *y, int full) {
    vec total = splat(0), squares = splat(0);
    for (int64_t d = 0; d < p->channels; d += LANES) total += load(x + d, full ? LANES : count_of(p->channels, d));
    float mean = sum(&total) / p->channels;
    for (int64_t d = 0; d < p->channels; d += LANES) {
        int count = full ? LANES : count_of(p->channels, d);
        vec centred = load(x + d, count) - mean, kept = splat(0);
        store((float *)&kept, centred, count);
        squares += kept * kept;
    }
    float scale = 1.0f / __builtin_sqrtf(sum(&squares) / p->channels + p->eps);
    for (int64_t d = 0; d < p->channels; d += LANES) {
        int count = full ? LANES : count_of(p->channels, d);
        vec weight = load(p->norm_weight + d, count) * scale;
        store(y + d, (load(x + d, count) - mean) * weight + load(p->norm_bias + d, count), count);
    }
}

INLINE int64_t hidden_channels(const Pass *p) { return p->halves * padded(p->half); }

INLINE float *hidden_row(const Pass *p, const Share *s, int64_t h) {
    int64_t slot = h < s->top ? 3 : h >= s->bottom ? 4 : h % 3;
    return s->hidden + slot * (s->last - s->first) * hidden_channels(p);
}

static void project_row(const Pass *p, const Share *s, const float *in, int64_t image, int64_t h) {
    int64_t columns = hidden_channels(p);
    float *to = hidden_row(p, s, h);
    for (int64_t w = s->first; w < s->last; w += TILE) {
        int64_t pixels = min64(TILE, s->last - w);
        for (int64_t i = 0; i < pixels; i++) {
            const float *x = at(&p->x, image, h, w + i);
            float *y = s->pixels + i * p->channels;
            if (p->channels % LANES) normalise(p, x, y, 0);
            else normalise(p, x, y, 1);
        }
        matmul(s->pixels, p->channels, in, pixels, p->channels, columns, to + (w - s->first) * columns, columns);
    }
}

/* (a, b) of the row h from its three rows of W_in norm(x), and all that follows. */
static void finish_row(const Pass *p, const Share *s, const float *taps, const float *out, int64_t image, int64_t h) {
    int64_t half = padded(p->half), outputs = padded(p->outputs);
    Window window = {.channels = hidden_channels(p), .width = s->last - s->first};
    for (int r = 0; r < 3; r++)
        if (h + r >= 1 && h + r <= p->height) window.row[r] = hidden_row(p, s, h + r - 1);
    for (int64_t w = s->left; w < s->right; w += TILE) {
        int64_t pixels = min64(TILE, s->right - w);
        float b[TILE * LANES];
        window.from = w - s->first, window.to = window.from + pixels;
        for (int64_t d = 0; d < half; d += LANES) {
            int count = count_of(p->half, d);
            convolve(&window, d, LANES, taps, 0, s->pixels + d, half);
            if (p->halves == 2) convolve(&window, half + d, LANES, taps, 0, b, LANES);
            for (int64_t i = 0; p->halves == 2 && i < pixels; i++) {
                float *a = s->pixels + i * half + d;
                vec value = load(a, LANES), other = load(b + i * LANES, LANES);
                if (s->in_place) store(a, value * sigmoid(value) * other, LANES);
                else store(at(&p->gate, image, h - p->top, w + i - p->left) + d, other, count);
            }
        }
        matmul(s->pixels, half, out, pixels, p->half, outputs, s->result, outputs);
        for (int64_t i = 0; i < pixels; i++) {
            float *to = s->in_place ? at(&p->x, image, h, w + i) : at(&p->f, image, h - p->top, w + i - p->left);
            for (int64_t d = 0; d < p->outputs; d += LANES) {
                int count = count_of(p->outputs, d);
                vec value = load(s->result + i * outputs + d, LANES);
                store(to + d, s->in_place ? value + load(to + d, count) : value, count);
            }
        }
    }
}

/* One of nearly equal parts of the region: of its rows, or of its columns if there are more and x stays as it is. */
static Share share_of(const Pass *p, int in_place, int64_t thread, int64_t threads) {
    Share s = {.top = p->top, .bottom = p->bottom, .left = p->left, .right = p->right, .in_place = in_place};
    int64_t rows = p->bottom - p->top, columns = p->right - p->left;
    if (in_place || rows >= columns) {
        s.top = p->top + rows * thread / threads, s.bottom = p->top + rows * (thread + 1) / threads;
    } else {
        s.left = p->left + columns * thread / threads, s.right = p->left + columns * (thread + 1) / threads;
    }
    s.first = max64(s.left - 1, 0), s.last = min64(s.right + 1, p->width);
    return s;
}

/* Returns 1 if out of memory, else 0. */
static int run(const Pass *p, int in_place) {
    int64_t half = padded(p->half), outputs = padded(p->outputs), columns = hidden_channels(p);
    int64_t of_in = p->channels * columns, of_taps = 9 * columns, of_out = p->half * outputs;
    int64_t rows = p->bottom - p->top, side = in_place ? rows : max64(rows, p->right - p->left);
    int64_t threads = max64(1, min64(p->threads, side / MIN_SHARE)), of_pixels = TILE * max64(p->channels, half);
    int64_t wide = 0;
    for (int64_t i = 0; i < threads; i++) {
        Share s = share_of(p, in_place, i, threads);
        wide = max64(wide, s.last - s.first);
    }
    int64_t of_hidden = 5 * wide * columns;
    int64_t of_share = of_hidden + of_pixels + TILE * outputs;
    float *in = reserve_zeros((of_in + of_taps + of_out) * sizeof(float)), *taps = in + of_in, *out = taps + of_taps;
    float *buffers = reserve(threads * of_share * sizeof(float));
    Share *shares = malloc(threads * sizeof(Share));
    int failed = !in || !buffers || !shares;
    for (int64_t i = 0; !failed && i < p->halves; i++) {
        pack(p->W_in + i * p->half * p->channels, p->channels, p->half, columns, i * half, in);
        for (int64_t c = 0; c < p->half; c++)
            for (int64_t k = 0; k < 9; k++) taps[k * columns + i * half + c] = p->W_d[(i * p->half + c) * 9 + k];
    }
    if (!failed) pack(p->W_out, p->half, p->outputs, outputs, 0, out);
    for (int64_t i = 0; !failed && i < threads; i++) {
        shares[i] = share_of(p, in_place, i, threads);
        shares[i].hidden = buffers + i * of_share;
        shares[i].pixels = shares[i].hidden + of_hidden, shares[i].result = shares[i].pixels + of_pixels;
    }
    for (int64_t image = 0; !failed && image < p->batch; image++) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int64_t i = 0; i < threads; i++) {
            const Share *s = shares + i;
            if (s->top > 0) project_row(p, s, in, image, s->top - 1);
            if (s->bottom < p->height) project_row(p, s, in, image, s->bottom);
        }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int64_t i = 0; i < threads; i++) {
            const Share *s = shares + i;
            for (int64_t h = s->top; h < s->bottom; h++) {
                if (h == s->top) project_row(p, s, in, image, h);
                if (h + 1 < s->bottom) project_row(p, s, in, image, h + 1);
                finish_row(p, s, taps, out, image, h);
            }
        }
    }
    free(in), free(buffers), free(shares);
    return failed;
}

int feed_forward(const Pass *p) { return run(p, 1); }
int branches(const Pass *p) { return run(p, 0); }

/* The channels of one branch at a pixel, multiplied by its scale if there is one. */
INLINE void scaled(const View *m, const View *scale, int64_t image, int64_t h, int64_t w, int64_t channels, float *to) {
    const float *from = at(m, image, h, w), *by = scale->data ? at(scale, image, h, w) : NULL;
    for (int64_t d = 0; d < channels; d += LANES) {
        int count = count_of(channels, d);
        store(to + d, by ? load(from + d, count) * load(by + d, count) : load(from + d, count), count);
    }
}

/* The pixels [first, last) of a row. `branches` and `mixed` are buffers of TILE pixels. */
static void project_gated(const Gated *g, const float *in, const float *out, int64_t image, int64_t h, int64_t first,
                          int64_t last, float *branches, float *mixed) {
    int64_t channels = g->channels, half = channels / 2, columns = padded(channels), pixels = last - first;
    for (int64_t i = 0; i < pixels; i++) {
        scaled(&g->h, &g->scale_h, image, h, first + i, half, branches + i * channels);
        scaled(&g->v, &g->scale_v, image, h, first + i, half, branches + i * channels + half);
    }
    matmul(branches, channels, in, pixels, channels, columns, mixed, columns);
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t d = 0; d < channels; d += LANES) {
            vec gate = load(at(&g->gate, image, h, first + i) + d, count_of(channels, d));
            float *value = mixed + i * columns + d;
            store(value, gate * sigmoid(gate) * load(value, LANES), LANES);
        }
    matmul(mixed, columns, out, pixels, channels, columns, branches, columns);
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t d = 0; d < channels; d += LANES) {
            int count = count_of(channels, d);
            vec x = load(at(&g->x, image, h, first + i) + d, count);
            store(at(&g->out, image, h, first + i) + d, x + load(branches + i * columns + d, LANES), count);
        }
}

/* Returns 1 if out of memory, else 0. */
int gated_projection(const Gated *g) {
    int64_t channels = g->channels, columns = padded(channels);
    int failed = 0;
    float *in = reserve_zeros(2 * channels * columns * sizeof(float)), *out = in + channels * columns;
    if (!in) return 1;
    pack(g->W_in, channels, channels, columns, 0, in), pack(g->W_out, channels, channels, columns, 0, out);
#pragma omp parallel num_threads(g->threads) reduction(| : failed)
    {
        float *branches = reserve(2 * TILE * columns * sizeof(float)), *mixed = branches + TILE * columns;
        failed |= !branches;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < g->batch * g->height; row++)
            for (int64_t w = 0; !failed && w < g->width; w += TILE)
                project_gated(g, in, out, row / g->height, row % g->height, w, min64(w + TILE, g->width), branches, mixed);
        free(branches);
    }
    free(in);
    return failed;
}
