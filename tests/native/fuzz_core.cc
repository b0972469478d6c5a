// Drives every function of linnet.h with random, extreme and damaged input, deterministically. Built with the
// sanitizers by tests/test_core.py: all buffers have exactly the documented size, so that one byte too far is found.
//
//     fuzz_core [rounds]        exit status 0: nothing found
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "kernels.h"

#define CHECK(condition)                                                              \
    do {                                                                              \
        if (!(condition)) {                                                           \
            std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                             \
        }                                                                             \
    } while (0)

namespace {

uint64_t seed = 0x9e3779b97f4a7c15;

uint32_t random32()
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return uint32_t((seed * 0x2545f4914f6cdd1d) >> 32);
}

// From low to high, both included.
int64_t between(int64_t low, int64_t high)
{
    return low + int64_t(random32() % uint64_t(high - low + 1));
}

// An array with nothing behind it: vectors may have capacity to spare, which would hide an overrun.
template <typename T>
struct Buffer {
    explicit Buffer(size_t count) : size(count), data(static_cast<T *>(std::malloc(count ? count * sizeof(T) : 1)))
    {
        for (size_t i = 0; i < count * sizeof(T); i++)
            reinterpret_cast<uint8_t *>(data.get())[i] = uint8_t(random32());
    }
    T &operator[](size_t i) { return data.get()[i]; }
    T *get() { return data.get(); }

    struct Free {
        void operator()(T *pointer) const { std::free(pointer); }
    };
    size_t size;
    std::unique_ptr<T, Free> data;
};

struct Tables {
    std::vector<uint16_t> radii, frequencies;
    linnet_tables *made = nullptr;

    // Those of a trellis come in pairs: the second half skips what the first half skips.
    explicit Tables(bool paired = false)
    {
        const size_t half = size_t(between(1, LINNET_MAX_TABLES / 2));
        const size_t count = paired ? 2 * half : size_t(between(1, LINNET_MAX_TABLES));
        for (size_t i = 0; i < count; i++) {
            int kind = int(between(0, 5));
            if (paired && i >= half)
                kind = radii[i - half] ? int(between(2, 5)) : 0;
            const uint32_t radius = kind < 2 ? 0 : kind == 5 ? LINNET_MAX_RADIUS : uint32_t(between(1, 20));
            radii.push_back(uint16_t(radius));
            if (!radius)
                continue;
            const size_t symbols = 2 * radius + 2, first = frequencies.size();
            uint32_t left = (1u << LINNET_FREQUENCY_BITS) - uint32_t(symbols);
            for (size_t s = 0; s < symbols; s++) {
                const uint32_t more = kind == 2 ? 0 : uint32_t(between(0, left / 2));
                frequencies.push_back(uint16_t(1 + more));
                left -= more;
            }
            frequencies[first + size_t(between(0, int64_t(symbols) - 1))] += uint16_t(left);
        }
    }
    ~Tables() { linnet_tables_destroy(made); }
    int make()
    {
        linnet_tables_destroy(made);
        return linnet_tables_create(frequencies.data(), frequencies.size(), radii.data(), uint32_t(radii.size()),
                                    &made);
    }
};

void try_crc()
{
    Buffer<uint8_t> data(size_t(between(0, 200)));
    uint32_t slow = ~0u;
    for (size_t i = 0; i < data.size; i++) {
        slow ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            slow = slow >> 1 ^ (slow & 1 ? 0x82f63b78u : 0);
    }
    CHECK(linnet::update_crc_plain(~0u, data.get(), data.size) == slow);
    CHECK(linnet::best_update_crc()(~0u, data.get(), data.size) == slow);
    const size_t split = size_t(between(0, int64_t(data.size)));
    const uint32_t first = linnet_crc32c(0, data.get(), split);
    CHECK(linnet_crc32c(first, data.get() + split, data.size - split) == ~slow);
}

void try_bad_tables()
{
    Tables tables;
    CHECK(tables.make() == LINNET_OK);
    const size_t at = size_t(between(0, int64_t(tables.radii.size()) - 1));
    switch (between(0, 4)) {
    case 0: tables.radii[at] ^= 1; break;
    case 1: tables.radii[at] = uint16_t(between(256, 65535)); break;
    case 2: tables.frequencies.push_back(1); break;
    case 3: tables.radii.resize(LINNET_MAX_TABLES + 1, 0); break;
    default:
        if (tables.frequencies.empty())
            return;
        tables.frequencies[size_t(between(0, int64_t(tables.frequencies.size()) - 1))] += uint16_t(between(1, 65535));
    }
    CHECK(tables.make() == LINNET_ERROR_TABLES && !tables.made);
}

// The steps of a stream, along a trellis of so many states, if any.
struct Steps {
    int trellis = 0;
    std::vector<size_t> ends;
};

// Decodes to the end in random pieces, or along a trellis step by step; returns the first error, or that of finish.
int decode(const Tables &tables, Buffer<uint8_t> &stream, Buffer<uint8_t> &index, Buffer<int16_t> &levels,
           const Steps &steps = {})
{
    linnet_rans_decoder decoder;
    int error = linnet_rans_decode_start(&decoder, stream.get(), stream.size);
    size_t step = 0;
    for (size_t done = 0; !error && done < index.size; step++) {
        const size_t piece = steps.trellis ? steps.ends[step] - done : size_t(between(0, int64_t(index.size - done)));
        // Of their own exact size, so that a step's neighbours are out of reach.
        Buffer<uint8_t> own(piece);
        Buffer<int16_t> found(piece);
        std::copy(index.get() + done, index.get() + done + piece, own.get());
        error = linnet_rans_decode(tables.made, &decoder, steps.trellis, own.get(), piece, found.get());
        for (size_t i = 0; !error && i < piece; i++) {
            CHECK(found[i] >= 2 * LINNET_MIN_SYMBOL && found[i] <= 2 * LINNET_MAX_SYMBOL);
            CHECK(tables.radii[own[i]] || !found[i]);
            CHECK(steps.trellis || found[i] % 2 == 0);
            levels[done + i] = found[i];
        }
        done += piece;
    }
    const int finished = linnet_rans_decode_finish(&decoder);
    CHECK(!error || finished == error);
    return finished;
}

