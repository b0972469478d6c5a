// The arithmetic between the networks and the entropy coder, for one tile; integers in all that a decoder repeats.
#include <algorithm>

#include "kernels.h"

namespace {

constexpr int kGainExp = 6;
constexpr int kMinGain = 1 << kGainExp;
constexpr int kFineExp = 2;  // latents are coded in quarters of what the networks see
constexpr int kLowest = -128 * (1 << kFineExp), kHighest = 127 * (1 << kFineExp) + 1;  // whose whole part is within int8
constexpr uint64_t kMaxElements = uint64_t(1) << 30;

bool valid(const linnet_step *step)
{
    if (!step || !step->gain || !step->mean_shift || !step->table_offset || !step->companding)
        return false;
    if (!step->height || !step->width || step->first >= step->last || step->last > step->channels)
        return false;
    if (step->parity < -1 || step->parity > 1 || !step->tables || step->tables > LINNET_MAX_TABLES)
        return false;
    const uint64_t positions = uint64_t(step->height) * step->width;
    if (positions > kMaxElements || positions * step->channels > kMaxElements)
        return false;
    for (uint32_t c = 0; c < step->last - step->first; c++)
        if (step->gain[c] < kMinGain || step->mean_shift[c] > kFineExp)
            return false;
    return true;
}

// Calls visit(position, k) for each position of the step, k counting them; returns how many there are.
template <typename Visit>
size_t each_position(const linnet_step &step, Visit visit)
{
    size_t k = 0;
    const uint32_t stride = step.parity < 0 ? 1 : 2;
    for (uint32_t row = 0; row < step.height; row++) {
        const uint32_t first = step.parity < 0 ? 0 : (row + uint32_t(step.parity)) & 1;
        for (uint32_t column = first; column < step.width; column += stride)
            visit(size_t(row) * step.width + column, k++);
    }
    return k;
}

// What a step does with up to kChunk of its channels, ready for loops that compilers turn into vector code: no branches,
// no shifts by varying amounts.
constexpr uint32_t kChunk = 256;

struct Channels {
    uint32_t n;
    int16_t mean_factor[kChunk], gain[kChunk];
    float mean_factor_f[kChunk], gain_f[kChunk];

    Channels(const linnet_step &step, uint32_t first, uint32_t count) : n(count)
    {
        for (uint32_t c = 0; c < count; c++) {
            mean_factor[c] = int16_t(1 << step.mean_shift[first + c]);
            mean_factor_f[c] = mean_factor[c];
            gain[c] = step.gain[first + c];
            gain_f[c] = gain[c];
        }
    }
};

// Calls visit(channels, first) for each chunk of the step's channels.
template <typename Visit>
void each_chunk(const linnet_step &step, Visit visit)
{
    const uint32_t n = step.last - step.first;
    for (uint32_t first = 0; first < n; first += kChunk)
        visit(Channels(step, first, std::min(kChunk, n - first)), first);
}

LINNET_INLINE void choose_tables(uint32_t n, const int8_t *__restrict scale, const int16_t *__restrict offset,
                                 uint32_t tables, uint8_t *__restrict index)
{
    const int32_t top = int32_t(tables) - 1;
    for (uint32_t c = 0; c < n; c++)
        index[c] = uint8_t(std::clamp(int32_t(scale[c]) + offset[c], 0, top));
}

// How far the latents lie from their means, in quantisation steps.
LINNET_INLINE void subtract(const Channels &channels, const float *__restrict latent, const int8_t *__restrict mean,
                            float *__restrict residual)
{
    for (uint32_t c = 0; c < channels.n; c++) {
        const float target = float(128 << kFineExp) * latent[c];
        residual[c] = (target - float(mean[c]) * channels.mean_factor_f[c]) * float(kMinGain) / channels.gain_f[c];
    }
}

LINNET_INLINE void dequantize(const Channels &channels, const int8_t *__restrict mean, const int16_t *__restrict level,
                              int8_t *__restrict whole, int8_t *__restrict quarters)
{
    for (uint32_t c = 0; c < channels.n; c++) {
        // Levels are half steps.
        const int32_t offset = (int32_t(level[c]) * channels.gain[c] + (1 << kGainExp)) >> (kGainExp + 1);
        const int32_t v = std::clamp(int32_t(mean[c]) * channels.mean_factor[c] + offset, kLowest, kHighest);
        const int32_t w = (v + (1 << (kFineExp - 1))) >> kFineExp;
        whole[c] = int8_t(w);
        quarters[c] = int8_t(v - w * (1 << kFineExp));
    }
}

// The nearest whole numbers to float latents.
LINNET_INLINE void round_latents(uint32_t n, const float *__restrict latent, int8_t *__restrict whole)
{
    for (uint32_t i = 0; i < n; i++) {
        const float scaled = 128.0f * latent[i];
        const float v = scaled == scaled ? scaled : 0;
        whole[i] = int8_t(int32_t(std::clamp(v, -128.0f, 127.0f) + 128.5f) - 128);
    }
}

// The loops above, which compilers turn into vector code: once for every processor, and once for wider vectors.
struct Loops {
    void (*choose_tables)(uint32_t, const int8_t *, const int16_t *, uint32_t, uint8_t *);
    void (*subtract)(const Channels &, const float *, const int8_t *, float *);
    void (*dequantize)(const Channels &, const int8_t *, const int16_t *, int8_t *, int8_t *);
    void (*round_latents)(uint32_t, const float *, int8_t *);
};

#define LINNET_LOOPS(name, target)                                                                           \
    constexpr Loops name = {                                                                                 \
        [](uint32_t n, const int8_t *scale, const int16_t *offset, uint32_t tables, uint8_t *index) target { \
            choose_tables(n, scale, offset, tables, index);                                                  \
        },                                                                                                   \
        [](const Channels &channels, const float *latent, const int8_t *mean, float *residual) target {      \
            subtract(channels, latent, mean, residual);                                                      \
        },                                                                                                   \
        [](const Channels &channels, const int8_t *mean, const int16_t *level, int8_t *whole,                \
           int8_t *quarters) target { dequantize(channels, mean, level, whole, quarters); },                 \
        [](uint32_t n, const float *latent, int8_t *whole) target { round_latents(n, latent, whole); },      \
    };

LINNET_LOOPS(kPlainLoops, )
#if defined(__x86_64__)
LINNET_LOOPS(kWideLoops, __attribute__((target("avx2"))))

const Loops &best_loops()
{
    return __builtin_cpu_supports("avx2") ? kWideLoops : kPlainLoops;
}
#else
const Loops &best_loops()
{
    return kPlainLoops;
}
#endif

}  // namespace

