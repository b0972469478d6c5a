// The inner loop of the linear filters, in 16-bit integers: positions lie side by side in a vector, and two channels in
// each of its lanes, whose products the processor adds.
#include <algorithm>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace linnet {

void filter_strip_plain(const FilterPart &part, const int16_t *source, uint32_t count, int32_t *sums)
{
    uint32_t *const wrapping = reinterpret_cast<uint32_t *>(sums);
    std::fill_n(wrapping, kFilterOutputs * kFilterStrip, 0);
    const int16_t *weight = part.weight;
    for (uint32_t pair = 0; pair < part.pairs; pair++)
        for (uint32_t y = 0; y < part.size; y++)
            for (uint32_t x = 0; x < part.size; x++, weight += 2 * kFilterOutputs) {
                const int16_t *const seen = source + 2 * (pair * part.plane + y * part.row + x);
                for (uint32_t o = 0; o < kFilterOutputs; o++)
                    for (uint32_t i = 0; i < count; i++)
                        wrapping[o * kFilterStrip + i] += uint32_t(seen[2 * i] * weight[2 * o]) +
                                                          uint32_t(seen[2 * i + 1] * weight[2 * o + 1]);
            }
}

#if defined(__x86_64__)
namespace {

// Two weights as the one number that vectors are filled with.
inline int32_t pair_of(const int16_t *weights)
{
    int32_t both;
    std::memcpy(&both, weights, sizeof both);
    return both;
}

// Nine sums of eight lanes stay in registers, beside three vectors of what is seen and one of weights. `add_products`
// is what differs between processors.
#define LINNET_FILTER_STRIP(name, instructions, add_products)                                                      \
    __attribute__((target(instructions)))                                                                          \
    void name(const FilterPart &part, const int16_t *source, uint32_t count, int32_t *sums)                        \
    {                                                                                                              \
        if (count < kFilterStrip)                                                                                  \
            return filter_strip_plain(part, source, count, sums);                                                  \
        constexpr uint32_t kVectors = kFilterStrip / 8;                                                            \
        __m256i sum[kFilterOutputs][kVectors];                                                                     \
        for (uint32_t o = 0; o < kFilterOutputs; o++)                                                              \
            for (uint32_t v = 0; v < kVectors; v++)                                                                \
                sum[o][v] = _mm256_setzero_si256();                                                                \
        const int16_t *weight = part.weight;                                                                       \
        for (uint32_t pair = 0; pair < part.pairs; pair++)                                                         \
            for (uint32_t y = 0; y < part.size; y++) {                                                             \
                const int16_t *seen = source + 2 * (pair * part.plane + y * part.row);                             \
                for (uint32_t x = 0; x < part.size; x++, seen += 2, weight += 2 * kFilterOutputs) {                \
                    __m256i values[kVectors];                                                                      \
                    for (uint32_t v = 0; v < kVectors; v++)                                                        \
                        values[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(seen + 16 * v));          \
                    for (uint32_t o = 0; o < kFilterOutputs; o++) {                                                \
                        const __m256i both = _mm256_set1_epi32(pair_of(weight + 2 * o));                           \
                        for (uint32_t v = 0; v < kVectors; v++)                                                    \
                            sum[o][v] = add_products(sum[o][v], values[v], both);                                  \
                    }                                                                                              \
                }                                                                                                  \
            }                                                                                                      \
        for (uint32_t o = 0; o < kFilterOutputs; o++)                                                              \
            for (uint32_t v = 0; v < kVectors; v++)                                                                \
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(sums + o * kFilterStrip + 8 * v), sum[o][v]);      \
    }

#define LINNET_MULTIPLY_THEN_ADD(sum, values, weights) _mm256_add_epi32(sum, _mm256_madd_epi16(values, weights))
LINNET_FILTER_STRIP(filter_strip_avx2, "avx2", LINNET_MULTIPLY_THEN_ADD)
LINNET_FILTER_STRIP(filter_strip_vnni, "avx512vl,avx512vnni", _mm256_dpwssd_epi32)

