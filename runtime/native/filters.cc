// Convolutions of the format "fp32-exact" in 16-bit integers: the linear filters, whose few channels leave the units of
// larger convolutions idle. filter_strips.cc has the sums; here is where they come from and where they go.
#include <algorithm>
#include <cstring>

#include "kernels.h"

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
    if (!target || !target->data || !target->channel || !target->block || !target->grow)
        return false;
    if (target->grow > 64 || (target->grow > 1 && target->block > 1) || (dense && (target->border || target->grow > 1)))
        return false;
    if (!numbers(target->height, target->width, target->channels, target->border))
        return false;
    if (uint64_t(target->block) * outputs > kMostPlaces)
        return false;
    const int64_t places = int64_t(target->channels) * target->grow * target->grow;
    const int32_t *const end = target->channel + size_t(target->block) * target->block * outputs;
    return std::all_of(target->channel, end, [&](int32_t c) { return c >= -1 && c < places; });
}

// A filter over its source.
class Filtering {
public:
    Filtering(const linnet_filter &filter, const linnet_planes &source) : filter_(filter)
    {
        const size_t columns = source.width + 2 * size_t(source.border);
        part_.pairs = (filter.inputs + 1) / 2;
        part_.size = filter.size;
        part_.row = columns;
        part_.plane = columns * (source.height + 2 * size_t(source.border));
        weights_ = size_t(2 * kFilterOutputs) * part_.pairs * part_.size * part_.size;
        corner_ = source.data + 2 * (columns + 1) * (source.border - filter.size / 2);
    }

    // No processor foresees the many short rows that come into sight one after the other.
    void fetch_row_after(uint32_t y, uint32_t x) const
    {
        for (uint32_t pair = 0; pair < part_.pairs; pair++)
            for (uint32_t line = 0; line < 2; line++)
                __builtin_prefetch(corner_ + 2 * (pair * part_.plane + (y + part_.size) * part_.row + x) + line * 32);
    }

    // The sums of kFilterOutputs outputs from `output` on, with the biases.
    void sum(uint32_t output, uint32_t y, uint32_t x, uint32_t count, int32_t *sums)
    {
        part_.weight = filter_.weight + output / kFilterOutputs * weights_;
        strip_(part_, corner_ + 2 * (y * part_.row + x), count, sums);
        for (uint32_t o = 0; o < std::min(kFilterOutputs, filter_.outputs - output); o++)
            for (uint32_t i = 0; i < kFilterStrip; i++)
                sums[o * kFilterStrip + i] += uint32_t(filter_.bias[output + o]);
    }

    void to_floats(const int32_t *sums, uint32_t output, float *results) const
    {
        const float unit = 1 / float(uint64_t(1) << filter_.shift[output]);
        for (uint32_t i = 0; i < kFilterStrip; i++)
            results[i] = float(sums[i]) * unit;
    }

    void to_integers(const int32_t *sums, uint32_t output, int16_t *results) const
    {
        const int shift = filter_.shift[output];
        const int32_t highest = (1 << (filter_.bits - 1)) - 1;
        for (uint32_t i = 0; i < kFilterStrip; i++)
            results[i] = int16_t(std::clamp(((sums[i] >> (shift - 1)) + 1) >> 1, -highest - 1, highest));
    }

private:
    const linnet_filter &filter_;
    const linnet::FilterStrip strip_ = linnet::best_filter_strip();
    linnet::FilterPart part_ = {};
    size_t weights_;
    const int16_t *corner_;
};

// Writes the results of a row to where they belong.
class Writer {
public:
    Writer(const linnet_target &target, uint32_t outputs, bool dense)
        : target_(target), outputs_(outputs), dense_(dense), step_(dense ? target.channels : 2 * size_t(target.grow))
    {
    }

    // `places` (block, outputs): where in the target what comes of row y begins, by x % block and output; -1 nowhere.
    void begin_row(uint32_t y, int64_t *places) const
    {
        const uint32_t block = target_.block, grow = target_.grow, count = block * outputs_;
        const int32_t *const channel = target_.channel + size_t(y % block) * count;
        const int64_t columns = target_.width + 2 * int64_t(target_.border);
        const int64_t rows = target_.height + 2 * int64_t(target_.border);
        for (uint32_t i = 0; i < count; i++) {
            const int64_t c = channel[i] / int32_t(grow * grow);
            const int64_t row = y / block * grow + channel[i] / int32_t(grow) % int32_t(grow);
            const int64_t column = target_.border + channel[i] % int32_t(grow);
            const int64_t at = dense_ ? row * target_.width * target_.channels + c
                                      : 2 * ((c / 2 * rows + target_.border + row) * columns + column) + c % 2;
            places[i] = channel[i] < 0 ? -1 : at;
        }
    }

