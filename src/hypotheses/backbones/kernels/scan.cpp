// The selective scan on a CPU, float32: forward and backward. What it computes stands in backbones/scan.py, in
// `selective_scan_reference`; the letters are the same. Here is only how.
//
// The lanes of a vector are W neighbouring channels, a "block". Time runs in chunks of at most CHUNK tokens, and the blocks
// of a chunk follow each other, so that what is read and written lies close together. A chunk is first copied to a small
// buffer, in the order of its direction, with softplus applied; states live in registers. Nothing of size B*L*E*N is ever
// stored: the states before each chunk are, and the backward pass computes the states inside a chunk again from them.
//
// What is summed over channels or images is summed in an order that only the shape and the number of threads decide: the
// same input gives the same bits.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "simd.h"

constexpr int CHUNK = 32;
constexpr int LINE = 16;  // floats of a cache line
// states that the inner loops take at a time, at most: what the registers hold
constexpr int FORWARD_GROUP = W == 16 ? 16 : 2, BACKWARD_GROUP = 4;

struct Scan {  // sizes, inputs and strides (in floats); the last dimension is contiguous everywhere
  int64_t B, L, K, E, N;
  int64_t memory;  // 0: the state before a token is made from the token itself (the sham)
  const float *x;  // (B, L, E)
  int64_t x_b, x_l;
  const float *dt;  // (B, L, K, E)
  int64_t dt_b, dt_l, dt_k;
  const float *A;  // (K, E, N)
  const float *Bm, *Cm;  // (B, L, K, N)
  int64_t B_b, B_l, B_k, C_b, C_l, C_k;
  const float *D, *dt_bias;  // (K, E); dt_bias may be null: then dt is taken as it is
  const int32_t *orders;  // (K, L), the token of each step; null: 0, 1, 2, ... in every direction
  float scale;  // of the output: 1 / K
};

// how many floats scan_forward leaves for scan_backward
extern "C" void scan_boundaries_size(const Scan *p, int64_t *size, int) {
  int64_t blocks = (p->E + W - 1) / W, chunks = (p->L + CHUNK - 1) / CHUNK;
  *size = p->B * p->K * chunks * blocks * p->N * W;
}

namespace {

struct Buffer {  // aligned memory of one thread
  float *data;
  explicit Buffer(size_t floats) : data((float *)aligned_alloc(64, (floats * 4 + 63) / 64 * 64 + 64)) {}
  ~Buffer() { free(data); }
  Buffer(const Buffer &) = delete;
};

// A so that exp(dt A) is one exp2_bounded(dt A), (K, blocks, N, W); and the largest dt, (K, blocks, W), for which that holds
void pack_A(const Scan &p, float *packed, float *largest) {
  const int64_t blocks = (p.E + W - 1) / W;
  for (int64_t k = 0; k < p.K; k++)
    for (int64_t e = 0; e < blocks * W; e++) {
      float most = 0;
      for (int64_t n = 0; n < p.N; n++) {
        const float a = e < p.E ? p.A[(k * p.E + e) * p.N + n] * LOG2E : 0.f;
        packed[((k * blocks + e / W) * p.N + n) * W + e % W] = a * OCTAVE;
        most = std::fabs(a) > most ? std::fabs(a) : most;  // NaN is left out: exp2_bounded takes it
      }
      largest[k * blocks * W + e] = BOUND / most;
    }
}

// body(lanes), with the usual number of them as a constant
template <class F>
INLINE void with_lanes(int lanes, F body) {
  if (lanes == W) body(std::integral_constant<int, W>());
  else body(lanes);
}

// One chunk of tokens in the order of one direction, of one image.
struct Chunk {
  const Scan &p;
  int64_t b, k;
  int steps;
  int64_t tokens[CHUNK];
  float *B, *C;  // (steps, N)

  Chunk(const Scan &p, int64_t b, int64_t k, int64_t chunk, float *B, float *C) : p(p), b(b), k(k), B(B), C(C) {
    const int64_t first = chunk * CHUNK;
    steps = (int)std::min<int64_t>(CHUNK, p.L - first);
    for (int s = 0; s < steps; s++) {
      const int64_t t = tokens[s] = p.orders ? p.orders[k * p.L + first + s] : first + s;
      memcpy(B + s * p.N, p.Bm + b * p.B_b + t * p.B_l + k * p.B_k, p.N * 4);
      memcpy(C + s * p.N, p.Cm + b * p.C_b + t * p.C_l + k * p.C_k, p.N * 4);
    }
  }
};

// One block of channels of a chunk.
struct Block {
  const Chunk &c;
  int64_t q;
  int lanes;                 // < W in a last block that is not full
  float *d, *x, *u, *sigma;  // (steps, W): step sizes, inputs, their product, derivative of softplus (or null)

