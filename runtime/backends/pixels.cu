// Between frames in device memory (RGB or NV12) and the networks' planes, straight from one to the other.
//
// The specification is pixels_reference.py, bit by bit. Compiled at run time by cuda_pixels.py, hence no includes; the
// tests also compile this file for the CPU. Planes are those of linnet.h: a 2 x 2 block of pixels is twelve bytes,
// for R, G and B a word (top left, top right, bottom left, bottom right), pixel - 128.
//
// Limits. Nothing is read or written twice from memory (halos aside), so memory bounds every kernel: 6 bytes per pixel
// with RGB, 4.5 with NV12. A frame of 3840 x 2160 takes at least 50 or 37 MB / bandwidth. Four blocks, a group, are 48
// bytes of planes: to_planes gives 16 of them, one store, to each of three neighbouring threads, so that a warp writes
// 512 bytes in a row; each computes two blocks for that (half as much arithmetic again, which is not the limit).
// Planes must begin at a multiple of 16 bytes and have rows of whole groups.

typedef unsigned char byte;
typedef unsigned int word;

#define DEVICE static __device__ __forceinline__

DEVICE int clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

// The place in [0, length) that is seen at `place`: outside, 16 pixels mirror those inside, and then the last repeats.
DEVICE int seen_at(int place, int length)
{
    const int deepest = (length < 16 ? length : 16) - 1;
    if (place < 0)
        return -1 - place < deepest ? -1 - place : deepest;
    if (place >= length)
        return length - 1 - (place - length < deepest ? place - length : deepest);
    return place;
}

// Byte `i` of an array of words; `i` is known when compiling.
DEVICE word byte_of(const word *words, int i)
{
    return words[i >> 2] >> 8 * (i & 3) & 255;
}

DEVICE bool aligned(const void *address, int to)
{
    return (size_t)address % to == 0;
}

// Four or twelve bytes, two by two: a block begins at any even address.
template <int words>
DEVICE void load_even(const byte *from, word (&to)[words])
{
    const unsigned short *pairs = (const unsigned short *)from;
#pragma unroll
    for (int i = 0; i < words; i++)
        to[i] = pairs[2 * i] | (word)pairs[2 * i + 1] << 16;
}

// The words `part` to `part + 3` of six, those of two blocks, as bytes `16 * part` on of the group.
DEVICE void store_part(byte *group, int part, const word (&words)[6])
{
    uint4 value;
    value.x = (part == 0 ? words[0] : part == 1 ? words[1] : words[2]) ^ 0x80808080u;
    value.y = (part == 0 ? words[1] : part == 1 ? words[2] : words[3]) ^ 0x80808080u;
    value.z = (part == 0 ? words[2] : part == 1 ? words[3] : words[4]) ^ 0x80808080u;
    value.w = (part == 0 ? words[3] : part == 1 ? words[4] : words[5]) ^ 0x80808080u;
    *(uint4 *)(group + 16 * part) = value;
}

// Which part of which group this thread has. Threads run along three times the groups of a row, and down its rows.
struct Place {
    int group, part, row;

    __device__ Place() : row(blockIdx.y * blockDim.y + threadIdx.y)
    {
        const int index = blockIdx.x * blockDim.x + threadIdx.x;
        group = index / 3;
        part = index - 3 * group;
    }
};

// Twelve bytes, four pixels from column x of a row on; columns outside are mirrored.
DEVICE void load_rgb(const byte *row, int x, int width, word (&pixels)[3])
{
    const byte *first = row + 3 * (long long)x;
    if (x >= 0 && x + 4 <= width && aligned(first, 2)) {
        load_even(first, pixels);
        return;
    }
#pragma unroll
    for (int i = 0; i < 3; i++) {
        pixels[i] = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = 4 * i + j, column = seen_at(x + at / 3, width);
            pixels[i] |= (word)row[3 * column + at % 3] << 8 * j;
        }
    }
}

// The region from (x0, y0) on, both even, of a frame (height, width, 3) to planes (blocks_h, blocks_w, 12).
extern "C" __global__ void rgb_to_planes(const byte *__restrict__ frame, int width, int height, int stride, int x0,
                                         int y0, int blocks_w, int blocks_h, byte *__restrict__ planes)
{
    const Place place;
    if (4 * place.group >= blocks_w || place.row >= blocks_h)
        return;
    const int block = 4 * place.group + place.part;
    word rows[2][3], words[6];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int y = seen_at(y0 + 2 * place.row + i, height);
        load_rgb(frame + (long long)y * stride, x0 + 2 * block, width, rows[i]);
    }
