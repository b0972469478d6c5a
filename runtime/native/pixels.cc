// Between 8-bit RGB rows and the networks' planes: a 2 x 2 block of pixels becomes twelve neighbouring channels.
#include <algorithm>

#include "kernels.h"

#if defined(__x86_64__)
#include <tmmintrin.h>
#endif

namespace linnet {

void blocks_to_planes_plain(const uint8_t *top, const uint8_t *bottom, size_t blocks, int8_t *planes)
{
    for (; blocks; blocks--, top += 6, bottom += 6, planes += 12)
        for (int colour = 0; colour < 3; colour++) {
            planes[4 * colour] = int8_t(top[colour] - 128);
            planes[4 * colour + 1] = int8_t(top[colour + 3] - 128);
            planes[4 * colour + 2] = int8_t(bottom[colour] - 128);
            planes[4 * colour + 3] = int8_t(bottom[colour + 3] - 128);
        }
}

void planes_to_blocks_plain(const int8_t *planes, size_t blocks, uint8_t *top, uint8_t *bottom)
{
    for (; blocks; blocks--, top += 6, bottom += 6, planes += 12)
        for (int colour = 0; colour < 3; colour++) {
            top[colour] = uint8_t(planes[4 * colour] + 128);
            top[colour + 3] = uint8_t(planes[4 * colour + 1] + 128);
            bottom[colour] = uint8_t(planes[4 * colour + 2] + 128);
            bottom[colour + 3] = uint8_t(planes[4 * colour + 3] + 128);
        }
}

#if defined(__x86_64__)
namespace {

// One byte shuffle per block. Loads and stores are wider than a block, so the last block is left to the plain loop.
__attribute__((target("ssse3")))
void blocks_to_planes_ssse3(const uint8_t *top, const uint8_t *bottom, size_t blocks, int8_t *planes)
{
    const __m128i order = _mm_setr_epi8(0, 3, 8, 11, 1, 4, 9, 12, 2, 5, 10, 13, -1, -1, -1, -1);
    const __m128i half = _mm_set1_epi8(-128);
    for (; blocks > 1; blocks--, top += 6, bottom += 6, planes += 12) {
        const __m128i rows = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(top)),
                                                _mm_loadl_epi64(reinterpret_cast<const __m128i *>(bottom)));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(planes), _mm_xor_si128(_mm_shuffle_epi8(rows, order), half));
    }
    blocks_to_planes_plain(top, bottom, blocks, planes);
}

__attribute__((target("ssse3")))
void planes_to_blocks_ssse3(const int8_t *planes, size_t blocks, uint8_t *top, uint8_t *bottom)
{
    const __m128i order = _mm_setr_epi8(0, 4, 8, 1, 5, 9, -1, -1, 2, 6, 10, 3, 7, 11, -1, -1);
    const __m128i half = _mm_set1_epi8(-128);
    for (; blocks > 1; blocks--, top += 6, bottom += 6, planes += 12) {
        const __m128i block = _mm_loadu_si128(reinterpret_cast<const __m128i *>(planes));
        const __m128i rows = _mm_shuffle_epi8(_mm_xor_si128(block, half), order);
        _mm_storel_epi64(reinterpret_cast<__m128i *>(top), rows);
        _mm_storel_epi64(reinterpret_cast<__m128i *>(bottom), _mm_unpackhi_epi64(rows, rows));
    }
    planes_to_blocks_plain(planes, blocks, top, bottom);
}

}  // namespace

BlocksToPlanes best_blocks_to_planes()
{
    return __builtin_cpu_supports("ssse3") ? blocks_to_planes_ssse3 : blocks_to_planes_plain;
}

PlanesToBlocks best_planes_to_blocks()
{
    return __builtin_cpu_supports("ssse3") ? planes_to_blocks_ssse3 : planes_to_blocks_plain;
}

#else

BlocksToPlanes best_blocks_to_planes()
{
    return blocks_to_planes_plain;
}

PlanesToBlocks best_planes_to_blocks()
{
    return planes_to_blocks_plain;
}

#endif

}  // namespace linnet

namespace {

// Coordinates beyond this are refused, which keeps every sum of them far from overflow.
constexpr int64_t kMaxCoordinate = int64_t(1) << 40;

// How far outside a frame its pixels are mirrored; beyond that the last of them repeats.
constexpr int64_t kMirrored = 16;

// The place in [0, length) that is seen at `place`, which may lie outside.
int64_t seen_at(int64_t place, int64_t length)
{
    if (place < 0)
        return std::min({-1 - place, kMirrored - 1, length - 1});
    if (place >= length)
        return length - 1 - std::min({place - length, kMirrored - 1, length - 1});
    return place;
}

}  // namespace

