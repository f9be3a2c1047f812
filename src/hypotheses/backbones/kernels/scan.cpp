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
#include <vector>
#include "simd.h"

constexpr int CHUNK = 32;

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

// A in units of log 2, so that exp(dt A) is one exp2: (K, blocks, N, W)
void pack_A(const Scan &p, float *packed) {
  int64_t blocks = (p.E + W - 1) / W;
  for (int64_t k = 0; k < p.K; k++)
    for (int64_t e = 0; e < blocks * W; e++)
      for (int64_t n = 0; n < p.N; n++)
        packed[((k * blocks + e / W) * p.N + n) * W + e % W] =
            e < p.E ? p.A[(k * p.E + e) * p.N + n] * LOG2E : 0.f;
}

// One chunk of one block of channels in one direction.
struct Chunk {
  const Scan &p;
  int64_t b, k, block, first;  // image, direction, block of channels, first step
  int steps, lanes;            // lanes < W in a last block that is not full
  float *d, *x, *sigma;        // (steps, W): step sizes, inputs, derivative of softplus

  int64_t token(int s) const { return p.orders ? p.orders[k * p.L + first + s] : first + s; }
  const float *Bt(int s) const { return p.Bm + b * p.B_b + token(s) * p.B_l + k * p.B_k; }
  const float *Ct(int s) const { return p.Cm + b * p.C_b + token(s) * p.C_l + k * p.C_k; }

  void read() const {
    const float *xs = p.x + b * p.x_b + block * W;
    const float *ds = p.dt + b * p.dt_b + k * p.dt_k + block * W;
    vec bias = p.dt_bias ? load(p.dt_bias + k * p.E + block * W, lanes) : vec{};
    for (int s = 0; s < steps; s++) {
      int64_t t = token(s);
      __builtin_prefetch(xs + t * p.x_l + W);  // the next block, which comes next
      __builtin_prefetch(ds + t * p.dt_l + W);
      vec step = load(ds + t * p.dt_l, lanes), derivative;
      if (p.dt_bias) {
        step = softplus(step + bias, derivative);
        if (sigma) store(sigma + s * W, derivative);
      }
      store(d + s * W, step);
      store(x + s * W, load(xs + t * p.x_l, lanes));
    }
  }
};

// G states at a time, n0 .. n0 + G: y += C h, and h moves on
template <int G, bool MEMORY>
void forward(const Chunk &c, const float *A, float *state, float *y, int64_t n0) {
  vec h[G], a[G];
  for (int j = 0; j < G; j++) h[j] = load(state + (n0 + j) * W), a[j] = load(A + (n0 + j) * W);
  for (int s = 0; s < c.steps; s++) {
    vec d = load(c.d + s * W), u = d * load(c.x + s * W), acc = load(y + s * W);
    const float *B = c.Bt(s) + n0, *C = c.Ct(s) + n0;
#pragma GCC unroll 16
    for (int j = 0; j < G; j++) {
      vec decay = exp2(d * a[j]), uB = u * splat(B[j]);
      h[j] = decay * (MEMORY ? h[j] : uB) + uB;
      acc += h[j] * splat(C[j]);
    }
    store(y + s * W, acc);
  }
  for (int j = 0; j < G; j++) store(state + (n0 + j) * W, h[j]);
}

