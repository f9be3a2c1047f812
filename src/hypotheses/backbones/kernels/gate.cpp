// The gate of a Gated CNN block on a CPU, forward and backward, float32 or bfloat16 (computed in float32):
//
//     out = GELU(gate) * concat(rest, mixed)            z = [gate | rest | raw], the output of fc1: h, h - c and c channels
//
// where mixed is the depthwise 7 x 7 convolution of raw, or given (`gated`); and SiLU(convolution of raw) alone, of which
// the other mixers make what is given then (`convolved` does both). No copies for the split, the
// concatenation or the layout: rows of z are tokens, channels last, as the Linear layers around leave and want them.
//
// The lanes of a vector are W neighbouring channels, a "block". All blocks move down an image together, each with the seven
// rows that its convolution needs in a ring of padded rows in float32, and compute TILE neighbouring tokens of a row at a
// time, so that every vector is loaded once for seven products.
#include <algorithm>
#include <deque>
#include <vector>
#include "simd.h"

namespace {

constexpr int K = 7, PAD = K / 2, TILE = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// out[0..n) = gelu(gate) * value, one row
template <class T>
void gate_row(const T *gate, const T *value, T *out, int64_t n) {
  for (int64_t i = 0; i < n; i += W) {
    const int lanes = (int)std::min<int64_t>(W, n - i);
    vec unused;
    store(out + i, gelu(load(gate + i, lanes), unused) * load(value + i, lanes), lanes);
  }
}

// gradients of gate and value from that of out, one row
template <class T>
void gate_row_backward(const T *gate, const T *value, const T *gout, T *ggate, T *gvalue, int64_t n) {
  for (int64_t i = 0; i < n; i += W) {
    const int lanes = (int)std::min<int64_t>(W, n - i);
    vec slope, g = load(gout + i, lanes), activated = gelu(load(gate + i, lanes), slope);
    store(ggate + i, g * load(value + i, lanes) * slope, lanes);
    store(gvalue + i, g * activated, lanes);
  }
}

// K rows of one block of channels, each with PAD zero tokens on both sides and zeros up to a whole tile: a row of the image
// lies in slot row % K
struct Ring {
  int64_t width, length;  // of a row in tokens, without and with padding
  float *data;
  explicit Ring(int64_t width) : width(width), length(divide_up(width, TILE) * TILE + 2 * PAD) {
    data = (float *)aligned_alloc(64, K * length * W * 4);
  }
  ~Ring() { free(data); }
  Ring(const Ring &) = delete;
  float *row(int64_t y) { return data + (y + K) % K * length * W; }  // padded: token x lies at x + PAD
  float *token(int64_t y, int64_t x) { return row(y) + (x + PAD) * W; }
  void clear() { memset(data, 0, K * length * W * 4); }
};

template <class T>
void fill(Ring &ring, int64_t y, int64_t height, const T *image, int64_t stride, int lanes) {
  if (y >= height) {
    memset(ring.row(y), 0, ring.length * W * 4);
    return;
  }
  for (int64_t x = 0; x < ring.width; x++) store(ring.token(y, x), load(image + (y * ring.width + x) * stride, lanes));
}

// TILE tokens of row y from x on: a[j] = bias + sum of weights (K * K, W) times the ring's rows y - PAD .. y + PAD
INLINE void convolve(Ring &ring, const float *weights, vec bias, int64_t y, int64_t x, vec a[TILE]) {
  for (int j = 0; j < TILE; j++) a[j] = bias;
  for (int ky = 0; ky < K; ky++) {
    const float *in = ring.row(y + ky - PAD) + x * W;
    vec w[K];
#pragma GCC unroll 7
    for (int kx = 0; kx < K; kx++) w[kx] = load(weights + (ky * K + kx) * W);
#pragma GCC unroll 14
    for (int i = 0; i < TILE + K - 1; i++) {
      vec v = load(in + i * W);
#pragma GCC unroll 7
      for (int kx = 0; kx < K; kx++)
        if (i - kx >= 0 && i - kx < TILE) a[i - kx] += v * w[kx];
    }
  }
}

// sums (K * K, W) += gradient row y times the input's rows around it
void correlate(Ring &input, Ring &gradient, int64_t y, float *sums) {
  for (int ky = 0; ky < K; ky++) {
    vec a[K];
    for (int kx = 0; kx < K; kx++) a[kx] = load(sums + (ky * K + kx) * W);
    for (int64_t x = 0; x < input.width; x += TILE) {
      const float *in = input.row(y + ky - PAD) + x * W, *g = gradient.token(y, x);
      vec e[TILE];
#pragma GCC unroll 8
      for (int j = 0; j < TILE; j++) e[j] = load(g + j * W);
#pragma GCC unroll 14
      for (int i = 0; i < TILE + K - 1; i++) {
        vec v = load(in + i * W);
#pragma GCC unroll 7
        for (int kx = 0; kx < K; kx++)
          if (i - kx >= 0 && i - kx < TILE) a[kx] += v * e[i - kx];
      }
    }
    for (int kx = 0; kx < K; kx++) store(sums + (ky * K + kx) * W, a[kx]);
  }
}

// weights (c, K * K) of one block as (K * K, W)
void pack(const float *weight, int64_t first, int lanes, bool turned, float *packed) {
  for (int i = 0; i < K * K; i++)
    for (int lane = 0; lane < W; lane++)
      packed[(turned ? K * K - 1 - i : i) * W + lane] = lane < lanes ? weight[(first + lane) * K * K + i] : 0.f;
}

struct Sizes {
  int64_t B, H, Wd, h, c;
};

// The images and the blocks of channels are shared among the threads: all blocks of an image go to one thread where there
// are images enough, so that a row of z is read once, and its blocks follow each other in the caches.
struct Work {
  int64_t groups, parts;  // of images, of channels
  Work(int64_t images, int64_t blocks, int threads)
      : groups(std::min<int64_t>(images, 4 * threads)),
        parts(groups >= 2 * threads ? 1 : std::min(blocks, divide_up(2 * threads, groups))) {}
};

// GATED: out (B, H, W, h) is the gate's; else it is (B, H, W, c), SiLU(convolution of raw)
template <bool GATED, class T>
void convolved(Sizes p, const T *z, const float *weight, const float *bias, T *out, int threads) {
  const int64_t rest = p.h - p.c, blocks = divide_up(p.c, W), stride = GATED ? p.h : p.c;
  const Work work(p.B, blocks, threads);
  std::vector<float> packed(blocks * K * K * W);
  for (int64_t q = 0; q < blocks; q++) pack(weight, q * W, std::min<int64_t>(W, p.c - q * W), false, &packed[q * K * K * W]);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t group = 0; group < work.groups; group++)
    for (int64_t part = 0; part < work.parts; part++) {
      const int64_t q0 = blocks * part / work.parts, q1 = blocks * (part + 1) / work.parts;
      const int64_t r0 = rest * part / work.parts / W * W, r1 = part + 1 == work.parts ? rest : rest * (part + 1) / work.parts / W * W;
      std::deque<Ring> rings;
      for (int64_t q = q0; q < q1; q++) rings.emplace_back(p.Wd);
      for (int64_t b = p.B * group / work.groups; b < p.B * (group + 1) / work.groups; b++) {
        const T *image = z + b * p.H * p.Wd * 2 * p.h;
        T *to = out + b * p.H * p.Wd * stride;
        for (int64_t y = -PAD; y < p.H; y++)
          for (int64_t q = q0; q < q1; q++) {
            const int lanes = (int)std::min<int64_t>(W, p.c - q * W);
            const T *gate = image + rest + q * W;
            Ring &ring = rings[q - q0];
            if (y == -PAD) ring.clear();
            fill(ring, y + PAD, p.H, gate + p.h, 2 * p.h, lanes);
            if (y < 0) continue;
            if (GATED && q == q0)
              for (int64_t x = 0; x < p.Wd; x++) {
                const T *row = image + (y * p.Wd + x) * 2 * p.h;
                gate_row(row + r0, row + p.h + r0, to + (y * p.Wd + x) * stride + r0, r1 - r0);
              }
            const vec start = load(bias + q * W, lanes);
            for (int64_t x = 0; x < p.Wd; x += TILE) {
              vec a[TILE], unused;
              convolve(ring, &packed[q * K * K * W], start, y, x, a);
              const int count = (int)std::min<int64_t>(TILE, p.Wd - x);
              for (int j = 0; j < count; j++) {
                const int64_t r = y * p.Wd + x + j;
                vec v = GATED ? gelu(load(gate + r * 2 * p.h, lanes), unused) * a[j] : silu(a[j], unused);
                store(to + r * stride + (GATED ? rest : 0) + q * W, v, lanes);
              }
            }
          }
      }
    }
}

