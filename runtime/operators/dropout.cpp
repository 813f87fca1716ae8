// Dropout by counters, with the bits of `ir/capture/operators/elementary.py`: whether an element stays
// depends on the stream and its position in the full tensor alone.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15;

// splitmix64's finaliser (Steele, Lea, Flood 2014)
inline uint64_t mix(uint64_t state) {
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB;
    return state ^ (state >> 31);
}

struct Factor {
    int64_t size, stride, start;
};

struct Stream {
    uint64_t seed, threshold;  // 53 random bits below the threshold drop an element
};

// Elements that lie next to each other in the shard, and at equal distances in the full tensor.
template <typename T>
void run(const T* x, T* out, int64_t count, int64_t position, int64_t stride, Stream stream, T scale) {
    uint64_t state = stream.seed + (uint64_t(position) + 1) * GAMMA, step = uint64_t(stride) * GAMMA;
    int64_t threshold = int64_t(stream.threshold);  // signed: as vectors are compared
    for (int64_t i = 0; i < count; ++i, state += step) {
        bool stays = int64_t(mix(state) >> 11) >= threshold;
        out[i] = stays ? x[i] * scale : T(0);
    }
}

template <typename T>
void row(const T* x, T* out, int64_t count, int64_t number, const Factor* factors, int64_t length,
         Stream stream, T scale) {
    int64_t inner = length ? factors[length - 1].size : count;
    int64_t stride = length ? factors[length - 1].stride : 1;
    while (count > 0) {
        int64_t rest = number, position = 0;
        for (int64_t k = length - 1; k >= 0; --k) {
            int64_t digit = k ? rest % factors[k].size : rest;
            rest /= factors[k].size;
            position += (digit + factors[k].start) * factors[k].stride;
        }
        int64_t span = length > 1 ? std::min(inner - number % inner, count) : count;
        run(x, out, span, position, stride, stream, scale);
        x += span, out += span, number += span, count -= span;
    }
}

template <typename T>
void rows(const T* x, T* out, const int64_t* shape, int64_t first, int64_t row_step,
          const Factor* factors, int64_t length, const Stream* stream, double scale) {
    for (int64_t r = 0; r < shape[0]; ++r)
        row(x + r * shape[1], out + r * shape[1], shape[1], first + r * row_step, factors, length,
            *stream, T(scale));
}

}  // namespace

extern "C" void dropout_float32(const float* x, float* out, const int64_t* shape, int64_t first,
                                int64_t row_step, const Factor* factors, int64_t length,
                                const Stream* stream, double scale) {
    rows(x, out, shape, first, row_step, factors, length, stream, scale);
}

extern "C" void dropout_float64(const double* x, double* out, const int64_t* shape, int64_t first,
                                int64_t row_step, const Factor* factors, int64_t length,
                                const Stream* stream, double scale) {
    rows(x, out, shape, first, row_step, factors, length, stream, scale);
}