// The same backwards. state: h before the chunk; carry: gradient of the state after the chunk, which becomes that of the
// state before it; du and dz (steps, W): gradients of dt x, and of log2(e) dt A summed with A's weights; dA, dB, dC are
// added to, dB and dC with a vector for each (step, n), to be summed over its lanes when all blocks have been added.
template <int G, bool MEMORY>
void backward(const Chunk &c, const float *A, const float *state, float *carry, const float *g, float *du, float *dz,
              float *dA, float *dB, float *dC, float *decays, float *states, int64_t n0) {
  vec h[G], a[G];
  for (int j = 0; j < G; j++) h[j] = load(state + (n0 + j) * W), a[j] = load(A + (n0 + j) * W);
  for (int s = 0; s < c.steps; s++) {
    vec d = load(c.d + s * W), u = d * load(c.x + s * W);
    const float *B = c.Bt(s) + n0;
#pragma GCC unroll 4
    for (int j = 0; j < G; j++) {
      vec decay = exp2(d * a[j]), uB = u * splat(B[j]), before = MEMORY ? h[j] : uB;
      store(decays + (s * G + j) * W, decay);
      store(states + (s * G + j) * W, before);
      h[j] = decay * before + uB;
    }
  }
  vec dh[G], sum_A[G];
  for (int j = 0; j < G; j++) dh[j] = load(carry + (n0 + j) * W), sum_A[j] = vec{};
  for (int s = c.steps - 1; s >= 0; s--) {
    vec d = load(c.d + s * W), u = d * load(c.x + s * W), gs = load(g + s * W);
    vec sum_u = load(du + s * W), sum_z = load(dz + s * W);
    const float *B = c.Bt(s) + n0, *C = c.Ct(s) + n0;
    float *dBs = dB + (n0 * CHUNK + s) * W, *dCs = dC + (n0 * CHUNK + s) * W;
#pragma GCC unroll 4
    for (int j = 0; j < G; j++) {
      vec decay = load(decays + (s * G + j) * W), before = load(states + (s * G + j) * W), uB = u * splat(B[j]);
      vec after = MEMORY ? h[j] : decay * before + uB;
      dh[j] = (MEMORY ? dh[j] : vec{}) + gs * splat(C[j]);
      store(dCs + j * CHUNK * W, load(dCs + j * CHUNK * W) + gs * after);
      vec back = dh[j] * decay;                      // gradient of the state before
      vec direct = MEMORY ? dh[j] : dh[j] + back;    // gradient of dt x B: by itself, and as the sham's state before
      store(dBs + j * CHUNK * W, load(dBs + j * CHUNK * W) + u * direct);
      sum_u += direct * splat(B[j]);
      vec w = back * before;                         // gradient of dt A
      sum_z += w * a[j];
      sum_A[j] += w * d;
      dh[j] = back;
      h[j] = before;
    }
    store(du + s * W, sum_u);
    store(dz + s * W, sum_z);
  }
  for (int j = 0; j < G; j++) {
    store(carry + (n0 + j) * W, dh[j]);
    store(dA + (n0 + j) * W, load(dA + (n0 + j) * W) + sum_A[j]);
  }
}

// all N states, in the largest groups that there is code for
template <bool MEMORY>
void forward_all(const Chunk &c, const float *A, float *state, float *y) {
  for (int64_t n = 0, N = c.p.N; n < N;) {
    if (N - n >= 16) forward<16, MEMORY>(c, A, state, y, n), n += 16;
    else if (N - n >= 8) forward<8, MEMORY>(c, A, state, y, n), n += 8;
    else if (N - n >= 4) forward<4, MEMORY>(c, A, state, y, n), n += 4;
    else if (N - n >= 2) forward<2, MEMORY>(c, A, state, y, n), n += 2;
    else forward<1, MEMORY>(c, A, state, y, n), n += 1;
  }
}

template <bool MEMORY, class... Rest>
void backward_all(const Chunk &c, Rest... rest) {
  for (int64_t n = 0, N = c.p.N; n < N;) {
    if (N - n >= 4) backward<4, MEMORY>(c, rest..., n), n += 4;
    else if (N - n >= 2) backward<2, MEMORY>(c, rest..., n), n += 2;
    else backward<1, MEMORY>(c, rest..., n), n += 1;
  }
}

}  // namespace