int linnet_step_residuals(const linnet_step *step, const float *latent, const int8_t *params, float *residual,
                          uint8_t *table_index, size_t *count)
{
    if (!latent || !residual)
        return LINNET_ERROR_ARGUMENT;
    const int error = linnet_step_tables(step, params, table_index, count);
    if (error)
        return error;
    const uint32_t n = step->last - step->first;
    const auto subtract = best_loops().subtract;
    each_chunk(*step, [&](const Channels &channels, uint32_t first) {
        each_position(*step, [&](size_t position, size_t k) {
            subtract(channels, latent + position * step->channels + step->first + first,
                     params + position * 2 * n + first, residual + k * n + first);
        });
    });
    return LINNET_OK;
}

int linnet_step_tables(const linnet_step *step, const int8_t *params, uint8_t *table_index, size_t *count)
{
    if (!valid(step) || !params || !table_index || !count)
        return LINNET_ERROR_ARGUMENT;
    const uint32_t n = step->last - step->first;
    const auto choose_tables = best_loops().choose_tables;
    *count = n * each_position(*step, [&](size_t position, size_t k) {
        choose_tables(n, params + position * 2 * n + n, step->table_offset, step->tables, table_index + k * n);
    });
    return LINNET_OK;
}

int linnet_step_dequantize(const linnet_step *step, const int8_t *params, const int16_t *levels, int8_t *decoded,
                           int8_t *companded)
{
    if (!valid(step) || !params || !levels || !decoded || !companded)
        return LINNET_ERROR_ARGUMENT;
    const uint32_t n = step->last - step->first;
    const auto dequantize = best_loops().dequantize;
    const auto compand = linnet::best_compand();
    each_chunk(*step, [&](const Channels &channels, uint32_t first) {
        each_position(*step, [&](size_t position, size_t k) {
            const size_t at = position * step->channels + step->first + first;
            int8_t *whole = decoded + at + position * step->channels;
            dequantize(channels, params + position * 2 * n + first, levels + k * n + first, whole,
                       whole + step->channels);
            compand(step->companding, whole, channels.n, companded + at);
        });
    });
    return LINNET_OK;
}

int linnet_compand(const float *latent, size_t count, const int8_t *companding, int8_t *companded)
{
    if (!companding || (count && (!latent || !companded)))
        return LINNET_ERROR_ARGUMENT;
    const auto round_latents = best_loops().round_latents;
    const auto compand = linnet::best_compand();
    for (size_t first = 0; first < count; first += kChunk) {
        int8_t whole[kChunk];
        const uint32_t n = uint32_t(std::min<size_t>(kChunk, count - first));
        round_latents(n, latent + first, whole);
        compand(companding, whole, n, companded + first);
    }
    return LINNET_OK;
}