    template <typename Number>
    void put(const Number *results, uint32_t output, uint32_t x, uint32_t count, const int64_t *places) const
    {
        const uint32_t block = target_.block;
        if (count == kFilterStrip && x % block == 0)
            switch (block) {
            case 1:
                return put_strip<1>(results, output, x, places);
            case 2:
                return put_strip<2>(results, output, x, places);
            case 4:
                return put_strip<4>(results, output, x, places);
            case 8:
                return put_strip<8>(results, output, x, places);
            }
        for (uint32_t i = 0; i < count; i++) {
            const int64_t place = places[(x + i) % block * outputs_ + output];
            if (place >= 0)
                static_cast<Number *>(target_.data)[(x + i) / block * step_ + place] = results[i];
        }
    }

private:
    // Nearly all of them: whole strips of whole blocks, in loops that compilers unroll.
    template <uint32_t kBlock, typename Number>
    void put_strip(const Number *results, uint32_t output, uint32_t x, const int64_t *places) const
    {
        Number *const data = static_cast<Number *>(target_.data) + x / kBlock * step_;
        for (uint32_t phase = 0; phase < kBlock; phase++) {
            const int64_t place = places[phase * outputs_ + output];
            if (place < 0)
                continue;
            Number *to = data + place;
            for (uint32_t i = phase; i < kFilterStrip; i += kBlock, to += step_)
                *to = results[i];
        }
    }

    const linnet_target &target_;
    const uint32_t outputs_;
    const bool dense_;
    const size_t step_;
};

bool fits(const linnet_filter *filter, const linnet_planes *source, const linnet_target *target)
{
    return filter->inputs == source->channels && source->border >= filter->size / 2 &&
           source->height * uint64_t(target->grow) == target->height * uint64_t(target->block) &&
           source->width * uint64_t(target->grow) == target->width * uint64_t(target->block);
}

// Calls visit(position, numbers, count) for at most kNeighbours neighbouring positions of a row, with what their first
// two channels have.
constexpr uint32_t kNeighbours = 64;

template <typename Visit>
void each_row_part(const linnet_planes &planes, Visit visit)
{
    const size_t columns = planes.width + 2 * size_t(planes.border);
    for (uint32_t y = 0; y < planes.height; y++)
        for (uint32_t x = 0; x < planes.width; x += kNeighbours)
            visit(size_t(y) * planes.width + x, planes.data + 2 * ((planes.border + y) * columns + planes.border + x),
                  std::min(kNeighbours, planes.width - x));
}

// How far apart two pairs of channels lie.
size_t plane_of(const linnet_planes &planes)
{
    return 2 * (planes.width + 2 * size_t(planes.border)) * (planes.height + 2 * size_t(planes.border));
}

}  // namespace

int linnet_planes_fill(const linnet_planes *planes, const int8_t *values)
{
    if (!valid(planes) || !values || planes->channels % 2)
        return LINNET_ERROR_ARGUMENT;
    const size_t plane = plane_of(*planes), channels = planes->channels;
    each_row_part(*planes, [&](size_t position, int16_t *to, uint32_t count) {
        for (size_t c = 0; c < channels; c += 2, to += plane) {
            int8_t pairs[2 * kNeighbours];
            for (uint32_t i = 0; i < count; i++)
                std::memcpy(pairs + 2 * i, values + (position + i) * channels + c, 2);
            for (uint32_t i = 0; i < 2 * count; i++)
                to[i] = pairs[i];
        }
    });
    return LINNET_OK;
}

int linnet_planes_join(const linnet_planes *planes, const int8_t *values, uint32_t value_channels, uint32_t block,
                       const int32_t *whole, const int32_t *part, uint32_t shift)
{
    if (!valid(planes) || !values || !whole || !part || !block || shift > 7)
        return LINNET_ERROR_ARGUMENT;
    if (planes->height % block || planes->width % block || value_channels > LINNET_MAX_PLANES)
        return LINNET_ERROR_ARGUMENT;
    const uint64_t places = uint64_t(block) * planes->channels * block;
    if (places > LINNET_MAX_TARGETS || block > LINNET_MAX_TARGETS)
        return LINNET_ERROR_ARGUMENT;
    for (const int32_t *table : {whole, part})
        if (!std::all_of(table, table + places, [&](int32_t c) { return c >= 0 && c < int64_t(value_channels); }))
            return LINNET_ERROR_ARGUMENT;
    const size_t columns = planes->width + 2 * size_t(planes->border), plane = plane_of(*planes);
    for (uint32_t y = 0; y < planes->height; y++)
        for (uint32_t i = 0; i < block; i++)
            for (uint32_t c = 0; c < planes->channels; c++) {
                const size_t entry = (size_t(y % block) * block + i) * planes->channels + c;
                const int8_t *from = values + size_t(y / block) * (planes->width / block) * value_channels;
                const int8_t *const wholes = from + whole[entry], *const parts = from + part[entry];
                int16_t *to = planes->data + 2 * ((planes->border + y) * columns + planes->border + i) +
                              c / 2 * plane + c % 2;
                for (size_t x = 0; x < planes->width / block; x++, to += 2 * size_t(block))
                    *to = int16_t(wholes[x * value_channels] * (1 << shift) + parts[x * value_channels]);
            }
    return LINNET_OK;
}