  // whether no |dt A| is larger than exp2_bounded takes; `largest` of this block
  bool read(const float *largest) const {
    const Scan &p = c.p;
    const float *xs = p.x + c.b * p.x_b + q * W;
    const float *ds = p.dt + c.b * p.dt_b + c.k * p.dt_k + q * W;
    const vec most = load(largest);
    ivec beyond = {};
    with_lanes(lanes, [&](auto lanes) {
      const vec bias = p.dt_bias ? load(p.dt_bias + c.k * p.E + q * W, lanes) : vec{};
      for (int s = 0; s < c.steps; s++) {
        const float *x_t = xs + c.tokens[s] * p.x_l, *dt_t = ds + c.tokens[s] * p.dt_l;
        __builtin_prefetch(x_t + LINE);  // what comes next
        __builtin_prefetch(dt_t + LINE);
        vec step = load(dt_t, lanes), input = load(x_t, lanes), derivative;
        if (p.dt_bias) {
          step = softplus(step + bias, derivative);
          if (sigma) store(sigma + s * W, derivative);
        }
        beyond |= ~((step <= most) & (step >= -most));
        store(d + s * W, step);
        store(x + s * W, input);
        store(u + s * W, step * input);
      }
    });
    int any = 0;
    for (int i = 0; i < W; i++) any |= beyond[i];
    return !any;
  }
};

template <bool BOUNDED>
INLINE vec decay_of(vec d, vec a) {
  return BOUNDED ? exp2_bounded(d * a) : exp2(d * a * splat(1 / OCTAVE));
}

// G states at a time, n0 .. n0 + G: y += C h, and h moves on
template <int G, bool MEMORY, bool BOUNDED>
void forward(const Block &block, const float *__restrict A, float *__restrict state, float *__restrict y, int64_t n0) {
  const Chunk &c = block.c;
  const int64_t N = c.p.N;
  const int steps = c.steps;
  const float *__restrict ds = block.d, *__restrict us = block.u, *__restrict Bs = c.B + n0, *__restrict Cs = c.C + n0;
  vec h[G];
  for (int j = 0; j < G; j++) h[j] = load(state + (n0 + j) * W);
  for (int s = 0; s < steps; s++) {
    vec d = load(ds + s * W), u = load(us + s * W), acc = load(y + s * W);
    const float *B = Bs + s * N, *C = Cs + s * N;
#pragma GCC unroll 16
    for (int j = 0; j < G; j++) {
      vec decay = decay_of<BOUNDED>(d, load(A + (n0 + j) * W)), uB = u * splat(B[j]);
      h[j] = fma(decay, MEMORY ? h[j] : uB, uB);
      acc += h[j] * splat(C[j]);
    }
    store(y + s * W, acc);
  }
  for (int j = 0; j < G; j++) store(state + (n0 + j) * W, h[j]);
}

// The same backwards. state: h before the chunk; carry: gradient of the state after the chunk, which becomes that of the
// state before it; du and dz (steps, W): gradients of dt x, and of OCTAVE log2(e) dt A summed with A's weights; dA, dB, dC are
// added to, dB and dC with a vector for each (step, n), to be summed over its lanes when all blocks have been added.
template <int G, bool MEMORY, bool BOUNDED>
void backward(const Block &block, const float *A, const float *state, float *carry, const float *g, float *du, float *dz,
              float *dA, float *dB, float *dC, float *decays, float *states, int64_t n0) {
  const Chunk &c = block.c;
  const int64_t N = c.p.N;
  const int steps = c.steps;
  const float *__restrict ds = block.d, *__restrict us = block.u, *__restrict Bs = c.B + n0, *__restrict Cs = c.C + n0;
  vec h[G];
  for (int j = 0; j < G; j++) h[j] = load(state + (n0 + j) * W);
  for (int s = 0; s < steps; s++) {
    vec d = load(ds + s * W), u = load(us + s * W);
    const float *B = Bs + s * N;
#pragma GCC unroll 4
    for (int j = 0; j < G; j++) {
      vec decay = decay_of<BOUNDED>(d, load(A + (n0 + j) * W)), uB = u * splat(B[j]), before = MEMORY ? h[j] : uB;
      store(decays + (s * G + j) * W, decay);
      store(states + (s * G + j) * W, before);
      h[j] = fma(decay, before, uB);
    }
  }
  vec dh[G], sum_A[G], a[G];
  for (int j = 0; j < G; j++) dh[j] = load(carry + (n0 + j) * W), sum_A[j] = vec{}, a[j] = load(A + (n0 + j) * W);
  for (int s = steps - 1; s >= 0; s--) {
    vec d = load(ds + s * W), u = load(us + s * W), gs = load(g + s * W);
    vec sum_u = load(du + s * W), sum_z = load(dz + s * W);
    const float *B = Bs + s * N, *C = Cs + s * N;
    float *dBs = dB + (s * N + n0) * W, *dCs = dC + (s * N + n0) * W;
#pragma GCC unroll 4
    for (int j = 0; j < G; j++) {
      const float *here = states + (s * G + j) * W;
      vec decay = load(decays + (s * G + j) * W), before = load(here);
      vec after = MEMORY ? h[j] : decay * before + u * splat(B[j]);
      h[j] = before;
      dh[j] = (MEMORY ? dh[j] : vec{}) + gs * splat(C[j]);
      store(dCs + j * W, load(dCs + j * W) + gs * after);
      vec back = dh[j] * decay;                      // gradient of the state before
      vec direct = MEMORY ? dh[j] : dh[j] + back;    // gradient of dt x B: by itself, and as the sham's state before
      store(dBs + j * W, load(dBs + j * W) + u * direct);
      sum_u += direct * splat(B[j]);
      vec w = back * before;                         // gradient of dt A
      sum_z += w * a[j];
      sum_A[j] += w * d;
      dh[j] = back;
    }
    store(du + s * W, sum_u);
    store(dz + s * W, sum_z);
  }
  for (int j = 0; j < G; j++) {
    store(carry + (n0 + j) * W, dh[j]);
    store(dA + (n0 + j) * W, load(dA + (n0 + j) * W) + sum_A[j]);
  }
}

// whether the next group of the `left` states has G
template <int G, int MOST>
INLINE bool take(int64_t left) {
  return G <= MOST && left >= G;
}

// all N states, in the largest groups that may be
template <bool MEMORY, bool BOUNDED, class... Rest>
void forward_all(const Block &block, Rest... rest) {
  for (int64_t n = 0, N = block.c.p.N; n < N;) {
    if (take<16, FORWARD_GROUP>(N - n)) forward<16, MEMORY, BOUNDED>(block, rest..., n), n += 16;
    else if (take<8, FORWARD_GROUP>(N - n)) forward<8, MEMORY, BOUNDED>(block, rest..., n), n += 8;
    else if (take<4, FORWARD_GROUP>(N - n)) forward<4, MEMORY, BOUNDED>(block, rest..., n), n += 4;
    else if (take<2, FORWARD_GROUP>(N - n)) forward<2, MEMORY, BOUNDED>(block, rest..., n), n += 2;
    else forward<1, MEMORY, BOUNDED>(block, rest..., n), n += 1;
  }
}

template <bool MEMORY, bool BOUNDED, class... Rest>
void backward_all(const Block &block, Rest... rest) {
  for (int64_t n = 0, N = block.c.p.N; n < N;) {
    if (take<4, BACKWARD_GROUP>(N - n)) backward<4, MEMORY, BOUNDED>(block, rest..., n), n += 4;
    else if (take<2, BACKWARD_GROUP>(N - n)) backward<2, MEMORY, BOUNDED>(block, rest..., n), n += 2;
    else backward<1, MEMORY, BOUNDED>(block, rest..., n), n += 1;
  }
}

// f(memory, bounded), both as types
template <class F>
void choose(bool memory, bool bounded, F f) {
  typedef std::true_type yes;
  typedef std::false_type no;
  if (memory && bounded) f(yes(), yes());
  else if (memory) f(yes(), no());
  else if (bounded) f(no(), yes());
  else f(no(), no());
}

}  // namespace

