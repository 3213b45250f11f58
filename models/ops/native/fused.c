/* Parts of the network's blocks on a CPU, without gradients, each in one pass over the features. Intermediate features are
 * held for only a few rows of pixels at a time.
 *
 *     feed_forward       x += W_out (SiLU(a) b)       (a, b) = W_d W_in norm(x), W_d depth-wise 3x3
 *     branches           f = W_out a                  a = W_d W_in norm(x)
 *     gated_projection   x += W_out (SiLU(a) W_f f)   the same
 *
 * Features are Views of (image, row, column, channel); matrices are (outputs, inputs), as PyTorch keeps them.
 */
#include "depthwise.h"
#include "matmul.h"

#define TILE 32                                     /* pixels whose intermediate features stay in the cache */
#define MIN_SHARE 4                                 /* rows of a thread, which needs one more on each side */

typedef enum { FEED_FORWARD, BRANCHES, GATED_PROJECTION } Kind;

typedef struct {
    View x, f;                                      /* f: the result of `branches`, an input of `gated_projection` */
    int64_t batch, height, width, channels, f_channels;
    const float *norm_weight, *norm_bias, *W_in, *W_d, *W_f, *W_out;
    int64_t half, outputs;                          /* channels of a, and of W_out's result */
    float eps;
    int32_t threads;
} Pass;

typedef struct { float *in, *taps, *f, *out; } Weights; /* packed */

/* The rows [top, bottom) of one thread, and its buffers. `hidden` holds W_in norm(x): a ring of three rows (slot h % 3),
 * and in slots 3 and 4 the rows just above and below the share, which are read first because another thread overwrites
 * them. The others hold a TILE. */