#pragma unroll
    for (int i = 0; i < 6; i++) {
        const int left = i / 3 * 6 + i % 3;
        words[i] = byte_of(rows[0], left) | byte_of(rows[0], left + 3) << 8 | byte_of(rows[1], left) << 16 |
                   byte_of(rows[1], left + 3) << 24;
    }
    store_part(planes + 12 * ((long long)place.row * blocks_w + 4 * place.group), place.part, words);
}

// Four bytes from column x of a row on: four lumas, or with `step` 2 two pairs (U, V), whose columns count as pairs.
DEVICE word load_nv12(const byte *row, int x, int width, int step)
{
    word four[1];
    if (x >= 0 && x + 4 <= width && aligned(row + x, 2)) {
        load_even(row + x, four);
        return four[0];
    }
    four[0] = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        // Both pixels of a pair have its chroma, wherever they are mirrored to.
        const int column = step == 2 ? (seen_at(x + i / 2 * 2, width) & ~1) + (i & 1) : seen_at(x + i, width);
        four[0] |= (word)row[column] << 8 * i;
    }
    return four[0];
}

DEVICE word clip(int value)
{
    return clamp(value >> 14, 0, 255);
}

// The same region of an NV12 frame; width and height are even. For the numbers from y_offset on see pixels_reference.
extern "C" __global__ void nv12_to_planes(const byte *__restrict__ luma, const byte *__restrict__ chroma, int width,
                                          int height, int luma_stride, int chroma_stride, int x0, int y0, int blocks_w,
                                          int blocks_h, int y_offset, int y_gain, int r_v, int g_u, int g_v, int b_u,
                                          byte *__restrict__ planes)
{
    const Place place;
    if (4 * place.group >= blocks_w || place.row >= blocks_h)
        return;
    const int x = x0 + 2 * (4 * place.group + place.part), y = y0 + 2 * place.row;
    const long long top = seen_at(y, height), bottom = seen_at(y + 1, height);
    const word rows[2] = {load_nv12(luma + top * luma_stride, x, width, 1),
                          load_nv12(luma + bottom * luma_stride, x, width, 1)};
    const word pairs = load_nv12(chroma + (top >> 1) * chroma_stride, x, width, 2);
    word words[6];
#pragma unroll
    for (int block = 0; block < 2; block++) {
        const int u = (int)(pairs >> 16 * block & 255) - 128, v = (int)(pairs >> (16 * block + 8) & 255) - 128;
        word *rgb = words + 3 * block;
        rgb[0] = rgb[1] = rgb[2] = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int grey = y_gain * ((int)(rows[i >> 1] >> (16 * block + 8 * (i & 1)) & 255) - y_offset) + (1 << 13);
            rgb[0] |= clip(grey + r_v * v) << 8 * i;
            rgb[1] |= clip(grey - g_u * u - g_v * v) << 8 * i;
            rgb[2] |= clip(grey + b_u * u) << 8 * i;
        }
    }
    store_part(planes + 12 * ((long long)place.row * blocks_w + 4 * place.group), place.part, words);
}

// Eight bytes to a row of which the columns [begin, end) may be written; `at` is the first one's.
DEVICE void store_eight(byte *row, int at, int begin, int end, word low, word high)
{
    if (at >= begin && at + 8 <= end && aligned(row + at - begin, 8)) {
        uint2 value;
        value.x = low;
        value.y = high;
        *(uint2 *)(row + at - begin) = value;
        return;
    }
    const word words[2] = {low, high};
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (at + i >= begin && at + i < end)
            row[at + i - begin] = (byte)byte_of(words, i);
}

