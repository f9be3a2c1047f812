// LayerNorm over the last dimension on a CPU, forward and backward: x (rows, C) float32 or bfloat16, y float32 or bfloat16,
// weight, bias, statistics and sums in float32. A row stays in the first-level cache between its passes.
#include <algorithm>
#include <cmath>
#include <vector>
#include "simd.h"

namespace {

INLINE vec first(vec v, int lanes) {  // the others zero
  if (lanes == W) return v;
  for (int i = lanes; i < W; i++) v[i] = 0;
  return v;
}

// W rows at a time, so that their sums and roots are vectors too
template <class X, class Y>
void forward(int64_t rows, int64_t C, float eps, const X *x, const float *weight, const float *bias, Y *y, float *mean,
             float *scale, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r0 = 0; r0 < rows; r0 += W) {
    const int count = (int)std::min<int64_t>(W, rows - r0);
    alignas(64) float sums[W * W] = {};
    for (int r = 0; r < count; r++) {
      vec total = {};
      for (int64_t i = 0; i < C; i += W) total += load(x + (r0 + r) * C + i, (int)std::min<int64_t>(W, C - i));
      store(sums + r * W, total);
    }
    const vec m = sum_lanes(sums) / splat(C);
    for (int r = 0; r < count; r++) {
      vec total = {};
      for (int64_t i = 0; i < C; i += W) {
        const int lanes = (int)std::min<int64_t>(W, C - i);
        vec d = first(load(x + (r0 + r) * C + i, lanes) - splat(m[r]), lanes);
        total += d * d;
      }
      store(sums + r * W, total);
    }
    vec s = sum_lanes(sums) / splat(C) + splat(eps);
    for (int r = 0; r < count; r++) s[r] = 1.f / std::sqrt(s[r]);
    store(mean + r0, m, count);
    store(scale + r0, s, count);
    for (int r = 0; r < count; r++)
      for (int64_t i = 0; i < C; i += W) {
        const int lanes = (int)std::min<int64_t>(W, C - i);
        vec v = (load(x + (r0 + r) * C + i, lanes) - splat(m[r])) * splat(s[r]);
        store(y + (r0 + r) * C + i, v * load(weight + i, lanes) + load(bias + i, lanes), lanes);
      }
  }
}

template <class X, class Y>
void backward(int64_t rows, int64_t C, const X *x, const float *weight, const float *mean, const float *scale, const Y *gy,
              X *gx, float *gweight, float *gbias, int threads) {
  // of W rows each, in groups: what each group sums for weight and bias is kept apart, and added in order
  const int64_t bands = (rows + W - 1) / W, groups = std::min<int64_t>(bands, 4 * threads), blocks = (C + W - 1) / W * W;
  std::vector<float> sums(groups * 2 * blocks, 0.f);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t group = 0; group < groups; group++) {
    float *sum_w = sums.data() + group * 2 * blocks, *sum_b = sum_w + blocks;
    for (int64_t band = bands * group / groups; band < bands * (group + 1) / groups; band++) {
      const int64_t r0 = band * W;
      const int count = (int)std::min<int64_t>(W, rows - r0);
      const vec m = load(mean + r0, count), s = load(scale + r0, count);
      alignas(64) float totals[W * W] = {}, totals_x[W * W] = {};  // of g w, and of g w xhat
      for (int r = 0; r < count; r++) {
        vec total = {}, total_x = {};
        for (int64_t i = 0; i < C; i += W) {
          const int lanes = (int)std::min<int64_t>(W, C - i);
          const int64_t at = (r0 + r) * C + i;
          vec gw = load(gy + at, lanes) * load(weight + i, lanes);
          total += gw;
          total_x += gw * (load(x + at, lanes) - splat(m[r]));
        }
        store(totals + r * W, total);
        store(totals_x + r * W, total_x);
      }
      const vec a = sum_lanes(totals) / splat(C), b = sum_lanes(totals_x) * s / splat(C);
      for (int64_t i = 0; i < C; i += W) {
        const int lanes = (int)std::min<int64_t>(W, C - i);
        const vec w = load(weight + i, lanes);
        vec of_w = {}, of_b = {};
        for (int r = 0; r < count; r++) {
          const int64_t at = (r0 + r) * C + i;
          vec g = load(gy + at, lanes), hat = (load(x + at, lanes) - splat(m[r])) * splat(s[r]);
          store(gx + at, (g * w - splat(a[r]) - hat * splat(b[r])) * splat(s[r]), lanes);
          of_w += g * hat;
          of_b += g;
        }
        store(sum_w + i, load(sum_w + i) + of_w);
        store(sum_b + i, load(sum_b + i) + of_b);
      }
    }
  }
  for (int64_t i = 0; i < C; i++) {
    gweight[i] = gbias[i] = 0;
    for (int64_t group = 0; group < groups; group++) {
      gweight[i] += sums[group * 2 * blocks + i];
      gbias[i] += sums[group * 2 * blocks + blocks + i];
    }
  }
}

// f(x's type, y's type)
template <class F>
void with_types(int64_t x_bf16, int64_t y_bf16, F f) {
  if (x_bf16 && y_bf16) f(bf16(), bf16());
  else if (x_bf16) f(bf16(), float());
  else if (y_bf16) f(float(), bf16());
  else f(float(), float());
}

}  // namespace

extern "C" void norm_forward(int64_t rows, int64_t C, int64_t x_bf16, int64_t y_bf16, const float *eps, const void *x,
                             const float *weight, const float *bias, void *y, float *mean, float *scale, int threads) {
  with_types(x_bf16, y_bf16, [&](auto X, auto Y) {
    forward(rows, C, *eps, (const decltype(X) *)x, weight, bias, (decltype(Y) *)y, mean, scale, threads);
  });
}

extern "C" void norm_backward(int64_t rows, int64_t C, int64_t x_bf16, int64_t y_bf16, const void *x, const float *weight,
                              const float *mean, const float *scale, const void *gy, void *gx, float *gweight, float *gbias,
                              int threads) {
  with_types(x_bf16, y_bf16, [&](auto X, auto Y) {
    backward(rows, C, (const decltype(X) *)x, weight, mean, scale, (const decltype(Y) *)gy, (decltype(X) *)gx, gweight, gbias,
             threads);
  });
}
