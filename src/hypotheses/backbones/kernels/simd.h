// Vectors of W floats in the compiler's own notation (GCC's vector extensions), and the few functions that the kernels
// need on them. W follows from the processor that the compiler is told to build for: 16 with AVX-512, else 8.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#ifdef __AVX__
#include <immintrin.h>
#endif
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define HAS_AVX512 1
constexpr int W = 16;
#else
#define HAS_AVX512 0
constexpr int W = 8;
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * W)));
typedef float vec_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W)));

INLINE vec splat(float s) { return s - (vec){}; }  // and not s + 0, which is an addition where s may be -0
INLINE vec load(const float *p) { return *(const vec_unaligned *)p; }
INLINE void store(float *p, vec v) { *(vec_unaligned *)p = v; }

// a b + c: for sums that wait for each other, where the compiler might multiply what is waited for
INLINE vec fma(vec a, vec b, vec c) {
#if HAS_AVX512
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// bfloat16: the upper half of a float, here as its bits; rounded to the nearest even, NaN stays NaN
struct bf16 {
  uint16_t bits;
};
typedef uint16_t halves __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
INLINE vec load(const bf16 *p) { return (vec)(__builtin_convertvector(*(const halves *)p, uvec) << 16); }
INLINE void store(bf16 *p, vec v) {
#if HAS_AVX512 && defined(__AVX512BF16__)
  *(halves *)p = (halves)_mm512_cvtneps_pbh((__m512)v);
#else
  uvec bits = (uvec)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = v == v ? rounded : (uvec){} + 0x7fc0;
  *(halves *)p = __builtin_convertvector(rounded, halves);
#endif
}

// the first `lanes` of a vector; the others are zero, or left alone
template <class T>
INLINE vec load(const T *p, int lanes) {
  if (lanes == W) return load(p);
  T all[W] = {};
  memcpy(all, p, lanes * sizeof(T));
  return load(all);
}
template <class T>
INLINE void store(T *p, vec v, int lanes) {
  if (lanes == W) return store(p, v);
  T all[W];
  store(all, v);
  memcpy(p, all, lanes * sizeof(T));
}

// Two vectors of partial sums, each in segments of SEGMENT lanes, one segment a row, become one in segments of half that.
template <int SEGMENT>
INLINE vec halve(vec a, vec b) {
  ivec low = {}, high = {};  // lanes of (a, b) that are added
  for (int i = 0; i < W; i++) {
    int half = SEGMENT / 2, segment = i / half;
    low[i] = segment % 2 * W + segment / 2 * SEGMENT + i % half;
    high[i] = low[i] + half;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// the sums over the lanes of W vectors that lie behind each other
INLINE vec sum_lanes(const float *rows) {
  vec v[W];
  for (int i = 0; i < W; i++) v[i] = load(rows + i * W);
  if (W == 16)
    for (int i = 0; i < 8; i++) v[i] = halve<16>(v[i], v[i + W / 2]);
  const int eight = W == 16 ? 4 : W / 2;
  for (int i = 0; i < eight; i++) v[i] = halve<8>(v[i], v[i + eight]);
  for (int i = 0; i < eight / 2; i++) v[i] = halve<4>(v[i], v[i + eight / 2]);
  return halve<2>(v[0], v[1]);
}

// the sum over the lanes of one vector
INLINE float sum(vec v) {
  for (int half = W / 2; half; half /= 2) {
    ivec other = {};
    for (int i = 0; i < W; i++) other[i] = i ^ half;
    v += __builtin_shuffle(v, other);
  }
  return v[0];
}

// 2^z, with a relative error of at most 1.3e-7, in two forms. exp2(z) takes any z; NaN stays NaN, and where there is no AVX-512
// it is never less than 2^-BOUND nor more than 2^BOUND. exp2_bounded(OCTAVE * z) takes |z| <= BOUND and NaN only.
constexpr float BOUND = 126.f;

// 2^f for |f| <= 1/2, exact at 0. By powers of f squared: more products than Horner's rule has, but they wait less for each
// other.
INLINE vec exp2_of_rest(vec f) {
  vec q = f * f;
  vec high = (splat(9.61837326e-3f) + f * splat(1.33998531e-3f)) + q * splat(1.53707101e-4f);
  vec middle = (splat(2.40226485e-1f) + f * splat(5.55032902e-2f)) + q * high;
  return (splat(1.f) + f * splat(6.93147206e-1f)) + q * middle;
}

#ifdef __AVX2__
// Whole OCTAVEths of z: a power of two times one of OCTAVE roots of two, which fit into a vector. The rest is so small that a
// few terms of the series will do: 2^(f/OCTAVE) - 1 to 1e-7 of itself, not of 1, since a state forgets by that difference.
constexpr float OCTAVE = W;
INLINE vec exp2_bounded(vec z) {
  const vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number, which the low bits then hold
  vec shifted = z + magic, f = z - (shifted - magic);
  // the bits of 2^(i/OCTAVE), less those that the lowest bits of the whole number, i, will add to them
#if HAS_AVX512
  constexpr int PLACE = 19;  // of the whole number's lowest bit
  vec p = f * (splat(4.33216989e-2f) + f * (splat(9.38412326e-4f) + f * splat(1.35510463e-5f)));
  const uvec roots = {0x3f800000u,              0x3f85aac3u - (1 << 19),  0x3f8b95c2u - (2 << 19),  0x3f91c3d3u - (3 << 19),
                      0x3f9837f0u - (4 << 19),  0x3f9ef532u - (5 << 19),  0x3fa5fed7u - (6 << 19),  0x3fad583fu - (7 << 19),
                      0x3fb504f3u - (8 << 19),  0x3fbd08a4u - (9 << 19),  0x3fc5672au - (10 << 19), 0x3fce248cu - (11 << 19),
                      0x3fd744fdu - (12 << 19), 0x3fe0ccdfu - (13 << 19), 0x3feac0c7u - (14 << 19), 0x3ff5257du - (15 << 19)};
#else
  constexpr int PLACE = 20;
  vec p = f * (splat(8.66433976e-2f) + f * (splat(3.75353919e-3f) + f * (splat(1.08406462e-4f) + f * splat(2.34818e-6f))));
  const uvec roots = {0x3f800000u,             0x3f8b95c2u - (1 << 20), 0x3f9837f0u - (2 << 20), 0x3fa5fed7u - (3 << 20),
                      0x3fb504f3u - (4 << 20), 0x3fc5672au - (5 << 20), 0x3fd744fdu - (6 << 20), 0x3feac0c7u - (7 << 20)};
#endif
  vec scale = (vec)(__builtin_shuffle(roots, (uvec)shifted) + ((uvec)shifted << PLACE));
  return scale + scale * p;
}
#else
constexpr float OCTAVE = 1.f;
INLINE vec exp2_bounded(vec z) {
  const vec magic = splat(12582912.f + 127.f);  // 1.5 * 2^23, as above; 127 is what exponents are counted from
  vec shifted = z + magic;
  return exp2_of_rest(z - (shifted - magic)) * (vec)((ivec)shifted << 23);
}
#endif

INLINE vec exp2(vec z) {
#if HAS_AVX512
  vec whole = (vec)_mm512_roundscale_ps((__m512)z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (vec)_mm512_scalef_ps((__m512)exp2_of_rest(z - whole), (__m512)whole);
#else
  const vec low = splat(-BOUND), high = splat(BOUND);
#ifdef __AVX__
  z = (vec)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)z));  // of NaN and a number the second: z
#else
  z = z < low ? low : z;
  z = z > high ? high : z;
#endif
  return exp2_bounded(z * splat(OCTAVE));
#endif
}

constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

// log(1 + e^v), and its derivative 1 / (1 + e^-v): without overflow, and without cancellation where it is tiny
INLINE vec softplus(vec v, vec &derivative) {
  const vec zero = {}, one = splat(1.f);
  vec e = exp2((v < zero ? v : -v) * splat(LOG2E));  // e^-|v|, in [0, 1]
  vec r = one / (one + e);
  derivative = v < zero ? e * r : r;
  vec s = e / (splat(2.f) + e), q = s * s;  // log(1 + e) = 2 atanh(s), s <= 1/3
  vec p = splat(0.140139051f);
  p = p * q + splat(0.139990706f);
  p = p * q + splat(0.200108963f);
  p = p * q + splat(0.333332052f);
  p = p * q + one;
  return (v > zero ? v : zero) + (s + s) * p;
}

// x Phi(x), exactly GELU and not its tanh form, and its derivative Phi(x) + x phi(x). Phi(-|x|) after Abramowitz and Stegun
// 7.1.26 (error below 0.8e-7), so that nothing cancels for negative x. For |x| < 1e30: exp2 may not reach 0.
INLINE vec gelu(vec x, vec &derivative) {
  const vec zero = {}, one = splat(1.f);
  vec a = (x < zero ? -x : x) * splat(0.70710678118654752f);
  vec t = one / (one + splat(0.3275911f) * a);
  vec e = exp2(a * a * splat(-LOG2E));
  vec q = t * t;
  vec p = (splat(0.5f * 0.254829592f) + t * splat(0.5f * -0.284496736f)) +
          q * ((splat(0.5f * 1.421413741f) + t * splat(0.5f * -1.453152027f)) + q * splat(0.5f * 1.061405429f));
  vec tail = p * t * e;  // Phi(-|x|)
  vec phi = x < zero ? tail : one - tail;
  derivative = phi + x * e * splat(0.39894228040143268f);
  return x * phi;
}

// x / (1 + e^-x) and its derivative
INLINE vec silu(vec x, vec &derivative) {
  const vec one = splat(1.f);
  vec r = one / (one + exp2(x * splat(-LOG2E)));
  derivative = r * (one + x * (one - r));
  return x * r;
}