// y (B, L, E), contiguous; boundaries: scan_boundaries_size(p) floats, or null where there will be no backward pass
extern "C" void scan_forward(const Scan *scan, float *y, float *boundaries, int threads) {
  const Scan &p = *scan;
  const int64_t blocks = (p.E + W - 1) / W, chunks = (p.L + CHUNK - 1) / CHUNK, NW = p.N * W;
  const int64_t parts = std::min(blocks, std::max<int64_t>(1, (4 * threads + p.B - 1) / p.B));  // of the channels
  Buffer packed(p.K * blocks * (NW + W));
  float *largest = packed.data + p.K * blocks * NW;
  pack_A(p, packed.data, largest);
#pragma omp parallel num_threads(threads)
  {
    constexpr int64_t TW = CHUNK * W;
    Buffer work(blocks * NW + 4 * TW + 2 * CHUNK * p.N);
    float *states = work.data, *d = states + blocks * NW, *x = d + TW, *u = x + TW, *acc = u + TW;
    float *Bs = acc + TW, *Cs = Bs + CHUNK * p.N;
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < p.B; b++)
      for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
        for (int64_t k = 0; k < p.K; k++) {
          memset(states + begin * NW, 0, (end - begin) * NW * 4);
          for (int64_t i = 0; i < chunks; i++) {
            const Chunk c(p, b, k, i, Bs, Cs);
            for (int64_t q = begin; q < end; q++) {
              const Block block{c, q, (int)std::min<int64_t>(W, p.E - q * W), d, x, u, nullptr};
              const bool bounded = block.read(largest + (k * blocks + q) * W);
              float *state = states + q * NW, *A = packed.data + (k * blocks + q) * NW;
              if (boundaries)
                memcpy(boundaries + (((b * p.K + k) * chunks + i) * blocks + q) * NW, state, NW * 4);
              const vec D = load(p.D + k * p.E + q * W, block.lanes);
              for (int s = 0; s < c.steps; s++) store(acc + s * W, D * load(x + s * W));
              choose(p.memory, bounded, [&](auto memory, auto small) {
                forward_all<decltype(memory)::value, decltype(small)::value>(block, A, state, acc);
              });
              with_lanes(block.lanes, [&](auto lanes) {
                for (int s = 0; s < c.steps; s++) {
                  float *out = y + (b * p.L + c.tokens[s]) * p.E + q * W;
                  __builtin_prefetch(out + LINE, 1);
                  vec v = load(acc + s * W) * splat(p.scale);
                  store(out, k ? load(out, lanes) + v : v, lanes);
                }
              });
            }
          }
        }
      }
  }
}