int linnet_planes_edge(const linnet_planes *planes)
{
    if (!valid(planes))
        return LINNET_ERROR_ARGUMENT;
    const size_t border = planes->border, columns = planes->width + 2 * border, rows = planes->height + 2 * border;
    const auto repeat = [](int16_t *to, const int16_t *from, size_t count) {
        for (size_t i = 0; i < 2 * count; i++)
            to[i] = from[i % 2];
    };
    for (uint32_t pair = 0; pair < (planes->channels + 1) / 2; pair++) {
        int16_t *const first = planes->data + 2 * (pair * rows + border) * columns;
        for (size_t y = 0; y < planes->height; y++) {
            int16_t *const row = first + 2 * y * columns;
            repeat(row, row + 2 * border, border);
            repeat(row + 2 * (columns - border), row + 2 * (columns - border - 1), border);
        }
        int16_t *const last = first + 2 * (planes->height - size_t(1)) * columns;
        for (size_t y = 1; y <= border; y++) {
            std::copy_n(first, 2 * columns, first - 2 * y * columns);
            std::copy_n(last, 2 * columns, last + 2 * y * columns);
        }
    }
    return LINNET_OK;
}

int linnet_planes_narrow(const linnet_planes *planes, uint32_t bits, const int8_t *added, int8_t *values)
{
    if (!valid(planes) || !values || bits < 9 || bits > 15 || planes->channels % 2)
        return LINNET_ERROR_ARGUMENT;
    const size_t plane = plane_of(*planes), channels = planes->channels;
    const int shift = int(bits) - 8;
    each_row_part(*planes, [&](size_t position, const int16_t *from, uint32_t count) {
        for (size_t c = 0; c < channels; c += 2, from += plane) {
            int8_t pairs[2 * kNeighbours] = {};
            for (uint32_t i = 0; added && i < count; i++)
                std::memcpy(pairs + 2 * i, added + (position + i) * channels + c, 2);
            for (uint32_t i = 0; i < 2 * count; i++) {
                const int32_t sum = from[i] + pairs[i] * (1 << shift);
                pairs[i] = int8_t(std::clamp((sum + (1 << shift >> 1)) >> shift, -128, 127));
            }
            for (uint32_t i = 0; i < count; i++)
                std::memcpy(values + (position + i) * channels + c, pairs + 2 * i, 2);
        }
    });
    return LINNET_OK;
}

int linnet_filter_rows(const linnet_filter *filter, const linnet_planes *source, const linnet_filter *other,
                       const linnet_planes *other_source, uint32_t first, uint32_t last, const linnet_target *target)
{
    if (!valid(filter) || !valid(source) || !valid(target, filter->outputs, !filter->bits) || first > last)
        return LINNET_ERROR_ARGUMENT;
    if (!fits(filter, source, target) || last > source->height)
        return LINNET_ERROR_ARGUMENT;
    if (other) {
        if (!valid(other) || !valid(other_source) || !fits(other, other_source, target) || !filter->bits)
            return LINNET_ERROR_ARGUMENT;
        if (other->outputs != filter->outputs || other->bits != filter->bits)
            return LINNET_ERROR_ARGUMENT;
    }
    Filtering filtering(*filter, *source), second(other ? *other : *filter, other ? *other_source : *source);
    const Writer writer(*target, filter->outputs, !filter->bits);
    int64_t places[kMostPlaces];
    const uint32_t step = std::min(kFilterStrip, source->width);
    const int32_t highest = filter->bits ? (1 << (filter->bits - 1)) - 1 : 0;

    const auto compute = [&](uint32_t output, uint32_t y, uint32_t x) {
        int32_t sums[kFilterOutputs * kFilterStrip], more[kFilterOutputs * kFilterStrip];
        const uint32_t end = std::min(kFilterOutputs, filter->outputs - output);
        filtering.sum(output, y, x, step, sums);
        if (other)
            second.sum(output, y, x, step, more);
        for (uint32_t o = 0; o < end; o++) {
            int16_t integers[kFilterStrip], others[kFilterStrip];
            float floats[kFilterStrip];
            if (!filter->bits) {
                filtering.to_floats(sums + o * kFilterStrip, output + o, floats);
                writer.put(floats, output + o, x, step, places);
                continue;
            }
            filtering.to_integers(sums + o * kFilterStrip, output + o, integers);
            if (other) {
                second.to_integers(more + o * kFilterStrip, output + o, others);
                for (uint32_t i = 0; i < kFilterStrip; i++)
                    integers[i] = int16_t(std::clamp(integers[i] + others[i], -highest - 1, highest));
            }
            writer.put(integers, output + o, x, step, places);
        }
    };

    // Down parts of the rows, so that what kernels see again, and the block that is written, stay near.
    for (uint32_t left = 0; left < source->width; left += kStrips * step)
        for (uint32_t y = first; y < last; y++) {
            writer.begin_row(y, places);
            for (uint32_t x = left; x < std::min(left + kStrips * step, source->width); x += step) {
                x = std::min(x, source->width - step);  // the last one begins early enough to be whole
                if (y + 1 < last) {
                    filtering.fetch_row_after(y, x);
                    if (other)
                        second.fetch_row_after(y, x);
                }
                for (uint32_t output = 0; output < filter->outputs; output += kFilterOutputs)
                    compute(output, y, x);
            }
        }
    return LINNET_OK;
}