// What is left of a stream is an error; what is changed in it is one or gives bounded levels.
void try_damage(const Tables &tables, Buffer<uint8_t> &stream, Buffer<uint8_t> &index,
                const Steps &steps = {})
{
    Buffer<int16_t> result(index.size);
    Buffer<uint8_t> cut(size_t(between(0, int64_t(stream.size) - 1)));
    std::memcpy(cut.get(), stream.get(), cut.size);
    CHECK(decode(tables, cut, index, result, steps) != LINNET_OK);
    for (int i = 0; i < 4; i++) {
        Buffer<uint8_t> damaged(stream.size);
        std::memcpy(damaged.get(), stream.get(), stream.size);
        for (int64_t flips = between(1, 3); flips; flips--)
            damaged[size_t(between(0, int64_t(stream.size) - 1))] ^= uint8_t(1u << between(0, 7));
        decode(tables, damaged, index, result, steps);
    }
    Buffer<uint8_t> noise(size_t(between(0, 300)));
    decode(tables, noise, index, result, steps);
}

void try_rans()
{
    Tables tables;
    CHECK(tables.make() == LINNET_OK);
    const size_t count = size_t(between(0, between(0, 1) ? 40 : 5000));
    Buffer<int16_t> symbols(count), result(count);
    Buffer<uint8_t> index(count);
    for (size_t i = 0; i < count; i++) {
        index[i] = uint8_t(between(0, int64_t(tables.radii.size()) - 1));
        const int64_t radius = tables.radii[index[i]], reach = between(0, 9) ? radius + 1 : LINNET_MAX_SYMBOL + 1;
        symbols[i] = int16_t(radius ? std::min<int64_t>(between(-reach, reach), LINNET_MAX_SYMBOL) : 0);
    }
    Buffer<uint8_t> out(linnet_rans_bound(count));
    size_t written = 0;
    const auto encode = [&](Buffer<uint8_t> &to) {
        return linnet_rans_encode(tables.made, symbols.get(), index.get(), count, to.get(), to.size, &written);
    };
    CHECK(encode(out) == LINNET_OK);
    const size_t needed = written;
    Buffer<uint8_t> stream(needed);
    CHECK(encode(stream) == LINNET_OK);
    CHECK(written == stream.size && !std::memcmp(stream.get(), out.get(), written));
    CHECK(decode(tables, stream, index, result) == LINNET_OK);
    for (size_t i = 0; i < count; i++)
        CHECK(result[i] == 2 * symbols[i]);

    Buffer<uint8_t> small(size_t(between(0, int64_t(needed) - 1)));
    CHECK(encode(small) == LINNET_ERROR_CAPACITY);

    try_damage(tables, stream, index);
    if (count) {
        const size_t at = size_t(between(0, int64_t(count) - 1));
        const int16_t kept = symbols[at];
        symbols[at] = int16_t(between(0, 1) ? LINNET_MAX_SYMBOL + 1 : LINNET_MIN_SYMBOL - 1);
        CHECK(encode(out) == LINNET_ERROR_SYMBOL);
        symbols[at] = kept;
        if (tables.radii.size() == LINNET_MAX_TABLES)
            return;  // every index is a table's
        index[at] = uint8_t(between(int64_t(tables.radii.size()), 255));
        CHECK(encode(out) == LINNET_ERROR_ARGUMENT);
        CHECK(decode(tables, stream, index, result) != LINNET_OK);
    }
}

// Random bits now and then: NaN, infinities and denormals among them.
void fill_residuals(Buffer<float> &residual)
{
    for (size_t i = 0; i < residual.size; i++)
        switch (between(0, 9)) {
        case 0: break;
        case 1: residual[i] = float(between(-2400, 2400)) / 4; break;
        case 2: residual[i] = 0; break;
        default: residual[i] = float(between(-3000, 3000)) / 500;
        }
}

// The worth of a bit; a random one, zero or one that outweighs everything.
float some_worth()
{
    const int64_t kind = between(0, 5);
    const float large = kind == 1 ? 30.0f : float(LINNET_MAX_BIT_WORTH);
    return kind == 0 ? 0 : kind < 3 ? large : float(between(1, 300)) / 1000;
}

// What a search gives.
struct Found {
    Buffer<int16_t> levels, symbols;
    Buffer<uint8_t> coded_with;
    size_t coded = 0;

    explicit Found(size_t count) : levels(count), symbols(count), coded_with(count) {}
};

int search(const Tables &tables, int trellis, float bit_worth, Buffer<float> &residual, Buffer<uint8_t> &index,
           Found &found)
{
    const size_t count = residual.size, size = linnet_search_size(count);
    Buffer<uint8_t> workspace(size);  // malloc aligns it well enough
    return linnet_search(tables.made, trellis, bit_worth, residual.get(), index.get(), count, workspace.get(),
                         found.levels.get(), found.symbols.get(), found.coded_with.get(), &found.coded);
}

