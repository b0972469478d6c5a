// Bytes looked up in a table of 256 of them, many at once.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace linnet {

void compand_plain(const int8_t *table, const int8_t *values, size_t count, int8_t *companded)
{
    for (size_t i = 0; i < count; i++)
        companded[i] = table[values[i] + 128];
}

#if defined(__x86_64__)
namespace {

__attribute__((target("avx2"))) void compand_avx2(const int8_t *table, const int8_t *values, size_t count,
                                                  int8_t *companded)
{
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + i));
        const __m256i place = _mm256_xor_si256(value, _mm256_set1_epi8(-128));
        __m256i found = _mm256_setzero_si256();
        for (int first = 0; first < 256; first += 16) {
            const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i *>(table + first));
            // Places in this row become 0x70 to 0x7f; all others get the highest bit, for which a shuffle gives 0.
            const __m256i within = _mm256_xor_si256(place, _mm256_set1_epi8(char(first)));
            const __m256i marked = _mm256_adds_epu8(within, _mm256_set1_epi8(0x70));
            found = _mm256_or_si256(found, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), marked));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(companded + i), found);
    }
    compand_plain(table, values + i, count - i, companded + i);
}

}  // namespace

Compand best_compand()
{
    return __builtin_cpu_supports("avx2") ? compand_avx2 : compand_plain;
}
#elif defined(__aarch64__)
namespace {

void compand_neon(const int8_t *table, const int8_t *values, size_t count, int8_t *companded)
{
    int8x16x4_t quarter[4];
    for (int row = 0; row < 16; row++)
        quarter[row / 4].val[row % 4] = vld1q_s8(table + 16 * row);
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        uint8x16_t place = veorq_u8(vreinterpretq_u8_s8(vld1q_s8(values + i)), vdupq_n_u8(128));
        int8x16_t found = vqtbl4q_s8(quarter[0], place);
        for (int q = 1; q < 4; q++) {
            place = vsubq_u8(place, vdupq_n_u8(64));
            found = vqtbx4q_s8(found, quarter[q], place);
        }
        vst1q_s8(companded + i, found);
    }
    compand_plain(table, values + i, count - i, companded + i);
}

}  // namespace

Compand best_compand()
{
    return compand_neon;
}
#else
Compand best_compand()
{
    return compand_plain;
}
#endif

}  // namespace linnet