// The crop of planes (any height, blocks_w, 12) as RGB to `frame`, its corner. Nothing but the crop is written. Three
// neighbouring threads have a group of four blocks, eight bytes in both rows each; full speed needs `frame` and stride
// at multiples of 8 and crop_x at one of 8 pixels.
extern "C" __global__ void planes_to_rgb(const byte *__restrict__ planes, int blocks_w, int crop_x, int crop_y,
                                         int crop_w, int crop_h, byte *__restrict__ frame, int stride)
{
    const Place place;
    const int group = crop_x / 8 + place.group, row = crop_y / 2 + place.row;
    if (8 * group >= crop_x + crop_w || 2 * row >= crop_y + crop_h)
        return;
    const word *blocks = (const word *)(planes + 12 * ((long long)row * blocks_w + 4 * group + place.part));
    word words[6];
#pragma unroll
    for (int i = 0; i < 6; i++)
        words[i] = blocks[i] ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int y = 2 * row + i;
        if (y < crop_y || y >= crop_y + crop_h)
            continue;
        word line[3] = {0, 0, 0};
#pragma unroll
        for (int j = 0; j < 12; j++)  // pixel j / 3 of four, colour j % 3
            line[j >> 2] |= (words[j / 6 * 3 + j % 3] >> 8 * (2 * i + j / 3 % 2) & 255) << 8 * (j & 3);
        const word low = place.part == 0 ? line[0] : place.part == 1 ? line[0] >> 16 | line[1] << 16 : line[1];
        const word high = place.part == 0 ? line[1] : place.part == 1 ? line[1] >> 16 | line[2] << 16 : line[2];
        store_eight(frame + (long long)(y - crop_y) * stride, 24 * group + 8 * place.part, 3 * crop_x,
                    3 * (crop_x + crop_w), low, high);
    }
}

// The same as NV12; the crop's four numbers are even. A thread has a whole group: eight bytes in two rows of luma and in
// one of chroma.
extern "C" __global__ void planes_to_nv12(const byte *__restrict__ planes, int blocks_w, int crop_x, int crop_y,
                                          int crop_w, int crop_h, byte *__restrict__ luma, int luma_stride,
                                          byte *__restrict__ chroma, int chroma_stride, int y_offset, int y_r, int y_g,
                                          int y_b, int u_r, int u_g, int u_b, int v_r, int v_g, int v_b)
{
    const int group = crop_x / 8 + blockIdx.x * blockDim.x + threadIdx.x;
    const int row = crop_y / 2 + blockIdx.y * blockDim.y + threadIdx.y;
    if (8 * group >= crop_x + crop_w || 2 * row >= crop_y + crop_h)
        return;
    const uint4 *blocks = (const uint4 *)(planes + 12 * ((long long)row * blocks_w + 4 * group));
    word words[12], lumas[2][2] = {{0, 0}, {0, 0}}, pairs[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 3; i++) {
        const uint4 four = blocks[i];
        words[4 * i] = four.x ^ 0x80808080u;
        words[4 * i + 1] = four.y ^ 0x80808080u;
        words[4 * i + 2] = four.z ^ 0x80808080u;
        words[4 * i + 3] = four.w ^ 0x80808080u;
    }
#pragma unroll
    for (int block = 0; block < 4; block++) {
        int red = 0, green = 0, blue = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = byte_of(words + 3 * block, i), g = byte_of(words + 3 * block, 4 + i),
                      b = byte_of(words + 3 * block, 8 + i), at = 2 * block + (i & 1);
            lumas[i >> 1][at >> 2] |= clip(y_r * r + y_g * g + y_b * b + (y_offset << 14) + (1 << 13)) << 8 * (at & 3);
            red += r, green += g, blue += b;
        }
        const int u = u_r * red + u_g * green + u_b * blue, v = v_r * red + v_g * green + v_b * blue;
        const int middle = (128 << 16) + (1 << 15);
        pairs[block >> 1] |= (clip((u + middle) >> 2) | clip((v + middle) >> 2) << 8) << 16 * (block & 1);
    }
    byte *first = luma + (long long)(2 * row - crop_y) * luma_stride;
    store_eight(first, 8 * group, crop_x, crop_x + crop_w, lumas[0][0], lumas[0][1]);
    store_eight(first + luma_stride, 8 * group, crop_x, crop_x + crop_w, lumas[1][0], lumas[1][1]);
    store_eight(chroma + (long long)(row - crop_y / 2) * chroma_stride, 8 * group, crop_x, crop_x + crop_w, pairs[0],
                pairs[1]);
}