int linnet_pixels_to_planes(const uint8_t *rgb, uint32_t width, uint32_t height, size_t row_stride, int64_t x0,
                            int64_t y0, uint32_t region_w, uint32_t region_h, int8_t *planes)
{
    if (!rgb || !planes || !width || !height || row_stride < uint64_t(width) * 3)
        return LINNET_ERROR_ARGUMENT;
    if (!region_w || !region_h || region_w % 2 || region_h % 2)
        return LINNET_ERROR_ARGUMENT;
    if (std::min(x0, y0) < -kMaxCoordinate || std::max(x0, y0) > kMaxCoordinate)
        return LINNET_ERROR_ARGUMENT;
    const auto blocks_to_planes = linnet::best_blocks_to_planes();
    const int64_t blocks = region_w / 2;
    // Blocks [inside, outside) have both columns within the frame.
    const int64_t inside = std::clamp<int64_t>((1 - x0) >> 1, 0, blocks);
    const int64_t outside = std::clamp<int64_t>((int64_t(width) - x0) >> 1, inside, blocks);
    for (int64_t y = 0; y < region_h; y += 2, planes += 12 * blocks) {
        const uint8_t *rows[2];
        for (int i = 0; i < 2; i++)
            rows[i] = rgb + size_t(seen_at(y0 + y + i, height)) * row_stride;
        const auto mirror = [&](int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; block++) {
                uint8_t pixels[2][6];
                for (int i = 0; i < 4; i++) {
                    const int64_t x = seen_at(x0 + 2 * block + (i & 1), width);
                    std::copy_n(rows[i >> 1] + 3 * x, 3, pixels[i >> 1] + 3 * (i & 1));
                }
                linnet::blocks_to_planes_plain(pixels[0], pixels[1], 1, planes + 12 * block);
            }
        };
        mirror(0, inside);
        if (outside > inside) {
            const int64_t x = 3 * (x0 + 2 * inside);
            blocks_to_planes(rows[0] + x, rows[1] + x, size_t(outside - inside), planes + 12 * inside);
        }
        mirror(outside, blocks);
    }
    return LINNET_OK;
}

int linnet_planes_to_pixels(const int8_t *planes, uint32_t planes_w, uint32_t planes_h, uint32_t crop_x,
                            uint32_t crop_y, uint32_t crop_w, uint32_t crop_h, uint8_t *rgb, size_t row_stride)
{
    if (!planes || !rgb || !crop_w || !crop_h || row_stride < uint64_t(crop_w) * 3)
        return LINNET_ERROR_ARGUMENT;
    const uint64_t x_end = uint64_t(crop_x) + crop_w, y_end = uint64_t(crop_y) + crop_h;
    if (x_end > 2 * uint64_t(planes_w) || y_end > 2 * uint64_t(planes_h))
        return LINNET_ERROR_ARGUMENT;
    const auto planes_to_blocks = linnet::best_planes_to_blocks();
    // Full blocks cover the columns [x_even, x_even + 2 * blocks); at most one column remains on either side.
    const uint64_t x_even = uint64_t(crop_x) + crop_x % 2;
    const uint64_t blocks = x_end > x_even ? (x_end - x_even) / 2 : 0;
    const auto copy_pixels = [&](uint64_t y, uint64_t begin, uint64_t end) {
        const int8_t *row = planes + size_t(y / 2) * planes_w * 12 + y % 2 * 2;
        uint8_t *out = rgb + size_t(y - crop_y) * row_stride + 3 * (begin - crop_x);
        for (uint64_t x = begin; x < end; x++)
            for (int colour = 0; colour < 3; colour++)
                *out++ = uint8_t(row[x / 2 * 12 + 4 * colour + x % 2] + 128);
    };
    for (uint64_t y = crop_y; y < y_end;) {
        if (y % 2 || y + 1 == y_end) {
            copy_pixels(y++, crop_x, x_end);
            continue;
        }
        for (uint64_t row = y; row < y + 2; row++) {
            copy_pixels(row, crop_x, x_even);
            copy_pixels(row, x_even + 2 * blocks, x_end);
        }
        if (blocks) {
            uint8_t *top = rgb + size_t(y - crop_y) * row_stride + 3 * (x_even - crop_x);
            planes_to_blocks(planes + (size_t(y / 2) * planes_w + x_even / 2) * 12, blocks, top, top + row_stride);
        }
        y += 2;
    }
    return LINNET_OK;
}