// Steps searched, coded in one stream and decoded again.
void try_search(const linnet::Trellis &which)
{
    const int trellis = which.states > 1 ? int(which.states) : 0;
    Tables tables(trellis != 0);
    CHECK(tables.make() == LINNET_OK);
    const size_t all = tables.radii.size(), known = trellis ? all / 2 : all;
    const size_t count = size_t(between(0, between(0, 2) ? 40 : 2500));
    Steps steps = {trellis, {}};
    for (size_t end = 0; end < count;) {
        end += size_t(between(between(0, 3) ? 1 : 0, between(0, 1) ? 9 : int64_t(count)));
        steps.ends.push_back(end = std::min(end, count));
    }
    Buffer<uint8_t> index(count), coded_with(count);
    Buffer<int16_t> symbols(count), levels(count), result(count);
    for (size_t i = 0; i < count; i++)
        index[i] = uint8_t(between(0, int64_t(known) - 1));
    size_t done = 0, coded = 0;
    for (const size_t end : steps.ends) {
        const size_t piece = end - done;
        Buffer<float> residual(piece);
        Buffer<uint8_t> own(piece);
        Found found(piece);
        fill_residuals(residual);
        std::copy(index.get() + done, index.get() + end, own.get());
        CHECK(search(tables, trellis, some_worth(), residual, own, found) == LINNET_OK);
        uint32_t state[4] = {};
        size_t k = 0;
        for (size_t i = 0; i < piece; i++) {
            CHECK(own[i] == index[done + i]);
            if (!tables.radii[own[i]]) {
                CHECK(!found.levels[i]);
                continue;
            }
            const int16_t symbol = found.symbols[k];
            CHECK(std::abs(symbol) <= LINNET_MAX_SYMBOL);
            CHECK(!(residual[i] > 0 && symbol < 0) && !(residual[i] < 0 && symbol > 0));
            uint32_t &path = state[k % 4];
            CHECK(found.coded_with[k++] == (path % 2 ? own[i] + known : own[i]));
            CHECK(found.levels[i] == linnet::level_of(symbol, path));
            const uint32_t next = which.next(path, uint32_t(symbol));
            CHECK(!trellis || which.before(next, uint32_t(symbol)) == path);
            path = next;
        }
        CHECK(k == found.coded);
        std::copy(found.coded_with.get(), found.coded_with.get() + k, coded_with.get() + coded);
        std::copy(found.symbols.get(), found.symbols.get() + k, symbols.get() + coded);
        std::copy(found.levels.get(), found.levels.get() + piece, levels.get() + done);
        coded += k;
        done = end;
    }

    Buffer<uint8_t> out(linnet_rans_bound(coded));
    size_t written = 0;
    CHECK(!linnet_rans_encode(tables.made, symbols.get(), coded_with.get(), coded, out.get(), out.size, &written));
    Buffer<uint8_t> stream(written);
    std::memcpy(stream.get(), out.get(), written);
    CHECK(decode(tables, stream, index, result, steps) == LINNET_OK);
    CHECK(!count || !std::memcmp(result.get(), levels.get(), count * sizeof(int16_t)));
    try_damage(tables, stream, index, steps);
    if (!count)
        return;

    Buffer<float> residual(count);
    Found found(count);
    for (const float bad : {-0.1f, -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
        CHECK(search(tables, trellis, bad, residual, index, found) == LINNET_ERROR_ARGUMENT);
    const size_t at = size_t(between(0, int64_t(count) - 1));
    if (known < LINNET_MAX_TABLES) {
        index[at] = uint8_t(between(int64_t(known), 255));
        CHECK(search(tables, trellis, 0.1f, residual, index, found) == LINNET_ERROR_ARGUMENT);
        CHECK(decode(tables, stream, index, result, steps) != LINNET_OK);
    }
}

// Tables that are no pairs serve without a trellis only.
void try_unpaired_tables()
{
    Tables tables(true);
    const size_t half = tables.radii.size() / 2;
    const size_t at = size_t(between(0, int64_t(half) - 1));
    if (half > 1 && between(0, 1)) {
        // One table less: an odd number.
        const size_t last = tables.radii.back();
        tables.radii.pop_back();
        tables.frequencies.resize(tables.frequencies.size() - (last ? 2 * last + 2 : 0));
    } else {
        size_t before = 0;
        for (size_t i = 0; i < at; i++)
            before += tables.radii[i] ? 2u * tables.radii[i] + 2 : 0;
        const auto first = tables.frequencies.begin() + ptrdiff_t(before);
        if (tables.radii[at]) {
            tables.frequencies.erase(first, first + 2 * tables.radii[at] + 2);
            tables.radii[at] = 0;
        } else {
            tables.frequencies.insert(first, 4, uint16_t((1 << LINNET_FREQUENCY_BITS) / 4));
            tables.radii[at] = 1;
        }
    }
    CHECK(tables.make() == LINNET_OK);
    const size_t count = size_t(between(0, 5));
    Buffer<float> residual(count);
    Buffer<uint8_t> index(count), stream(16);
    Buffer<int16_t> levels(count);
    for (size_t i = 0; i < count; i++)
        index[i] = uint8_t(between(0, int64_t(half) - 1));
    for (size_t i = 0; i < 16; i++)
        stream[i] = i % 4 == 2;
    Found found(count);
    CHECK(search(tables, 8, 0.1f, residual, index, found) == LINNET_ERROR_ARGUMENT);
    CHECK(search(tables, 0, 0.1f, residual, index, found) == LINNET_OK);
    linnet_rans_decoder decoder;
    CHECK(linnet_rans_decode_start(&decoder, stream.get(), stream.size) == LINNET_OK);
    CHECK(linnet_rans_decode(tables.made, &decoder, 64, index.get(), count, levels.get()) == LINNET_ERROR_ARGUMENT);
}

void try_step()
{
    linnet_step step = {};
    step.height = uint32_t(between(1, 9));
    step.width = uint32_t(between(1, 9));
    step.channels = uint32_t(between(1, 40));
    step.first = uint32_t(between(0, step.channels - 1));
    step.last = uint32_t(between(step.first + 1, step.channels));
    step.parity = int32_t(between(-1, 1));
    step.tables = uint32_t(between(1, LINNET_MAX_TABLES));
    const size_t n = step.last - step.first, positions = size_t(step.height) * step.width;
    const size_t size = positions * step.channels;
    Buffer<int16_t> gain(n), offset(n);
    Buffer<uint8_t> mean_shift(n);
    Buffer<int8_t> companding(256), params(positions * 2 * n), decoded(2 * size), companded(size);
    Buffer<float> latent(size);  // random bits: NaN, infinities and denormals among them
    for (size_t c = 0; c < n; c++)
        mean_shift[c] = uint8_t(between(0, 2));
    for (size_t c = 0; c < n; c++)
        gain[c] = int16_t(between(0, 3) ? between(64, 800) : between(64, 32767));
    for (size_t i = 0; i < size; i++)
        if (between(0, 3))
            latent[i] = float(between(-1000, 1000)) / 500;
    step.gain = gain.get();
    step.mean_shift = mean_shift.get();
    step.table_offset = offset.get();
    step.companding = companding.get();

    size_t coded = 0;
    for (uint32_t row = 0; row < step.height; row++)
        for (uint32_t column = 0; column < step.width; column++)
            coded += step.parity < 0 || int32_t((row + column) % 2) == step.parity ? n : 0;
    Buffer<int16_t> levels(coded);
    Buffer<uint8_t> index(coded), index2(coded);
    Buffer<float> residual(coded);
    std::vector<int8_t> decoded_before(decoded.get(), decoded.get() + 2 * size);
    std::vector<int8_t> companded_before(companded.get(), companded.get() + size);
    size_t count = 0;
    const auto residuals = [&] {
        return linnet_step_residuals(&step, latent.get(), params.get(), residual.get(), index.get(), &count);
    };
    CHECK(residuals() == LINNET_OK && count == coded);
    CHECK(linnet_step_tables(&step, params.get(), index2.get(), &count) == LINNET_OK && count == coded);
    CHECK(!coded || !std::memcmp(index.get(), index2.get(), coded));
    const auto dequantize = [&] {
        return linnet_step_dequantize(&step, params.get(), levels.get(), decoded.get(), companded.get());
    };
    CHECK(dequantize() == LINNET_OK);  // random levels
    size_t k = 0;
    for (uint32_t row = 0; row < step.height; row++)
        for (uint32_t column = 0; column < step.width; column++)
            for (uint32_t c = 0; c < step.channels; c++) {
                const size_t at = size_t(row) * step.width + column, whole = at * 2 * step.channels + c;
                const size_t quarters = whole + step.channels, seen = at * step.channels + c;
                const bool here = step.parity < 0 || int32_t((row + column) % 2) == step.parity;
                if (!here || c < step.first || c >= step.last) {
                    CHECK(decoded[whole] == decoded_before[whole] && decoded[quarters] == decoded_before[quarters]);
                    CHECK(companded[seen] == companded_before[seen]);
                    continue;
                }
                const size_t own = c - step.first;
                const float mean = float(params[at * 2 * n + own] * (1 << mean_shift[own]));
                const float expected = (512 * latent[seen] - mean) * 64 / gain[own];
                CHECK(residual[k] == expected || (residual[k] != residual[k] && expected != expected));
                CHECK(index[k] < step.tables && companded[seen] == companding[size_t(decoded[whole] + 128)]);
                const int64_t offset = int64_t(levels[k]) * gain[own] + 64;
                const int64_t v = int64_t(mean) + (offset >= 0 ? offset / 128 : -((127 - offset) / 128));
                CHECK(4 * decoded[whole] + decoded[quarters] == std::clamp<int64_t>(v, -512, 509));
                k++;
            }
    CHECK(k == coded);
    CHECK(!linnet_compand(latent.get(), size, companding.get(), companded.get()));

    switch (between(0, 7)) {
    case 0: step.height = step.width = step.channels = 0xffffffff; break;
    case 1: step.first = step.last; break;
    case 2: step.channels = step.last - 1; break;
    case 3: step.parity = 2; break;
    case 4: step.tables = uint32_t(between(0, 1)) * (LINNET_MAX_TABLES + 1); break;
    case 5: gain[n - 1] = 63; break;
    case 6: mean_shift[n - 1] = 3; break;
    default: step.width = 0;
    }
    CHECK(residuals() == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_step_tables(&step, params.get(), index.get(), &count) == LINNET_ERROR_ARGUMENT);
    CHECK(dequantize() == LINNET_ERROR_ARGUMENT);
}

void try_blocks()
{
    const size_t blocks = size_t(between(0, 40));
    Buffer<uint8_t> top(6 * blocks), bottom(6 * blocks), top2(6 * blocks), bottom2(6 * blocks);
    Buffer<int8_t> planes(12 * blocks), planes2(12 * blocks);
    linnet::blocks_to_planes_plain(top.get(), bottom.get(), blocks, planes.get());
    linnet::best_blocks_to_planes()(top.get(), bottom.get(), blocks, planes2.get());
    CHECK(!std::memcmp(planes.get(), planes2.get(), 12 * blocks));
    linnet::best_planes_to_blocks()(planes.get(), blocks, top2.get(), bottom2.get());
    CHECK(!std::memcmp(top.get(), top2.get(), 6 * blocks) && !std::memcmp(bottom.get(), bottom2.get(), 6 * blocks));
    linnet::planes_to_blocks_plain(planes.get(), blocks, top2.get(), bottom2.get());
    CHECK(!std::memcmp(top.get(), top2.get(), 6 * blocks) && !std::memcmp(bottom.get(), bottom2.get(), 6 * blocks));
}

void try_companding()
{
    Buffer<int8_t> table(256), values(size_t(between(0, 300))), found(values.size), found2(values.size);
    linnet::compand_plain(table.get(), values.get(), values.size, found.get());
    linnet::best_compand()(table.get(), values.get(), values.size, found2.get());
    CHECK(!std::memcmp(found.get(), found2.get(), values.size));
}

void try_strips()
{
    linnet::FilterPart part = {};
    part.pairs = uint32_t(between(1, 3));
    part.size = uint32_t(2 * between(0, 2) + 1);
    const uint32_t count = between(0, 1) ? linnet::kFilterStrip : uint32_t(between(1, linnet::kFilterStrip));
    part.row = count + part.size - 1 + size_t(between(0, 3));
    part.plane = part.row * part.size + size_t(between(0, 3));
    Buffer<int16_t> weight(6 * part.pairs * part.size * part.size);
    Buffer<int16_t> source(2 * ((part.pairs - 1) * part.plane + (part.size - 1) * part.row + count + part.size - 1));
    if (!between(0, 3)) {  // the largest sum of two products
        std::fill_n(weight.get(), weight.size, INT16_MIN);
        std::fill_n(source.get(), source.size, INT16_MIN);
    }
    part.weight = weight.get();
    int32_t sums[3 * linnet::kFilterStrip], sums2[3 * linnet::kFilterStrip];
    linnet::filter_strip_plain(part, source.get(), count, sums);
    linnet::best_filter_strip()(part, source.get(), count, sums2);
    for (uint32_t o = 0; o < 3; o++)
        CHECK(!std::memcmp(sums + o * linnet::kFilterStrip, sums2 + o * linnet::kFilterStrip, count * sizeof *sums));
}

// One result, by the definition.
int64_t filtered(const linnet_filter &filter, const linnet_planes &source, uint32_t y, uint32_t x, uint32_t output)
{
    const uint32_t pairs = (filter.inputs + 1) / 2, size = filter.size, edge = source.border - size / 2;
    const size_t columns = source.width + 2 * source.border, rows = source.height + 2 * source.border;
    uint32_t sum = uint32_t(filter.bias[output]);
    for (uint32_t c = 0; c < 2 * pairs; c++)
        for (uint32_t i = 0; i < size * size; i++) {
            const size_t row = c / 2 * rows + edge + y + i / size, column = edge + x + i % size;
            const size_t weight = (size_t(output / 3) * pairs + c / 2) * size * size + i;
            sum += uint32_t(filter.weight[6 * weight + output % 3 * 2 + c % 2]) *
                   uint32_t(source.data[2 * (row * columns + column) + c % 2]);
        }
    return int32_t(sum);
}

void try_filter()
{
    linnet_filter filter = {};
    filter.inputs = uint32_t(between(1, 5));
    filter.outputs = uint32_t(between(1, 7));
    filter.size = uint32_t(2 * between(0, 2) + 1);
    filter.bits = between(0, 1) ? uint32_t(between(2, 16)) : 0;
    linnet_target target = {};
    const bool grows = filter.bits && between(0, 2) == 0;
    target.block = grows ? 1 : uint32_t(between(1, 4));
    target.grow = grows ? uint32_t(between(2, 3)) : 1;
    linnet_planes source = {};
    source.height = uint32_t(between(1, 5)) * target.block;
    source.width = uint32_t(between(1, 20)) * target.block;
    source.channels = filter.inputs;
    source.border = filter.size / 2 + uint32_t(between(0, 2));
    target.height = source.height * target.grow / target.block;
    target.width = source.width * target.grow / target.block;
    target.channels = filter.outputs * target.block * target.block + uint32_t(between(0, 2));
    target.border = filter.bits ? uint32_t(between(0, 2)) : 0;
    const bool adds = filter.bits && between(0, 1);
    linnet_filter other = filter;
    linnet_planes other_source = source;
    if (adds) {
        other.inputs = other_source.channels = uint32_t(between(1, 3));
        other.size = uint32_t(2 * between(0, 1) + 1);
        other_source.border = other.size / 2;
    }

    const size_t pairs = (filter.inputs + 1) / 2, groups = (filter.outputs + 2) / 3;
    const size_t around = (source.height + 2 * source.border) * size_t(source.width + 2 * source.border);
    const size_t target_around = (target.height + 2 * target.border) * size_t(target.width + 2 * target.border);
    const size_t count = target_around * 2 * ((target.channels + 1) / 2);
    Buffer<int16_t> planes(2 * pairs * around), weight(groups * pairs * filter.size * filter.size * 6), integers(count);
    const size_t other_pairs = (other.inputs + 1) / 2;
    const size_t other_around = (source.height + 2 * other_source.border) * size_t(source.width + 2 * other_source.border);
    Buffer<int16_t> other_planes(2 * other_pairs * other_around);
    Buffer<int16_t> other_weight(groups * other_pairs * other.size * other.size * 6);
    Buffer<float> floats(size_t(target.height) * target.width * target.channels);
    Buffer<int32_t> bias(filter.outputs), channel(target.block * target.block * filter.outputs);
    Buffer<uint8_t> shift(filter.outputs);
    for (size_t i = 0; i < shift.size; i++)
        shift[i] = uint8_t(filter.bits ? between(2, 31) : between(0, 63));
    std::vector<int32_t> order(target.channels * target.grow * target.grow);
    for (size_t i = 0; i < order.size(); i++) {
        order[i] = int32_t(i);
        std::swap(order[i], order[size_t(between(0, int64_t(i)))]);
    }
    for (size_t i = 0; i < channel.size; i++)
        channel[i] = between(0, 4) ? order[i] : -1;
    source.data = planes.get();
    filter.weight = weight.get();
    filter.bias = bias.get();
    filter.shift = shift.get();
    target.data = filter.bits ? static_cast<void *>(integers.get()) : floats.get();
    target.channel = channel.get();
    other.weight = other_weight.get();
    other.bias = bias.get();
    other.shift = shift.get();
    other_source.data = other_planes.get();
    const auto run = [&](uint32_t from, uint32_t to) {
        return linnet_filter_rows(&filter, &source, adds ? &other : nullptr, adds ? &other_source : nullptr, from, to,
                                  &target);
    };

    const std::vector<int16_t> before(integers.get(), integers.get() + integers.size);
    const uint32_t first = uint32_t(between(0, source.height)), last = uint32_t(between(first, source.height));
    CHECK(run(first, last) == LINNET_OK);
    size_t changed = 0;
    for (size_t i = 0; i < integers.size; i++)
        changed += integers[i] != before[i];
    for (uint32_t y = first; y < last; y++)
        for (uint32_t x = 0; x < source.width; x++)
            for (uint32_t o = 0; o < filter.outputs; o++) {
                const uint32_t b = target.block;
                const int32_t c = channel[(y % b * b + x % b) * filter.outputs + o];
                if (c < 0)
                    continue;
                const int64_t sum = filtered(filter, source, y, x, o);
                if (!filter.bits) {
                    const float unit = 1 / float(uint64_t(1) << shift[o]);
                    CHECK(floats[(size_t(y / b) * target.width + x / b) * target.channels + size_t(c)] == float(sum) * unit);
                    continue;
                }
                const int64_t most = (int64_t(1) << (filter.bits - 1)) - 1, half = int64_t(1) << (shift[o] - 1);
                int64_t expected = std::clamp((sum + half) >> shift[o], -most - 1, most);
                if (adds) {
                    const int64_t more = (filtered(other, other_source, y, x, o) + half) >> shift[o];
                    expected = std::clamp(expected + std::clamp(more, -most - 1, most), -most - 1, most);
                }
                const uint32_t g = target.grow, at = uint32_t(c) / (g * g), phase = uint32_t(c) % (g * g);
                const size_t to_y = y / b * g + phase / g, to_x = x / b * g + phase % g;
                const size_t row = at / 2 * (target.height + 2 * target.border) + target.border + to_y;
                const size_t place = row * (target.width + 2 * target.border) + target.border + to_x;
                CHECK(integers[2 * place + at % 2] == expected);
                changed -= before[2 * place + at % 2] != expected;
            }
    CHECK(!changed);  // nothing else was written

    switch (between(0, adds ? 17 : 14)) {
    case 0: filter.size++; break;
    case 1: filter.inputs++; break;
    case 2: filter.outputs = between(0, 1) ? 0 : LINNET_MAX_TARGETS + 1; break;
    case 3: filter.bits = between(0, 1) ? 1 : 17; break;
    case 4: shift[0] = 64; break;
    case 5: channel[0] = int32_t(order.size()); break;
    case 6: channel[0] = -2; break;
    case 7: target.block = between(0, 1) ? 0 : 0xffffffff; break;
    case 8: target.height = between(0, 1) ? 0 : 0xffffffff; break;
    case 9: target.data = nullptr; break;
    case 10: source.border = filter.size / 2 - 1; break;  // or 2^32 - 1
    case 11: source.width = between(0, 1) ? source.width + 1 : 0x80000000; break;
    case 12: source.channels = 0; break;
    case 13: target.grow = between(0, 1) ? 0 : 65; break;
    case 14: filter.weight = nullptr; break;
    case 15: other.outputs--; break;
    case 16: other.bits = filter.bits == 9 ? 10 : 9; break;
    default: other_source.height++;
    }
    CHECK(run(0, source.height) == LINNET_ERROR_ARGUMENT);
    CHECK(run(1, 0) == LINNET_ERROR_ARGUMENT);
    CHECK(run(0, source.height + 1) == LINNET_ERROR_ARGUMENT);
}

void try_planes()
{
    const uint32_t block = uint32_t(between(1, 4));
    linnet_planes planes = {};
    planes.height = uint32_t(between(1, 5)) * block;
    planes.width = uint32_t(between(1, 40)) * block;
    planes.channels = uint32_t(between(1, 6));
    planes.border = uint32_t(between(0, 3));
    const size_t columns = planes.width + 2 * planes.border, around = (planes.height + 2 * planes.border) * columns;
    const size_t positions = size_t(planes.height) * planes.width, channels = planes.channels;
    Buffer<int16_t> data(2 * ((channels + 1) / 2) * around);
    Buffer<int8_t> values(positions * channels), added(positions * channels), narrow(positions * channels);
    planes.data = data.get();
    const auto place = [&](size_t channel, size_t row, size_t column) -> int16_t & {
        return data[2 * (channel / 2 * around + row * columns + column) + channel % 2];
    };
    const auto inside = [&](size_t i) -> int16_t & {
        const size_t at = i / channels;
        return place(i % channels, planes.border + at / planes.width, planes.border + at % planes.width);
    };
    const int even = channels % 2 ? LINNET_ERROR_ARGUMENT : LINNET_OK;
    CHECK(linnet_planes_fill(&planes, values.get()) == even);
    for (size_t i = 0; !even && i < values.size; i++)
        CHECK(inside(i) == values[i]);

    const uint32_t value_channels = uint32_t(between(1, 30)), shift = uint32_t(between(0, 7));
    Buffer<int8_t> joined(positions / block / block * value_channels);
    Buffer<int32_t> whole(block * block * channels), part(block * block * channels);
    for (size_t i = 0; i < whole.size; i++) {
        whole[i] = int32_t(between(0, value_channels - 1));
        part[i] = int32_t(between(0, value_channels - 1));
    }
    const auto join = [&] {
        return linnet_planes_join(&planes, joined.get(), value_channels, block, whole.get(), part.get(), shift);
    };
    CHECK(join() == LINNET_OK);
    for (size_t i = 0; i < positions * channels; i++) {
        const size_t y = i / channels / planes.width, x = i / channels % planes.width;
        const size_t entry = (y % block * block + x % block) * channels + i % channels;
        const int8_t *from = joined.get() + (y / block * (planes.width / block) + x / block) * value_channels;
        CHECK(inside(i) == from[whole[entry]] * (1 << shift) + from[part[entry]]);
    }

    CHECK(linnet_planes_edge(&planes) == LINNET_OK);
    const auto held = [](int64_t at, int64_t border, int64_t length) {
        return size_t(border + std::clamp<int64_t>(at - border, 0, length - 1));
    };
    for (size_t c = 0; c < channels; c++)
        for (size_t y = 0; y < around / columns; y++)
            for (size_t x = 0; x < columns; x++)
                CHECK(place(c, y, x) == place(c, held(int64_t(y), planes.border, planes.height),
                                              held(int64_t(x), planes.border, planes.width)));

    const uint32_t bits = uint32_t(between(9, 15));
    for (size_t i = 0; i < data.size; i++)
        data[i] = int16_t(random32());
    for (const int8_t *more : {static_cast<const int8_t *>(nullptr), static_cast<const int8_t *>(added.get())}) {
        CHECK(linnet_planes_narrow(&planes, bits, more, narrow.get()) == even);
        for (size_t i = 0; !even && i < narrow.size; i++) {
            const int32_t sum = inside(i) + (more ? more[i] * (1 << (bits - 8)) : 0);
            CHECK(narrow[i] == std::clamp((sum + (1 << (bits - 9))) >> (bits - 8), -128, 127));
        }
    }
    CHECK(linnet_planes_narrow(&planes, between(0, 1) ? 8 : 16, nullptr, narrow.get()) == LINNET_ERROR_ARGUMENT);

    switch (between(0, 4)) {
    case 0: whole[whole.size - 1] = int32_t(value_channels); break;
    case 1: part[0] = -1; break;
    case 2: planes.width = block > 1 ? planes.width + 1 : 0; break;
    case 3: planes.height = planes.width = 0xffffffff; break;
    default: planes.data = nullptr;
    }
    CHECK(join() == LINNET_ERROR_ARGUMENT);
    planes.channels = 0;
    CHECK(linnet_planes_edge(&planes) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_fill(&planes, values.get()) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_narrow(&planes, 12, nullptr, narrow.get()) == LINNET_ERROR_ARGUMENT);
}

// Walks: outside a frame 16 pixels mirror those inside, then the last of them repeats.
int64_t mirrored(int64_t place, int64_t length)
{
    const bool after = place >= length;
    if (!after && place >= 0)
        return place;
    const int64_t outside = after ? place - length : -1 - place;
    int64_t inside = 0;
    while (inside < outside && inside < 15 && inside < length - 1)
        inside++;
    return after ? length - 1 - inside : inside;
}

void try_pixels()
{
    const uint32_t width = uint32_t(between(1, 30)), height = uint32_t(between(1, 30));
    const size_t stride = 3 * width + size_t(between(0, 5));
    Buffer<uint8_t> image(stride * (height - 1) + 3 * width);
    const uint32_t region_w = uint32_t(2 * between(1, 15)), region_h = uint32_t(2 * between(1, 15));
    const int64_t far = between(0, 7) ? 40 : int64_t(1) << 40;
    const int64_t x0 = far > 40 ? (between(0, 1) ? far : -far) : between(-far, far), y0 = between(-40, 40);
    Buffer<int8_t> planes(size_t(region_w) * region_h * 3);
    CHECK(!linnet_pixels_to_planes(image.get(), width, height, stride, x0, y0, region_w, region_h, planes.get()));

    const uint32_t crop_x = uint32_t(between(0, region_w - 1)), crop_y = uint32_t(between(0, region_h - 1));
    const uint32_t crop_w = uint32_t(between(1, region_w - crop_x)), crop_h = uint32_t(between(1, region_h - crop_y));
    const size_t out_stride = 3 * crop_w + size_t(between(0, 5));
    Buffer<uint8_t> out(out_stride * (crop_h - 1) + 3 * crop_w);
    std::vector<uint8_t> before(out.get(), out.get() + out.size);
    CHECK(!linnet_planes_to_pixels(planes.get(), region_w / 2, region_h / 2, crop_x, crop_y, crop_w, crop_h, out.get(),
                                   out_stride));
    for (size_t i = 0; i < out.size; i++) {
        const size_t column = i % out_stride;
        if (column >= 3 * crop_w) {
            CHECK(out[i] == before[i]);
            continue;
        }
        const int64_t x = mirrored(x0 + crop_x + int64_t(column / 3), width);
        const int64_t y = mirrored(y0 + crop_y + int64_t(i / out_stride), height);
        CHECK(out[i] == image[size_t(y) * stride + size_t(3 * x) + column % 3]);
    }
    const auto planes_of = [&](size_t row_stride, int64_t x, int64_t y, uint32_t w, uint32_t h) {
        return linnet_pixels_to_planes(image.get(), width, height, row_stride, x, y, w, h, planes.get());
    };
    CHECK(planes_of(3 * width - 1, 0, 0, 2, 2) == LINNET_ERROR_ARGUMENT);
    CHECK(planes_of(stride, INT64_MIN, 0, 2, 2) == LINNET_ERROR_ARGUMENT);
    CHECK(planes_of(stride, 0, INT64_MAX, 2, 2) == LINNET_ERROR_ARGUMENT);
    CHECK(planes_of(stride, 0, 0, 3, 2) == LINNET_ERROR_ARGUMENT);
    CHECK(planes_of(stride, 0, 0, 2, 0) == LINNET_ERROR_ARGUMENT);
    const auto pixels_of = [&](uint32_t x, uint32_t y, uint32_t w, uint32_t h, size_t row_stride) {
        return linnet_planes_to_pixels(planes.get(), region_w / 2, region_h / 2, x, y, w, h, out.get(), row_stride);
    };
    CHECK(pixels_of(0, 0, region_w + 1, 1, SIZE_MAX) == LINNET_ERROR_ARGUMENT);
    CHECK(pixels_of(0xffffffff, 0, 2, 1, SIZE_MAX) == LINNET_ERROR_ARGUMENT);
    CHECK(pixels_of(0, region_h, 1, 1, SIZE_MAX) == LINNET_ERROR_ARGUMENT);
    CHECK(pixels_of(0, 0, 0, 1, SIZE_MAX) == LINNET_ERROR_ARGUMENT);
    CHECK(pixels_of(0, 0, 1, 1, 2) == LINNET_ERROR_ARGUMENT);
}

void try_null_beside_good_arguments()
{
    Tables tables(true);
    CHECK(tables.make() == LINNET_OK);
    const auto search_without = [&](int missing, size_t count) {
        Buffer<float> residual(count);
        Buffer<uint8_t> index(count), workspace(linnet_search_size(count)), coded_with(count);
        Buffer<int16_t> symbols(count), levels(count);
        size_t coded;
        std::fill(index.get(), index.get() + count, uint8_t(0));
        const linnet_tables *made = missing == 0 ? nullptr : tables.made;
        return linnet_search(made, 64, 0.1f, missing == 1 ? nullptr : residual.get(),
                             missing == 2 ? nullptr : index.get(), count, missing == 3 ? nullptr : workspace.get(),
                             missing == 4 ? nullptr : levels.get(), missing == 5 ? nullptr : symbols.get(),
                             missing == 6 ? nullptr : coded_with.get(), missing == 7 ? nullptr : &coded);
    };
    for (int missing = 0; missing < 9; missing++) {
        CHECK(search_without(missing, 3) == (missing < 8 ? LINNET_ERROR_ARGUMENT : LINNET_OK));
        CHECK(search_without(missing, 0) == (missing && missing != 7 ? LINNET_OK : LINNET_ERROR_ARGUMENT));
    }
    size_t coded;
    const auto search_nothing = [&](int trellis) {
        return linnet_search(tables.made, trellis, 0.1f, nullptr, nullptr, 0, nullptr, nullptr, nullptr, nullptr, &coded);
    };
    for (const int trellis : {-64, -1, 1, 2, 7, 16, 65, 128})
        CHECK(search_nothing(trellis) == LINNET_ERROR_ARGUMENT);

    Buffer<uint8_t> stream(16), index(1);
    Buffer<int16_t> levels(1);
    for (size_t i = 0; i < 16; i++)
        stream[i] = i % 4 == 2;
    index[0] = 0;
    linnet_rans_decoder decoder;
    CHECK(linnet_rans_decode_start(&decoder, stream.get(), stream.size) == LINNET_OK);
    for (const int trellis : {0, 8, 64}) {
        CHECK(search_nothing(trellis) == LINNET_OK && !coded);
        CHECK(linnet_rans_decode(nullptr, &decoder, trellis, nullptr, 0, nullptr) == LINNET_ERROR_ARGUMENT);
        CHECK(linnet_rans_decode(tables.made, nullptr, trellis, nullptr, 0, nullptr) == LINNET_ERROR_ARGUMENT);
        CHECK(linnet_rans_decode(tables.made, &decoder, trellis, nullptr, 1, levels.get()) == LINNET_ERROR_ARGUMENT);
        CHECK(linnet_rans_decode(tables.made, &decoder, trellis, index.get(), 1, nullptr) == LINNET_ERROR_ARGUMENT);
        CHECK(linnet_rans_decode(tables.made, &decoder, trellis, nullptr, 0, nullptr) == LINNET_OK);
    }
    for (const int trellis : {-8, 1, 16, 65})
        CHECK(linnet_rans_decode(tables.made, &decoder, trellis, nullptr, 0, nullptr) == LINNET_ERROR_ARGUMENT);

    int16_t gain = 64, offset = 0;
    uint8_t mean_shift = 0;
    Buffer<int8_t> companding(256), params(2);
    float latent = 0, residual = 0;
    size_t count = 0;
    const linnet_step step = {1, 1, 1, 0, 1, -1, &gain, &mean_shift, &offset, companding.get(), 1};
    const auto residuals_without = [&](int missing) {
        return linnet_step_residuals(missing == 0 ? nullptr : &step, missing == 1 ? nullptr : &latent,
                                     missing == 2 ? nullptr : params.get(), missing == 3 ? nullptr : &residual,
                                     missing == 4 ? nullptr : index.get(), missing == 5 ? nullptr : &count);
    };
    for (int missing = 0; missing < 7; missing++)
        CHECK(residuals_without(missing) == (missing < 6 ? LINNET_ERROR_ARGUMENT : LINNET_OK));
    CHECK(count == 1);
}

void try_null()
{
    linnet_rans_decoder decoder;
    size_t count;
    CHECK(linnet_tables_create(nullptr, 0, nullptr, 1, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_encode(nullptr, nullptr, nullptr, 0, nullptr, 0, &count) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_decode_start(nullptr, nullptr, 0) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_decode_start(&decoder, nullptr, 1) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_decode_start(&decoder, nullptr, 0) == LINNET_ERROR_TRUNCATED);
    CHECK(linnet_rans_decode_finish(nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_step_residuals(nullptr, nullptr, nullptr, nullptr, nullptr, &count) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_step_tables(nullptr, nullptr, nullptr, &count) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_step_dequantize(nullptr, nullptr, nullptr, nullptr, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_pixels_to_planes(nullptr, 1, 1, 3, 0, 0, 2, 2, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_to_pixels(nullptr, 1, 1, 0, 0, 1, 1, nullptr, 3) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_fill(nullptr, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_join(nullptr, nullptr, 1, 1, nullptr, nullptr, 0) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_edge(nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_narrow(nullptr, 12, nullptr, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_filter_rows(nullptr, nullptr, nullptr, nullptr, 0, 0, nullptr) == LINNET_ERROR_ARGUMENT);
    linnet_tables_destroy(nullptr);
    try_null_beside_good_arguments();
    CHECK(linnet_search_size(0) <= 4 && linnet_search_size(SIZE_MAX) == SIZE_MAX);
    CHECK(linnet_search_size(SIZE_MAX / 2) == SIZE_MAX && linnet_search_size(1000) < 1000 * 100);
    CHECK(linnet_rans_bound(SIZE_MAX) == SIZE_MAX && linnet_rans_bound(0) == 16);
    CHECK(linnet_crc32c(7, nullptr, 0) == 7 && linnet_api_version() == LINNET_API_VERSION);
    for (int error = -20; error < 3; error++)
        CHECK(linnet_strerror(error) && *linnet_strerror(error));
}

}  // namespace

int main(int argc, char **argv)
{
    try_null();
    for (long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 300; rounds > 0; rounds--) {
        try_crc();
        try_bad_tables();
        try_rans();
        const linnet::Trellis trellises[] = {linnet::kNoTrellis, linnet::kSmallTrellis, linnet::kTrellis};
        try_search(trellises[rounds % 3]);
        try_unpaired_tables();
        try_step();
        try_blocks();
        try_companding();
        try_strips();
        try_filter();
        try_planes();
        try_pixels();
    }
    return 0;
}