// gz: GATED writes all of it, else adds the gradient of raw to what is there
template <bool GATED, class T>
void convolved_backward(Sizes p, const T *z, const float *weight, const float *bias, const T *gout, T *gz, float *gweight,
                        float *gbias, int threads) {
  const int64_t rest = p.h - p.c, blocks = divide_up(p.c, W), stride = GATED ? p.h : p.c;
  const Work work(p.B, blocks, threads);
  constexpr int64_t SUMS = (K * K + 1) * W;  // of one block: the weights', then the bias's
  std::vector<float> sums(work.groups * blocks * SUMS, 0.f), packed(blocks * K * K * W), turned(blocks * K * K * W);
  for (int64_t q = 0; q < blocks; q++) {
    const int lanes = (int)std::min<int64_t>(W, p.c - q * W);
    pack(weight, q * W, lanes, false, &packed[q * K * K * W]);
    pack(weight, q * W, lanes, true, &turned[q * K * K * W]);
  }
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (int64_t group = 0; group < work.groups; group++)
    for (int64_t part = 0; part < work.parts; part++) {
      const int64_t q0 = blocks * part / work.parts, q1 = blocks * (part + 1) / work.parts;
      const int64_t r0 = rest * part / work.parts / W * W, r1 = part + 1 == work.parts ? rest : rest * (part + 1) / work.parts / W * W;
      std::deque<Ring> inputs, gradients;  // of the convolution: raw, and the gradient of what comes out
      for (int64_t q = q0; q < q1; q++) inputs.emplace_back(p.Wd), gradients.emplace_back(p.Wd);
      std::vector<float> of_image((q1 - q0) * SUMS);
      for (int64_t b = p.B * group / work.groups; b < p.B * (group + 1) / work.groups; b++) {
        const T *image = z + b * p.H * p.Wd * 2 * p.h, *go_image = gout + b * p.H * p.Wd * stride;
        T *to_image = gz + b * p.H * p.Wd * 2 * p.h;
        std::fill(of_image.begin(), of_image.end(), 0.f);
        for (int64_t y = -PAD; y < p.H + PAD; y++)
          for (int64_t q = q0; q < q1; q++) {
            const int lanes = (int)std::min<int64_t>(W, p.c - q * W);
            const T *gate = image + rest + q * W, *go = go_image + (GATED ? rest : 0) + q * W;
            T *to_gate = to_image + rest + q * W, *to_raw = to_gate + p.h;
            Ring &input = inputs[q - q0], &gradient = gradients[q - q0];
            float *sum = &of_image[(q - q0) * SUMS];
            if (y == -PAD) input.clear(), gradient.clear();
            if (y < p.H) fill(input, y + PAD, p.H, gate + p.h, 2 * p.h, lanes);
            if (y < 0) continue;
            if (GATED && q == q0 && y < p.H)
              for (int64_t x = 0; x < p.Wd; x++) {
                const int64_t r = y * p.Wd + x;
                const T *row = image + r * 2 * p.h + r0;
                T *to = to_image + r * 2 * p.h + r0;
                gate_row_backward(row, row + p.h, go_image + r * p.h + r0, to, to + p.h, r1 - r0);
              }
            if (y < p.H) {
              const vec start = load(bias + q * W, lanes);
              vec sum_bias = load(sum + K * K * W);
              for (int64_t x = 0; x < p.Wd; x += TILE) {
                vec a[TILE];
                convolve(input, &packed[q * K * K * W], start, y, x, a);
                const int count = (int)std::min<int64_t>(TILE, p.Wd - x);
                for (int j = 0; j < count; j++) {
                  const int64_t r = y * p.Wd + x + j;
                  vec slope, g = load(go + r * stride, lanes);
                  if (GATED) {
                    vec activated = gelu(load(gate + r * 2 * p.h, lanes), slope);
                    store(to_gate + r * 2 * p.h, g * a[j] * slope, lanes);
                    g *= activated;
                  } else {
                    silu(a[j], slope);
                    g *= slope;
                  }
                  store(gradient.token(y, x + j), g);
                  sum_bias += g;
                }
              }
              store(sum + K * K * W, sum_bias);
              correlate(input, gradient, y, sum);
            } else {
              memset(gradient.row(y), 0, gradient.length * W * 4);
            }
            if (y >= PAD)  // the gradients around row y - PAD are there: the same convolution, turned by 180 degrees
              for (int64_t x = 0; x < p.Wd; x += TILE) {
                vec a[TILE];
                convolve(gradient, &turned[q * K * K * W], vec{}, y - PAD, x, a);
                const int count = (int)std::min<int64_t>(TILE, p.Wd - x);
                for (int j = 0; j < count; j++) {
                  T *to = to_raw + ((y - PAD) * p.Wd + x + j) * 2 * p.h;
                  store(to, GATED ? a[j] : load(to, lanes) + a[j], lanes);
                }
              }
          }
        float *sum = sums.data() + (group * blocks + q0) * SUMS;
        for (size_t i = 0; i < of_image.size(); i++) sum[i] += of_image[i];  // image by image, so that no digits are lost
      }
    }
  for (int64_t e = 0; e < p.c; e++)
    for (int i = 0; i <= K * K; i++) {
      float total = 0;
      for (int64_t group = 0; group < work.groups; group++) total += sums[(group * blocks + e / W) * SUMS + i * W + e % W];
      (i < K * K ? gweight[e * K * K + i] : gbias[e]) = total;
    }
}

