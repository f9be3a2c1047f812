// How fast this machine can be: the yardstick of benchmarks/scan.py, not used in any run.
#include <chrono>
#include "simd.h"

// float32 exp2_bounded, which the scan uses, per second over all threads, on 16 KB of numbers each, which stay in the
// first-level cache
extern "C" void exp_per_second(double *per_second, int threads) {
  constexpr int count = 4096, times = 50000;  // long enough for threads to find processors of their own
  double rate = 0;
#pragma omp parallel num_threads(threads) reduction(+ : rate)
  {
    alignas(64) float numbers[count];
    for (int i = 0; i < count; i++) numbers[i] = -(float)(i % 777) / 70.f * OCTAVE;
#pragma omp barrier
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; i++) {
      asm volatile("" ::: "memory");  // do it again
      for (int j = 0; j < count; j += W) {
        vec v = exp2_bounded(load(numbers + j));
        asm volatile("" ::"x"(v));  // and do not leave it out
      }
    }
    std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    rate += (double)count * times / passed.count();
  }
  *per_second = rate;
}
