// Convolutions of the format "fp32-exact" in 16-bit integers: the linear filters, whose few channels leave the units of
// larger convolutions idle. Positions lie side by side in a vector, and two channels in each of its lanes.
#include <algorithm>
#include <cmath>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
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

// Nine sums of eight lanes stay in registers, beside three vectors of what is seen and one of weights.
__attribute__((target("avx2")))
void filter_strip_avx2(const FilterPart &part, const int16_t *source, uint32_t count, int32_t *sums)
{
    if (count < kFilterStrip)
        return filter_strip_plain(part, source, count, sums);
    constexpr uint32_t kVectors = kFilterStrip / 8;
    __m256i sum[kFilterOutputs][kVectors];
    for (uint32_t o = 0; o < kFilterOutputs; o++)
        for (uint32_t v = 0; v < kVectors; v++)
            sum[o][v] = _mm256_setzero_si256();
    const int16_t *weight = part.weight;
    for (uint32_t pair = 0; pair < part.pairs; pair++)
        for (uint32_t y = 0; y < part.size; y++) {
            const int16_t *seen = source + 2 * (pair * part.plane + y * part.row);
            for (uint32_t x = 0; x < part.size; x++, seen += 2, weight += 2 * kFilterOutputs) {
                __m256i values[kVectors];
                for (uint32_t v = 0; v < kVectors; v++)
                    values[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(seen + 16 * v));
                for (uint32_t o = 0; o < kFilterOutputs; o++) {
                    int32_t both;
                    __builtin_memcpy(&both, weight + 2 * o, sizeof both);
                    for (uint32_t v = 0; v < kVectors; v++)
                        sum[o][v] = _mm256_add_epi32(sum[o][v], _mm256_madd_epi16(values[v], _mm256_set1_epi32(both)));
                }
            }
        }
    for (uint32_t o = 0; o < kFilterOutputs; o++)
        for (uint32_t v = 0; v < kVectors; v++)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(sums + o * kFilterStrip + 8 * v), sum[o][v]);
}

}  // namespace

FilterStrip best_filter_strip()
{
    return __builtin_cpu_supports("avx2") ? filter_strip_avx2 : filter_strip_plain;
}

#else

FilterStrip best_filter_strip()
{
    return filter_strip_plain;
}

#endif

}  // namespace linnet

namespace {

using linnet::kFilterOutputs;
using linnet::kFilterStrip;

constexpr uint32_t kStrips = 16;
constexpr uint32_t kMostPlaces = LINNET_MAX_TARGETS;

// The numbers of planes with these channels; 0 where there are too many, or none.
uint64_t numbers(uint32_t height, uint32_t width, uint32_t channels, uint32_t border)
{
    constexpr uint64_t kMost = LINNET_MAX_PLANES;
    const uint64_t rows = height + 2 * uint64_t(border), columns = width + 2 * uint64_t(border);
    if (!height || !width || rows > kMost || columns > kMost || rows * columns > kMost || channels > kMost)
        return 0;
    const uint64_t all = rows * columns * channels;
    return all > kMost ? 0 : all;
}

bool valid(const linnet_planes *planes)
{
    return planes && planes->data && numbers(planes->height, planes->width, planes->channels, planes->border);
}

bool valid(const linnet_filter *filter)
{
    if (!filter || !filter->weight || !filter->bias || !filter->shift || filter->bits == 1 || filter->bits > 16)
        return false;
    if (!filter->inputs || !filter->outputs || filter->outputs > kMostPlaces || filter->size % 2 == 0)
        return false;
    const uint8_t lowest = filter->bits ? 2 : 0, highest = filter->bits ? 31 : 63;
    return std::all_of(filter->shift, filter->shift + filter->outputs,
                       [&](uint8_t shift) { return shift >= lowest && shift <= highest; });
}

bool valid(const linnet_target *target, uint32_t outputs, bool dense)
{
    if (!target || !target->data || !target->channel || !target->block || (dense && target->border))
        return false;
    if (!numbers(target->height, target->width, target->channels, target->border))
        return false;
    if (uint64_t(target->block) * outputs > kMostPlaces)
        return false;
    const int32_t *const end = target->channel + size_t(target->block) * target->block * outputs;
    return std::all_of(target->channel, end, [&](int32_t c) { return c >= -1 && c < int64_t(target->channels); });
}

// Writes the results of a row to where they belong.
class Writer {
public:
    Writer(const linnet_filter &filter, const linnet_target &target) : filter_(filter), target_(target)
    {
    }

    // `places` (block, outputs): where in the target what comes of row y begins, by x % block and output; -1 nowhere.
    void begin_row(uint32_t y, int64_t *places) const
    {
        const uint32_t block = target_.block, count = block * filter_.outputs;
        const int32_t *const channel = target_.channel + size_t(y % block) * count;
        const int64_t columns = target_.width + 2 * int64_t(target_.border);
        const int64_t rows = target_.height + 2 * int64_t(target_.border), row = y / block;
        for (uint32_t i = 0; i < count; i++) {
            const int64_t c = channel[i];
            const int64_t plane_row = c / 2 * rows + target_.border + row;
            const int64_t at = filter_.bits ? 2 * (plane_row * columns + target_.border) + c % 2
                                            : row * target_.width * target_.channels + c;
            places[i] = c < 0 ? -1 : at;
        }
    }