template <class T>
void gated(int64_t rows, int64_t h, int64_t c, const T *z, const T *mixed, T *out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    const T *row = z + r * 2 * h;
    gate_row(row, row + h, out + r * h, h - c);
    gate_row(row + h - c, mixed + r * c, out + r * h + h - c, c);
  }
}

template <class T>
void gated_backward(int64_t rows, int64_t h, int64_t c, const T *z, const T *mixed, const T *gout, T *gz, T *gmixed,
                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < rows; r++) {
    const T *row = z + r * 2 * h, *g = gout + r * h;
    T *to = gz + r * 2 * h;
    gate_row_backward(row, row + h, g, to, to + h, h - c);
    gate_row_backward(row + h - c, mixed + r * c, g + h - c, to + h - c, gmixed + r * c, c);
    memset((void *)(to + 2 * h - c), 0, c * sizeof(T));
  }
}

}  // namespace

// z (B, H, W, 2 h), weight (c, 7 * 7), bias (c), mixed (rows, c), all contiguous; gate: out is (B, H, W, h), the gate's; else
// (B, H, W, c), SiLU of the convolution. is_bf16: z, out and mixed and their gradients are bfloat16; weight, bias and their
// gradients are float32 always
extern "C" void convolved_forward(Sizes p, int64_t gate, int64_t is_bf16, const void *z, const float *weight, const float *bias,
                                  void *out, int threads) {
  auto as = [&](auto type) {
    typedef decltype(type) T;
    if (gate) convolved<true>(p, (const T *)z, weight, bias, (T *)out, threads);
    else convolved<false>(p, (const T *)z, weight, bias, (T *)out, threads);
  };
  if (is_bf16) as(bf16());
  else as(float());
}