// The same in two halves of four lanes.
void filter_strip_sse2(const FilterPart &part, const int16_t *source, uint32_t count, int32_t *sums)
{
    if (count < kFilterStrip)
        return filter_strip_plain(part, source, count, sums);
    constexpr uint32_t kVectors = kFilterStrip / 8;
    for (uint32_t half = 0; half < 2; half++, source += kFilterStrip, sums += kFilterStrip / 2) {
        __m128i sum[kFilterOutputs][kVectors];
        for (uint32_t o = 0; o < kFilterOutputs; o++)
            for (uint32_t v = 0; v < kVectors; v++)
                sum[o][v] = _mm_setzero_si128();
        const int16_t *weight = part.weight;
        for (uint32_t pair = 0; pair < part.pairs; pair++)
            for (uint32_t y = 0; y < part.size; y++) {
                const int16_t *seen = source + 2 * (pair * part.plane + y * part.row);
                for (uint32_t x = 0; x < part.size; x++, seen += 2, weight += 2 * kFilterOutputs) {
                    __m128i values[kVectors];
                    for (uint32_t v = 0; v < kVectors; v++)
                        values[v] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(seen + 8 * v));
                    for (uint32_t o = 0; o < kFilterOutputs; o++) {
                        const __m128i both = _mm_set1_epi32(pair_of(weight + 2 * o));
                        for (uint32_t v = 0; v < kVectors; v++)
                            sum[o][v] = _mm_add_epi32(sum[o][v], _mm_madd_epi16(values[v], both));
                    }
                }
            }
        for (uint32_t o = 0; o < kFilterOutputs; o++)
            for (uint32_t v = 0; v < kVectors; v++)
                _mm_storeu_si128(reinterpret_cast<__m128i *>(sums + o * kFilterStrip + 4 * v), sum[o][v]);
    }
}

}  // namespace

FilterStrip best_filter_strip()
{
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        return filter_strip_vnni;
    return __builtin_cpu_supports("avx2") ? filter_strip_avx2 : filter_strip_sse2;
}

#elif defined(__aarch64__)
namespace {

// Eight positions at a time, as many as are loaded with their two channels apart.
void filter_strip_neon(const FilterPart &part, const int16_t *source, uint32_t count, int32_t *sums)
{
    if (count < kFilterStrip)
        return filter_strip_plain(part, source, count, sums);
    for (uint32_t first = 0; first < kFilterStrip; first += 8, source += 16, sums += 8) {
        int32x4_t low[kFilterOutputs], high[kFilterOutputs];
        for (uint32_t o = 0; o < kFilterOutputs; o++)
            low[o] = high[o] = vdupq_n_s32(0);
        const int16_t *weight = part.weight;
        for (uint32_t pair = 0; pair < part.pairs; pair++)
            for (uint32_t y = 0; y < part.size; y++) {
                const int16_t *seen = source + 2 * (pair * part.plane + y * part.row);
                for (uint32_t x = 0; x < part.size; x++, seen += 2, weight += 2 * kFilterOutputs) {
                    const int16x8x2_t values = vld2q_s16(seen);
                    for (uint32_t o = 0; o < kFilterOutputs; o++)
                        for (uint32_t c = 0; c < 2; c++) {
                            low[o] = vmlal_n_s16(low[o], vget_low_s16(values.val[c]), weight[2 * o + c]);
                            high[o] = vmlal_high_n_s16(high[o], values.val[c], weight[2 * o + c]);
                        }
                }
            }
        for (uint32_t o = 0; o < kFilterOutputs; o++) {
            vst1q_s32(sums + o * kFilterStrip, low[o]);
            vst1q_s32(sums + o * kFilterStrip + 4, high[o]);
        }
    }
}

}  // namespace

FilterStrip best_filter_strip()
{
    return filter_strip_neon;
}

#else

FilterStrip best_filter_strip()
{
    return filter_strip_plain;
}

#endif

}  // namespace linnet