typedef struct {
    int64_t top, bottom;
    float *hidden, *pixels, *mixed, *result;
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

INLINE int64_t halves(Kind kind) { return kind == FEED_FORWARD ? 2 : 1; }
INLINE int64_t hidden_channels(const Pass *p, Kind kind) { return halves(kind) * padded(p->half); }

INLINE float *hidden_row(const Pass *p, Kind kind, const Share *s, int64_t h) {
    int64_t slot = h < s->top ? 3 : h >= s->bottom ? 4 : h % 3;
    return s->hidden + slot * p->width * hidden_channels(p, kind);
}

static void project_row(const Pass *p, Kind kind, const Share *s, const Weights *weights, int64_t image, int64_t h) {
    int64_t columns = hidden_channels(p, kind);
    float *to = hidden_row(p, kind, s, h);
    for (int64_t w = 0; w < p->width; w += TILE) {
        int64_t pixels = min64(TILE, p->width - w);
        for (int64_t i = 0; i < pixels; i++) {
            const float *x = at(&p->x, image, h, w + i);
            float *y = s->pixels + i * p->channels;
            if (p->channels % LANES) normalise(p, x, y, 0);
            else normalise(p, x, y, 1);
        }
        matmul(s->pixels, p->channels, weights->in, pixels, p->channels, columns, to + w * columns, columns);
    }
}

/* To s->pixels, of a tile: a; or SiLU(a) times b or W_f f. */
static void hidden_tile(const Pass *p, Kind kind, const Share *s, const Weights *weights, Window *window, const float *f) {
    int64_t half = padded(p->half), pixels = window->to - window->from;
    if (kind == GATED_PROJECTION) matmul(f, p->f.step, weights->f, pixels, p->f_channels, half, s->mixed, half);
    for (int64_t d = 0; d < half; d += LANES) {
        float *a = s->pixels + d, b[TILE * LANES];
        convolve(window, d, LANES, weights->taps, 0, a, half);
        if (kind == FEED_FORWARD) convolve(window, half + d, LANES, weights->taps, 0, b, LANES);
        for (int64_t i = 0; kind != BRANCHES && i < pixels; i++) {
            vec value = load(a + i * half, LANES);
            vec other = load(kind == FEED_FORWARD ? b + i * LANES : s->mixed + i * half + d, LANES);
            store(a + i * half, value * sigmoid(value) * other, LANES);
        }
    }
}

/* What follows W_in norm(x), for the row h: it needs three rows of it. */
static void finish_row(const Pass *p, Kind kind, const Share *s, const Weights *weights, int64_t image, int64_t h) {
    int64_t half = padded(p->half), outputs = padded(p->outputs);
    Window window = {.channels = hidden_channels(p, kind), .width = p->width};
    for (int r = 0; r < 3; r++)
        if (h + r >= 1 && h + r <= p->height) window.row[r] = hidden_row(p, kind, s, h + r - 1);
    for (int64_t w = 0; w < p->width; w += TILE) {
        int64_t pixels = min64(TILE, p->width - w);
        window.from = w, window.to = w + pixels;
        hidden_tile(p, kind, s, weights, &window, at(&p->f, image, h, w));
        matmul(s->pixels, half, weights->out, pixels, p->half, outputs, s->result, outputs);
        for (int64_t i = 0; i < pixels; i++) {
            float *to = at(kind == BRANCHES ? &p->f : &p->x, image, h, w + i);
            for (int64_t d = 0; d < p->outputs; d += LANES) {
                int count = count_of(p->outputs, d);
                vec value = load(s->result + i * outputs + d, LANES);
                store(to + d, kind == BRANCHES ? value : value + load(to + d, count), count);
            }
        }
    }
}

static void pack_weights(const Pass *p, Kind kind, const Weights *to) {
    int64_t half = padded(p->half), columns = hidden_channels(p, kind);
    for (int64_t i = 0; i < halves(kind); i++) {
        pack(p->W_in + i * p->half * p->channels, p->channels, p->half, columns, i * half, to->in);
        for (int64_t c = 0; c < p->half; c++)
            for (int64_t k = 0; k < 9; k++) to->taps[k * columns + i * half + c] = p->W_d[(i * p->half + c) * 9 + k];
    }
    if (kind == GATED_PROJECTION) pack(p->W_f, p->f_channels, p->half, half, 0, to->f);
    pack(p->W_out, p->half, p->outputs, padded(p->outputs), 0, to->out);
}

/* Returns 1 if out of memory, else 0. */
static int run(const Pass *p, Kind kind) {
    int64_t half = padded(p->half), outputs = padded(p->outputs), columns = hidden_channels(p, kind);
    int64_t of_in = p->channels * columns, of_taps = 9 * columns, of_out = p->half * outputs;
    int64_t of_f = kind == GATED_PROJECTION ? p->f_channels * half : 0;
    int64_t of_hidden = 5 * p->width * columns, of_pixels = TILE * max64(p->channels, half);
    int64_t of_share = of_hidden + of_pixels + TILE * (half + outputs);
    int64_t threads = max64(1, min64(p->threads, p->height / MIN_SHARE));
    Weights weights = {.in = reserve_zeros((of_in + of_taps + of_f + of_out) * sizeof(float))};
    float *buffers = reserve(threads * of_share * sizeof(float));
    Share *shares = malloc(threads * sizeof(Share));
    int failed = !weights.in || !buffers || !shares;
    if (!failed) {
        weights.taps = weights.in + of_in, weights.f = weights.taps + of_taps, weights.out = weights.f + of_f;
        pack_weights(p, kind, &weights);
    }
    for (int64_t i = 0; !failed && i < threads; i++) {
        Share s = {.top = p->height * i / threads, .bottom = p->height * (i + 1) / threads};
        s.hidden = buffers + i * of_share, s.pixels = s.hidden + of_hidden;
        s.mixed = s.pixels + of_pixels, s.result = s.mixed + TILE * half;
        shares[i] = s;
    }
    for (int64_t image = 0; !failed && image < p->batch; image++) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int64_t i = 0; i < threads; i++) {
            const Share *s = shares + i;
            if (s->top > 0) project_row(p, kind, s, &weights, image, s->top - 1);
            if (s->bottom < p->height) project_row(p, kind, s, &weights, image, s->bottom);
        }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int64_t i = 0; i < threads; i++) {
            const Share *s = shares + i;
            for (int64_t h = s->top; h < s->bottom; h++) {
                if (h == s->top) project_row(p, kind, s, &weights, image, h);
                if (h + 1 < s->bottom) project_row(p, kind, s, &weights, image, h + 1);
                finish_row(p, kind, s, &weights, image, h);
            }
        }
    }
    free(weights.in), free(buffers), free(shares);
    return failed;
}

int feed_forward(const Pass *p) { return run(p, FEED_FORWARD); }
int branches(const Pass *p) { return run(p, BRANCHES); }
int gated_projection(const Pass *p) { return run(p, GATED_PROJECTION); }