extern "C" void convolved_backward(Sizes p, int64_t gate, int64_t is_bf16, const void *z, const float *weight, const float *bias,
                                   const void *gout, void *gz, float *gweight, float *gbias, int threads) {
  auto as = [&](auto type) {
    typedef decltype(type) T;
    if (gate) convolved_backward<true>(p, (const T *)z, weight, bias, (const T *)gout, (T *)gz, gweight, gbias, threads);
    else convolved_backward<false>(p, (const T *)z, weight, bias, (const T *)gout, (T *)gz, gweight, gbias, threads);
  };
  if (is_bf16) as(bf16());
  else as(float());
}

extern "C" void gated_forward(int64_t rows, int64_t h, int64_t c, int64_t is_bf16, const void *z, const void *mixed, void *out,
                              int threads) {
  if (is_bf16) gated(rows, h, c, (const bf16 *)z, (const bf16 *)mixed, (bf16 *)out, threads);
  else gated(rows, h, c, (const float *)z, (const float *)mixed, (float *)out, threads);
}

extern "C" void gated_backward(int64_t rows, int64_t h, int64_t c, int64_t is_bf16, const void *z, const void *mixed,
                               const void *gout, void *gz, void *gmixed, int threads) {
  if (is_bf16)
    gated_backward(rows, h, c, (const bf16 *)z, (const bf16 *)mixed, (const bf16 *)gout, (bf16 *)gz, (bf16 *)gmixed, threads);
  else
    gated_backward(rows, h, c, (const float *)z, (const float *)mixed, (const float *)gout, (float *)gz, (float *)gmixed, threads);
}
