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

    Tables()
    {
        const size_t count = size_t(between(1, LINNET_MAX_TABLES));
        for (size_t i = 0; i < count; i++) {
            const int kind = int(between(0, 5));
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

// Decodes to the end in random pieces; returns the first error, or that of finish.
int decode(const Tables &tables, Buffer<uint8_t> &stream, Buffer<uint8_t> &index, Buffer<int16_t> &symbols)
{
    linnet_rans_decoder decoder;
    int error = linnet_rans_decode_start(&decoder, stream.get(), stream.size);
    for (size_t done = 0; !error && done < index.size;) {
        const size_t piece = size_t(between(0, int64_t(index.size - done)));
        error = linnet_rans_decode(tables.made, &decoder, index.get() + done, piece, symbols.get() + done);
        for (size_t i = 0; !error && i < piece; i++)
            CHECK(symbols[done + i] >= LINNET_MIN_SYMBOL && symbols[done + i] <= LINNET_MAX_SYMBOL);
        done += piece;
    }
    const int finished = linnet_rans_decode_finish(&decoder);
    CHECK(!error || finished == error);
    return finished;
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
    CHECK(!count || !std::memcmp(result.get(), symbols.get(), count * sizeof(int16_t)));

    Buffer<uint8_t> small(size_t(between(0, int64_t(needed) - 1)));
    CHECK(encode(small) == LINNET_ERROR_CAPACITY);

    Buffer<uint8_t> cut(size_t(between(0, int64_t(needed) - 1)));
    std::memcpy(cut.get(), stream.get(), cut.size);
    CHECK(decode(tables, cut, index, result) != LINNET_OK);
    for (int i = 0; i < 4; i++) {
        Buffer<uint8_t> damaged(needed);
        std::memcpy(damaged.get(), stream.get(), needed);
        for (int64_t flips = between(1, 3); flips; flips--)
            damaged[size_t(between(0, int64_t(needed) - 1))] ^= uint8_t(1u << between(0, 7));
        decode(tables, damaged, index, result);
    }
    Buffer<uint8_t> noise(size_t(between(0, 300)));
    decode(tables, noise, index, result);
    if (count) {
        const size_t at = size_t(between(0, int64_t(count) - 1));
        const int16_t kept = symbols[at];
        symbols[at] = int16_t(between(0, 1) ? LINNET_MAX_SYMBOL + 1 : LINNET_MIN_SYMBOL - 1);
        CHECK(encode(out) == LINNET_ERROR_SYMBOL);
        symbols[at] = kept;
        index[at] = uint8_t(between(int64_t(tables.radii.size()), 255));
        CHECK(encode(out) == LINNET_ERROR_ARGUMENT);
        CHECK(decode(tables, stream, index, result) != LINNET_OK);
    }
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
    Buffer<float> rounding(2 * step.tables);
    Buffer<float> latent(size);  // random bits: NaN, infinities and denormals among them
    for (size_t c = 0; c < n; c++)
        mean_shift[c] = uint8_t(between(0, 2));
    for (size_t c = 0; c < n; c++)
        gain[c] = int16_t(between(0, 3) ? between(64, 800) : between(64, 32767));
    for (size_t i = 0; i < step.tables; i++)
        if (between(0, 1))
            rounding[2 * i] = rounding[2 * i + 1] = -std::numeric_limits<float>::infinity();
        else
            rounding[2 * i] = 0.3f, rounding[2 * i + 1] = 0.5f;
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
    Buffer<int16_t> symbols(coded);
    Buffer<uint8_t> index(coded), index2(coded);
    Buffer<int8_t> decoded2(2 * size), companded2(size);
    std::memcpy(decoded2.get(), decoded.get(), 2 * size);
    std::memcpy(companded2.get(), companded.get(), size);
    size_t count = 0;
    const auto quantize = [&] {
        return linnet_step_quantize(&step, latent.get(), params.get(), rounding.get(), decoded.get(), companded.get(),
                                    symbols.get(), index.get(), &count);
    };
    CHECK(quantize() == LINNET_OK && count == coded);
    CHECK(linnet_step_tables(&step, params.get(), index2.get(), &count) == LINNET_OK && count == coded);
    CHECK(!coded || !std::memcmp(index.get(), index2.get(), coded));
    CHECK(!linnet_step_dequantize(&step, params.get(), symbols.get(), decoded2.get(), companded2.get()));
    CHECK(!std::memcmp(decoded.get(), decoded2.get(), 2 * size) && !std::memcmp(companded.get(), companded2.get(), size));
    for (size_t i = 0; i < coded; i++) {
        CHECK(index[i] < step.tables && std::abs(symbols[i]) <= 511 && !(symbols[i] && rounding[2 * index[i]] < 0));
        symbols[i] = int16_t(random32());
    }
    CHECK(!linnet_compand(latent.get(), size, companding.get(), companded2.get()));
    const auto dequantize = [&] {
        return linnet_step_dequantize(&step, params.get(), symbols.get(), decoded.get(), companded.get());
    };
    CHECK(dequantize() == LINNET_OK);

    const float good = rounding[0];
    for (const float bad : {0.51f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        rounding[0] = bad;
        CHECK(quantize() == LINNET_ERROR_ARGUMENT);
    }
    rounding[0] = good;
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
    CHECK(quantize() == LINNET_ERROR_ARGUMENT);
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

void try_null()
{
    linnet_rans_decoder decoder;
    size_t count;
    CHECK(linnet_tables_create(nullptr, 0, nullptr, 1, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_encode(nullptr, nullptr, nullptr, 0, nullptr, 0, &count) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_decode_start(nullptr, nullptr, 0) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_decode_start(&decoder, nullptr, 1) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_decode_start(&decoder, nullptr, 0) == LINNET_ERROR_TRUNCATED);
    CHECK(linnet_rans_decode(nullptr, &decoder, nullptr, 0, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_rans_decode_finish(nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_step_quantize(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, &count) ==
          LINNET_ERROR_ARGUMENT);
    CHECK(linnet_step_tables(nullptr, nullptr, nullptr, &count) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_step_dequantize(nullptr, nullptr, nullptr, nullptr, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_pixels_to_planes(nullptr, 1, 1, 3, 0, 0, 2, 2, nullptr) == LINNET_ERROR_ARGUMENT);
    CHECK(linnet_planes_to_pixels(nullptr, 1, 1, 0, 0, 1, 1, nullptr, 3) == LINNET_ERROR_ARGUMENT);
    linnet_tables_destroy(nullptr);
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
        try_step();
        try_blocks();
        try_pixels();
    }
    return 0;
}