// y (B, L, E), contiguous; boundaries: scan_boundaries_size(p) floats, or null where there will be no backward pass
extern "C" void scan_forward(const Scan *scan, float *y, float *boundaries, int threads) {
  const Scan &p = *scan;
  const int64_t blocks = (p.E + W - 1) / W, chunks = (p.L + CHUNK - 1) / CHUNK, NW = p.N * W;
  const int64_t parts = std::min(blocks, std::max<int64_t>(1, (4 * threads + p.B - 1) / p.B));  // of the channels
  Buffer packed(p.K * blocks * NW);
  pack_A(p, packed.data);
#pragma omp parallel num_threads(threads)
  {
    Buffer work(blocks * NW + 3 * CHUNK * W);
    float *states = work.data, *d = states + blocks * NW, *x = d + CHUNK * W, *acc = x + CHUNK * W;
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < p.B; b++)
      for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
        for (int64_t k = 0; k < p.K; k++) {
          memset(states + begin * NW, 0, (end - begin) * NW * 4);
          for (int64_t i = 0; i < chunks; i++)
            for (int64_t q = begin; q < end; q++) {
              Chunk c{p, b, k, q, i * CHUNK, (int)std::min<int64_t>(CHUNK, p.L - i * CHUNK),
                      (int)std::min<int64_t>(W, p.E - q * W), d, x, nullptr};
              c.read();
              float *state = states + q * NW, *A = packed.data + (k * blocks + q) * NW;
              if (boundaries)
                memcpy(boundaries + (((b * p.K + k) * chunks + i) * blocks + q) * NW, state, NW * 4);
              vec D = load(p.D + k * p.E + q * W, c.lanes);
              for (int s = 0; s < c.steps; s++) store(acc + s * W, D * load(x + s * W));
              if (p.memory) forward_all<true>(c, A, state, acc);
              else forward_all<false>(c, A, state, acc);
              for (int s = 0; s < c.steps; s++) {
                float *out = y + (b * p.L + c.token(s)) * p.E + q * W;
                vec v = load(acc + s * W) * splat(p.scale);
                store(out, k ? load(out, c.lanes) + v : v, c.lanes);
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
  Buffer packed(weights);
  pack_A(p, packed.data);
  std::vector<float> sums(groups * (weights + 2 * biases), 0.f);  // of each group: dA, dD, dbias
  std::vector<float> extra(parts > 1 ? (parts - 1) * 2 * rows : 0);  // dB, dC of all parts but the first
#pragma omp parallel num_threads(threads)
  {
    constexpr int64_t TW = CHUNK * W;
    Buffer work(2 * NW * CHUNK + blocks * NW + 6 * TW + 2 * 4 * TW);
    float *dB_lanes = work.data, *dC_lanes = dB_lanes + CHUNK * NW, *carry = dC_lanes + CHUNK * NW;
    float *d = carry + blocks * NW, *x = d + TW, *sigma = x + TW, *g = sigma + TW, *du = g + TW, *dz = du + TW;
    float *decays = dz + TW, *states = decays + 4 * TW;
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
              const int steps = (int)std::min<int64_t>(CHUNK, p.L - i * CHUNK);
              memset(dB_lanes, 0, CHUNK * NW * 4);
              memset(dC_lanes, 0, CHUNK * NW * 4);
              for (int64_t q = begin; q < end; q++) {
                Chunk c{p, b, k, q, i * CHUNK, steps, (int)std::min<int64_t>(W, p.E - q * W), d, x, sigma};
                c.read();
                const int64_t at = k * blocks + q, column = b * p.L * p.E + q * W;
                const float *h0 = boundaries + (((b * p.K + k) * chunks + i) * blocks + q) * NW;
                for (int s = 0; s < steps; s++) {
                  const float *row = gy + column + c.token(s) * p.E;
                  __builtin_prefetch(row + W);
                  store(g + s * W, load(row, c.lanes) * splat(p.scale));
                }
                memset(du, 0, steps * W * 4);
                memset(dz, 0, steps * W * 4);
                float *A = packed.data + at * NW, *out_A = sum_A + at * NW;
                if (p.memory) backward_all<true>(c, A, h0, carry + q * NW, g, du, dz, out_A, dB_lanes, dC_lanes, decays, states);
                else backward_all<false>(c, A, h0, carry + q * NW, g, du, dz, out_A, dB_lanes, dC_lanes, decays, states);
                vec D = load(p.D + k * p.E + q * W, c.lanes);
                vec total_D = {}, total_bias = {};
                for (int s = 0; s < steps; s++) {
                  const int64_t t = c.token(s);
                  vec ds = load(d + s * W), xs = load(x + s * W), gs = load(g + s * W), dus = load(du + s * W);
                  float *to_x = dx + column + t * p.E, *to_dt = ddt + b * p.dt_b + t * p.dt_l + k * p.dt_k + q * W;
                  __builtin_prefetch(to_x + W, 1);
                  __builtin_prefetch(to_dt + W, 1);
                  vec v = dus * ds + D * gs;
                  store(to_x, k ? load(to_x, c.lanes) + v : v, c.lanes);
                  vec step = dus * xs + load(dz + s * W) * splat(LN2);
                  if (p.dt_bias) step *= load(sigma + s * W);
                  store(to_dt, step, c.lanes);
                  total_bias += step;
                  total_D += gs * xs;
                }
                store(sum_D + at * W, load(sum_D + at * W) + total_D);
                store(sum_bias + at * W, load(sum_bias + at * W) + total_bias);
              }
              for (int64_t n = 0; n < p.N; n++)
                for (int s0 = 0; s0 < steps; s0 += W) {
                  vec of_B = sum_lanes(dB_lanes + (n * CHUNK + s0) * W), of_C = sum_lanes(dC_lanes + (n * CHUNK + s0) * W);
                  for (int s = s0; s < std::min(steps, s0 + W); s++) {
                    const int64_t token = p.orders ? p.orders[k * p.L + i * CHUNK + s] : i * CHUNK + s;
                    const int64_t at = ((b * p.L + token) * p.K + k) * p.N + n;
                    outB[at] = of_B[s - s0];
                    outC[at] = of_C[s - s0];
                  }
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