    void put(const int32_t *sums, uint32_t output, uint32_t x, uint32_t count, const int64_t *places) const
    {
        const uint32_t bias = uint32_t(filter_.bias[output]);
        const int shift = filter_.shift[output];
        if (!filter_.bits) {
            float results[kFilterStrip];
            const float unit = 1 / float(uint64_t(1) << shift);
            for (uint32_t i = 0; i < kFilterStrip; i++)
                results[i] = float(int32_t(uint32_t(sums[i]) + bias)) * unit;
            return scatter(results, static_cast<float *>(target_.data), output, x, count, places, target_.channels);
        }
        int16_t results[kFilterStrip];
        const int32_t highest = (1 << (filter_.bits - 1)) - 1;
        for (uint32_t i = 0; i < kFilterStrip; i++) {
            const int32_t sum = int32_t(uint32_t(sums[i]) + bias);
            results[i] = int16_t(std::clamp(((sum >> (shift - 1)) + 1) >> 1, -highest - 1, highest));
        }
        scatter(results, static_cast<int16_t *>(target_.data), output, x, count, places, 2);
    }

private:
    template <typename Number>
    void scatter(const Number *results, Number *data, uint32_t output, uint32_t x, uint32_t count,
                 const int64_t *places, size_t step) const
    {
        const uint32_t block = target_.block;
        uint32_t phase = x % block;
        data += x / block * step;
        for (uint32_t i = 0; i < std::min(block, count); i++) {
            const int64_t place = places[phase * filter_.outputs + output];
            if (place >= 0) {
                Number *to = data + place;
                for (uint32_t k = i; k < count; k += block, to += step)
                    *to = results[k];
            }
            if (++phase == block) {
                phase = 0;
                data += step;
            }
        }
    }

    const linnet_filter &filter_;
    const linnet_target &target_;
};

}  // namespace

int linnet_planes_fill(const linnet_planes *planes, const int8_t *values)
{
    if (!valid(planes) || !values)
        return LINNET_ERROR_ARGUMENT;
    const size_t columns = planes->width + 2 * size_t(planes->border);
    const size_t plane = 2 * columns * (planes->height + 2 * size_t(planes->border));
    for (uint32_t y = 0; y < planes->height; y++) {
        int16_t *const row = planes->data + 2 * ((planes->border + y) * columns + planes->border);
        const int8_t *const seen = values + size_t(y) * planes->width * planes->channels;
        for (uint32_t c = 0; c < planes->channels; c++)
            for (uint32_t x = 0; x < planes->width; x++)
                row[c / 2 * plane + c % 2 + 2 * x] = seen[size_t(x) * planes->channels + c];
    }
    return LINNET_OK;
}

int linnet_filter_rows(const linnet_filter *filter, const linnet_planes *source, uint32_t first, uint32_t last,
                       const linnet_target *target)
{
    if (!valid(filter) || !valid(source) || !valid(target, filter->outputs, !filter->bits))
        return LINNET_ERROR_ARGUMENT;
    if (filter->inputs != source->channels || source->border < filter->size / 2 || first > last)
        return LINNET_ERROR_ARGUMENT;
    if (last > source->height || source->height != target->height * uint64_t(target->block) ||
        source->width != target->width * uint64_t(target->block))
        return LINNET_ERROR_ARGUMENT;

    const auto strip = linnet::best_filter_strip();
    const size_t columns = source->width + 2 * size_t(source->border);
    linnet::FilterPart part = {};
    part.pairs = (filter->inputs + 1) / 2;
    part.size = filter->size;
    part.row = columns;
    part.plane = columns * (source->height + 2 * size_t(source->border));
    const size_t weights = size_t(2 * kFilterOutputs) * part.pairs * part.size * part.size;
    const int16_t *const corner = source->data + 2 * (columns + 1) * (source->border - filter->size / 2);
    const Writer writer(*filter, *target);
    int64_t places[kMostPlaces];
    const uint32_t step = std::min(kFilterStrip, source->width);
    // Down parts of the rows, so that what kernels see again, and the block that is written, stay near.
    for (uint32_t left = 0; left < source->width; left += kStrips * step)
        for (uint32_t y = first; y < last; y++) {
            writer.begin_row(y, places);
            for (uint32_t x = left; x < std::min(left + kStrips * step, source->width); x += step) {
                x = std::min(x, source->width - step);  // the last one begins early enough to be whole
                const int16_t *const seen = corner + 2 * (y * columns + x);
                // The row that comes into sight next: no processor foresees so many short ones.
                for (uint32_t pair = 0; pair < part.pairs && y + 1 < last; pair++)
                    for (uint32_t line = 0; line < 2; line++)
                        __builtin_prefetch(seen + 2 * (pair * part.plane + part.size * part.row) + line * 32);
                for (uint32_t output = 0; output < filter->outputs; output += kFilterOutputs) {
                    int32_t sums[kFilterOutputs * kFilterStrip];
                    part.weight = filter->weight + output / kFilterOutputs * weights;
                    strip(part, seen, step, sums);
                    for (uint32_t o = output; o < std::min(output + kFilterOutputs, filter->outputs); o++)
                        writer.put(sums + (o - output) * kFilterStrip, o, x, step, places);
                }
            }
        }
    return LINNET_OK;
}