// gy, dx (B, L, E) contiguous; ddt like dt, with its strides; dA (K, E, N), dB, dC (B, L, K, N), dD, dbias (K, E)
// contiguous; dbias is null where there is no bias
extern "C" void scan_backward(const Scan *scan, const float *gy, const float *boundaries, float *dx, float *ddt, float *dA,
                              float *dB, float *dC, float *dD, float *dbias, int threads) {
  const Scan &p = *scan;
  const int64_t blocks = (p.E + W - 1) / W, chunks = (p.L + CHUNK - 1) / CHUNK, NW = p.N * W;
  // pieces of work, by images and then by channels: what each sums is kept apart, and added in order
  const int64_t groups = std::min<int64_t>(p.B, 4 * threads);
  const int64_t parts = groups >= 2 * threads ? 1 : std::min(blocks, (2 * threads + groups - 1) / groups);
  const int64_t weights = p.K * blocks * NW, biases = p.K * blocks * W, rows = p.B * p.L * p.K * p.N;
  Buffer packed(weights + biases);
  float *largest = packed.data + weights;
  pack_A(p, packed.data, largest);
  std::vector<float> sums(groups * (weights + 2 * biases), 0.f);  // of each group: dA, dD, dbias
  std::vector<float> extra(parts > 1 ? (parts - 1) * 2 * rows : 0);  // dB, dC of all parts but the first
#pragma omp parallel num_threads(threads)
  {
    constexpr int64_t TW = CHUNK * W;
    Buffer work(2 * NW * CHUNK + blocks * NW + 7 * TW + 2 * TW * BACKWARD_GROUP + 2 * CHUNK * p.N);
    float *dB_lanes = work.data, *dC_lanes = dB_lanes + CHUNK * NW, *carry = dC_lanes + CHUNK * NW;
    float *d = carry + blocks * NW, *x = d + TW, *u = x + TW, *sigma = u + TW, *g = sigma + TW, *du = g + TW, *dz = du + TW;
    float *decays = dz + TW, *states = decays + BACKWARD_GROUP * TW, *Bs = states + BACKWARD_GROUP * TW, *Cs = Bs + CHUNK * p.N;
#pragma omp for collapse(2) schedule(static)
    for (int64_t group = 0; group < groups; group++)
      for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
        float *sum_A = sums.data() + group * (weights + 2 * biases), *sum_D = sum_A + weights, *sum_bias = sum_D + biases;
        float *outB = part ? extra.data() + (part - 1) * 2 * rows : dB, *outC = part ? outB + rows : dC;
        for (int64_t b = p.B * group / groups; b < p.B * (group + 1) / groups; b++)
          for (int64_t k = 0; k < p.K; k++) {
            memset(carry, 0, blocks * NW * 4);
            for (int64_t i = chunks - 1; i >= 0; i--) {
              const Chunk c(p, b, k, i, Bs, Cs);
              memset(dB_lanes, 0, CHUNK * NW * 4);
              memset(dC_lanes, 0, CHUNK * NW * 4);
              for (int64_t q = begin; q < end; q++) {
                const Block block{c, q, (int)std::min<int64_t>(W, p.E - q * W), d, x, u, sigma};
                const int64_t at = k * blocks + q, column = b * p.L * p.E + q * W;
                const bool bounded = block.read(largest + at * W);
                const float *h0 = boundaries + (((b * p.K + k) * chunks + i) * blocks + q) * NW;
                with_lanes(block.lanes, [&](auto lanes) {
                  for (int s = 0; s < c.steps; s++) {
                    const float *row = gy + column + c.tokens[s] * p.E;
                    __builtin_prefetch(row + LINE);
                    store(g + s * W, load(row, lanes) * splat(p.scale));
                  }
                });
                memset(du, 0, c.steps * W * 4);
                memset(dz, 0, c.steps * W * 4);
                float *A = packed.data + at * NW, *out_A = sum_A + at * NW;
                choose(p.memory, bounded, [&](auto memory, auto small) {
                  backward_all<decltype(memory)::value, decltype(small)::value>(
                      block, A, h0, carry + q * NW, g, du, dz, out_A, dB_lanes, dC_lanes, decays, states);
                });
                vec total_D = {}, total_bias = {};
                with_lanes(block.lanes, [&](auto lanes) {
                  const vec D = load(p.D + k * p.E + q * W, lanes);
                  for (int s = 0; s < c.steps; s++) {
                    const int64_t t = c.tokens[s];
                    vec ds = load(d + s * W), xs = load(x + s * W), gs = load(g + s * W), dus = load(du + s * W);
                    float *to_x = dx + column + t * p.E, *to_dt = ddt + b * p.dt_b + t * p.dt_l + k * p.dt_k + q * W;
                    __builtin_prefetch(to_x + LINE, 1);
                    __builtin_prefetch(to_dt + LINE, 1);
                    vec v = dus * ds + D * gs;
                    store(to_x, k ? load(to_x, lanes) + v : v, lanes);
                    vec step = dus * xs + load(dz + s * W) * splat(LN2 / OCTAVE);
                    if (p.dt_bias) step *= load(sigma + s * W);
                    store(to_dt, step, lanes);
                    total_bias += step;
                    total_D += gs * xs;
                  }
                });
                store(sum_D + at * W, load(sum_D + at * W) + total_D);
                store(sum_bias + at * W, load(sum_bias + at * W) + total_bias);
              }
              for (int64_t row = 0; row < c.steps * p.N; row += W) {  // Bs and Cs have done their duty
                store(Bs + row, sum_lanes(dB_lanes + row * W));
                store(Cs + row, sum_lanes(dC_lanes + row * W));
              }
              for (int s = 0; s < c.steps; s++) {
                const int64_t to = ((b * p.L + c.tokens[s]) * p.K + k) * p.N;
                memcpy(outB + to, Bs + s * p.N, p.N * 4);
                memcpy(outC + to, Cs + s * p.N, p.N * 4);
              }
            }
          }
      }
  }
  for (int64_t part = 1; part < parts; part++)
    for (int64_t i = 0; i < rows; i++) {
      dB[i] += extra[(part - 1) * 2 * rows + i];
      dC[i] += extra[(part - 1) * 2 * rows + rows + i];
    }
  for (int64_t k = 0; k < p.K; k++)
    for (int64_t e = 0; e < p.E; e++) {
      const int64_t block = k * blocks + e / W, lane = e % W;
      float of_D = 0, of_bias = 0;
      for (int64_t n = -1; n < p.N; n++) {
        float total = 0;
        for (int64_t group = 0; group < groups; group++) {
          const float *of = sums.data() + group * (weights + 2 * biases);
          if (n >= 0) total += of[(block * p.N + n) * W + lane];
          else of_D += of[weights + block * W + lane], of_bias += of[weights + biases + block * W + lane];
        }
        if (n >= 0) dA[(k * p.E + e) * p.N + n] = total;
      }
      dD[k * p.E + e] = of_D;
      if (dbias) dbias[k * p.E + e] = of_bias;
    }
}
