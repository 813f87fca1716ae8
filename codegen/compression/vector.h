// Sixteen lanes at a time: what kernels of compression programs are made of.
// Compile without contraction of a * b + c: codes and scales must be the same on every backend.
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float V __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint64_t D __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));

template <class T> inline T read(const void* from) { T v; std::memcpy(&v, from, sizeof v); return v; }
template <class T> inline void write(void* to, T v) { std::memcpy(to, &v, sizeof v); }

inline V widen(H half) { return (V)(__builtin_convertvector(half, U) << 16); }

// Rounded to nearest even in bf16.
inline H narrow(V x) {
  const U bits = (U)x, magnitude = bits & 0x7FFFFFFFu;
  const U rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  const U quiet = U{} + 0x7FC0u;
  return __builtin_convertvector(magnitude > 0x7F800000u ? quiet : rounded, H);
}

// Sums add halves until one number is left.
inline float folded(V x) {
  float lane[LANES];
  write(lane, x);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

inline V magnitude(V x) { return (V)((U)x & 0x7FFFFFFFu); }
inline V squared(V x) { return x * x; }

template <V of(V)> inline float sum(const V* x, int vectors, V* scratch) {
  if (vectors == 1) return folded(of(x[0]));
  for (int i = 0; i < vectors / 2; ++i) scratch[i] = of(x[i]) + of(x[i + vectors / 2]);
  for (int half = vectors / 4; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) scratch[i] = scratch[i] + scratch[i + half];
  return folded(scratch[0]);
}

// As integers magnitudes are in the same order, and NaN is the largest.
inline float largest(const V* x, int vectors) {
  I most = (I)magnitude(x[0]);
  for (int i = 1; i < vectors; ++i) {
    const I next = (I)magnitude(x[i]);
    most = next > most ? next : most;
  }
  int32_t lane[LANES], best = 0;
  write(lane, most);
  for (int i = 0; i < LANES; ++i) best = lane[i] > best ? lane[i] : best;
  float result;
  std::memcpy(&result, &best, sizeof result);
  return result;
}

struct Step { float scale, inverse; };

// What a code of one stands for, from a group's largest magnitude.
inline Step step_of(float most, float codes) {
  const bool zero = most < 0x1p-100f;
  return {zero ? 1.0f : most / codes, zero ? 0.0f : codes / most};
}

inline U nearest(V x) { return (U)(x + 12582912.0f); }  // 1.5 * 2^23: the code in the low bits

inline U stochastic(V x, V noise, int codes) {
  const V raised = x + noise;
  I code = __builtin_convertvector(raised, I);
  code += __builtin_convertvector(code, V) > raised;  // truncation to floor; true is -1
  code = code > codes ? I{} + codes : code;
  return (U)(code < -codes ? I{} - codes : code);
}

inline U sign(V x) { return (U)(x < 0.0f) & 1u; }
inline V signs(U bit) { return __builtin_convertvector(1 - 2 * (I)bit, V); }

inline U to_e4m3(V x) {
  const U bits = (U)x, size = bits & 0x7FFFFFFFu;
  const I normal = (I)((size + 0x7FFFFu + (size >> 20 & 1u)) >> 20) - (120 << 3);
  const I small = (I)(magnitude(x) * 512.0f + 12582912.0f) & 15;
  const I capped = normal > 127 ? I{} + 127 : normal;
  return (bits >> 24 & 0x80u) | (U)(magnitude(x) < 0x1p-6f ? small : capped);
}

inline V from_e4m3(U code) {
  const U size = code & 0x7Fu;
  const V normal = (V)((size + (120u << 3)) << 20);
  const V small = __builtin_convertvector((I)size, V) * 0x1p-9f;
  const V value = size < 8u ? small : normal;
  return (V)((U)value | (code & 0x80u) << 24);
}

// Butterflies from neighbours outwards over `block` elements.
inline void hadamard(V* x, int vectors, int block) {
  const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int i = 0; i < vectors; ++i)
    for (int width = 1; width < block && width < LANES; width *= 2) {
      const V other = __builtin_shuffle(x[i], lane ^ width);
      x[i] = other + (V)((U)x[i] ^ ((U)((lane & width) != 0) & 0x80000000u));
    }
  for (int width = 1; width * LANES < block; width *= 2)
    for (int start = 0; start < vectors; start += 2 * width)
      for (int i = start; i < start + width; ++i) {
        const V first = x[i], second = x[i + width];
        x[i] = first + second;
        x[i + width] = first - second;
      }
}

inline U high_product(U x, uint32_t factor) {
  const D even = (D)x, odd = (D)x >> 32;
#ifdef __AVX512F__
  const __m512i wide = _mm512_set1_epi64(factor);
  const D low = (D)_mm512_mul_epu32((__m512i)even, wide);
  const D high = (D)_mm512_mul_epu32((__m512i)odd, wide);
#else
  const D low = (even & 0xFFFFFFFFull) * (uint64_t)factor, high = odd * (uint64_t)factor;
#endif
  return (U)(low >> 32 | (high & 0xFFFFFFFF00000000ull));
}

// Philox 4x32-10 of sixteen counters from `counter` on, as numbers in [0, 1).
inline void noise_of(uint32_t counter, uint32_t step, uint64_t seed, V noise[4]) {
  const U lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  U a = lane + counter, b = U{} + step, c = U{}, d = U{};
  uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const U high0 = high_product(a, 0xD2511F53u), low0 = a * 0xD2511F53u;
    const U high1 = high_product(c, 0xCD9E8D57u), low1 = c * 0xCD9E8D57u;
    a = high1 ^ b ^ key0;
    b = low1;
    c = high0 ^ d ^ key1;
    d = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const U word[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) noise[i] = __builtin_convertvector((I)(word[i] >> 8), V) * 0x1p-24f;
}

inline void exchange(V& key_low, V& key_high, V& low, V& high) {
  const I swap = key_low > key_high;
  const V keys = key_low, values = low;
  key_low = swap ? key_high : keys;
  key_high = swap ? keys : key_high;
  low = swap ? high : values;
  high = swap ? values : high;
}

}  // namespace
