/* linnet.h: the native core of linnet. Checksum, entropy coder, latent arithmetic, pixel layout; C99, no dependencies.
 *
 * Every function works on buffers of the caller, keeps no global state and may run in any number of threads at once, as
 * long as no two calls write to the same buffer or decoder. Unless said otherwise a function returns 0 or one of the
 * negative error numbers below, and pointers are borrowed for the call only. After an error the contents of output
 * buffers are unspecified. Arrays are dense and row-major; all numbers in streams are little endian.
 *
 * Decoding one tile, step by step:
 *
 *     linnet_rans_decoder decoder;
 *     if ((error = linnet_rans_decode_start(&decoder, payload, payload_size)) < 0) goto bad;
 *     for (each step, in the order of coding) {
 *         run_entropy_network(companded, params);                     // sees what the steps before have written
 *         if ((error = linnet_step_tables(&step, params, table_index, &count)) < 0) goto bad;
 *         if ((error = linnet_rans_decode(tables, &decoder, trellis, table_index, count, levels)) < 0) goto bad;
 *         if ((error = linnet_step_dequantize(&step, params, levels, decoded, companded)) < 0) goto bad;
 *     }
 *     if ((error = linnet_rans_decode_finish(&decoder)) < 0) goto bad;
 *     run_synthesis_network(decoded, planes);
 *     linnet_planes_to_pixels(planes, planes_w, planes_h, crop_x, crop_y, crop_w, crop_h, rgb, row_stride);
 */
#ifndef LINNET_H
#define LINNET_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define LINNET_API __attribute__((visibility("default")))
#else
#define LINNET_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows with every change of this header that an already compiled caller would notice. */
#define LINNET_API_VERSION 3
LINNET_API uint32_t linnet_api_version(void);

/* ---- Errors. The numbers are pinned: they never change and are never reused. ---- */
#define LINNET_OK 0
#define LINNET_ERROR_ARGUMENT (-1)  /* the caller broke a rule stated here */
#define LINNET_ERROR_MEMORY (-2)    /* an allocation failed */
#define LINNET_ERROR_CAPACITY (-3)  /* the output buffer is too small */
#define LINNET_ERROR_TABLES (-4)    /* the entropy tables break a rule stated at linnet_tables_create */
#define LINNET_ERROR_SYMBOL (-5)    /* a symbol cannot be coded with its table */
#define LINNET_ERROR_TRUNCATED (-6) /* the stream ends too early */
#define LINNET_ERROR_CORRUPT (-7)   /* the stream is not one that an encoder writes */

/* One English clause without a final stop; a constant string, also for numbers that are no error. */
LINNET_API const char *linnet_strerror(int error);

/* ---- Checksum: CRC-32C (Castagnoli). Begin with crc 0; pass the result on to continue over the next piece. ---- */
LINNET_API uint32_t linnet_crc32c(uint32_t crc, const uint8_t *data, size_t size);

/* ---- Entropy tables ---- */
#define LINNET_MAX_TABLES 256
#define LINNET_MAX_RADIUS 255
#define LINNET_FREQUENCY_BITS 14 /* the frequencies of a table add up to 1 << LINNET_FREQUENCY_BITS */
#define LINNET_MIN_SYMBOL (-512)
#define LINNET_MAX_SYMBOL 511

typedef struct linnet_tables linnet_tables; /* immutable once created, so threads may share it */

/* Table i codes the symbols -r..r, r = radii[i], and an escape: 2r + 2 frequencies in that order, each at least 1.
 * Radius 0 makes a skip table: it has no frequencies, its symbol is always 0 and costs nothing. `frequencies` holds
 * those of all tables one after another, frequency_count numbers in all. Both arrays are copied. The caller owns
 * *tables, which is NULL after an error. */
LINNET_API int linnet_tables_create(const uint16_t *frequencies, size_t frequency_count, const uint16_t *radii,
                                    uint32_t count, linnet_tables **tables);
LINNET_API void linnet_tables_destroy(linnet_tables *tables); /* NULL is allowed */

/* ---- Range asymmetric numeral system (rANS), four lanes ----
 *
 *     stream:  state 0..3 (4 x u32)   words (u16 each)
 *
 * A state x lies in [2^16, 2^32); the encoder starts, and the decoder ends, with 2^16 in every lane. The i-th coded
 * symbol of the tile (skip tables do not count) belongs to lane i & 3, and i runs on across calls. To decode it:
 *
 *     slot = x & 16383 picks the symbol with start <= slot < start + frequency
 *     x = frequency * (x >> 14) + slot - start
 *     if (x < 2^16) x = x << 16 | next word                           // the renewal
 *
 * An escape is followed, in the same lane, by the symbol s in ten equiprobable bits: s + 512 = x & 1023; x >>= 10; and
 * the renewal again. A symbol within the radius is never escaped. */

/* Bytes that always suffice for `count` symbols; SIZE_MAX if that does not fit. */
LINNET_API size_t linnet_rans_bound(size_t count);

/* Codes a whole tile. Symbols must lie in [LINNET_MIN_SYMBOL, LINNET_MAX_SYMBOL], and be 0 under a skip table. */
LINNET_API int linnet_rans_encode(const linnet_tables *tables, const int16_t *symbols, const uint8_t *table_index,
                                  size_t count, uint8_t *out, size_t capacity, size_t *written);

typedef struct linnet_rans_decoder { /* owned by the caller; nothing to free; its fields are private */
    uint32_t state[4];
    uint32_t lane;
    int32_t error;
    const uint8_t *next, *end;
} linnet_rans_decoder;

/* `data` must outlive the decoder. */
LINNET_API int linnet_rans_decode_start(linnet_rans_decoder *decoder, const uint8_t *data, size_t size);

/* Decodes the next `count` symbols to their levels, in half quantisation steps. Where `trellis` is 0 the level
 * of the symbol s is 2 * s. Else it is a number of states, 8 or 64 (dependent quantisation): a call decodes one coding
 * step, and each lane has a state, 0 at the beginning of the call. In an odd state q = 1, else q = 0:
 *
 *     table index += q * (number of tables / 2)                        // of what is coded; skip tables stay
 *     level = 2 * s - q * sign(s)
 *     state = (state >> 1) ^ q * (62, of 8 states 7) ^ (s & 1) * (22, of 8 states 2)
 *
 * Then the number of tables is even, each table is a skip table where its other half is, and `table_index` must lie in
 * the first half. A damaged stream gives an error or other symbols, all in [LINNET_MIN_SYMBOL, LINNET_MAX_SYMBOL], and
 * is never read beyond its end. A decoder that failed repeats its error in every further call. */
LINNET_API int linnet_rans_decode(const linnet_tables *tables, linnet_rans_decoder *decoder, int trellis,
                                  const uint8_t *table_index, size_t count, int16_t *levels);

/* The proof that the stream was decoded to its end: no byte left, every lane back at 2^16; or LINNET_ERROR_CORRUPT. */
LINNET_API int linnet_rans_decode_finish(linnet_rans_decoder *decoder);

/* ---- Latent arithmetic of one tile ----
 *
 * A step codes the channels [first, last) of (height, width, channels) latents, at the positions with
 * (row + column) % 2 == parity, or at all of them if parity is -1. With n = last - first, `params` is
 * (height, width, 2n): n means m, then n log-scales l.
 *
 *     table index = clamp(l + table_offset, 0, tables - 1)
 *     latent    v = clamp((m << mean_shift) + ((level * gain + 64) >> 7), -512, 509), in quarters
 *     whole     w = (v + 2) >> 2, which the networks see       quarters = v - 4 * w, which only the synthesis sees too
 *
 * `decoded` is (height, width, 2 * channels): at each position the wholes of all channels, then the quarters.
 * Symbols, levels and table indices of a step are ordered by row, column, channel: positions x n of them. */
typedef struct linnet_step {
    uint32_t height, width, channels; /* height * width * channels <= 2^30 */
    uint32_t first, last;             /* first < last <= channels */
    int32_t parity;                   /* -1, 0 or 1 */
    const int16_t *gain;              /* n steps in 1/64 of a quarter, each at least 64 */
    const uint8_t *mean_shift;        /* n: 2 where means are whole latents, 0 where they are quarters */
    const int16_t *table_offset;      /* n */
    const int8_t *companding;         /* 256: what the networks see for the whole w stands at w + 128 */
    uint32_t tables;                  /* 1..LINNET_MAX_TABLES: those that parameters choose from */
} linnet_step;

LINNET_API int linnet_step_tables(const linnet_step *step, const int8_t *params, uint8_t *table_index, size_t *count);

/* Writes `decoded` and `companded` (height, width, channels) at the step's positions and channels only. */
LINNET_API int linnet_step_dequantize(const linnet_step *step, const int8_t *params, const int16_t *levels,
                                      int8_t *decoded, int8_t *companded);

/* The encoder's side: what linnet_step_tables gives, and how far latents lie from their means, in quantisation steps.
 * `latent` (height, width, channels) is in full-scale units, 1.0 being 128 latent units.
 *
 *     r = (512 * latent - (m << mean_shift)) * 64 / gain                                                        */
LINNET_API int linnet_step_residuals(const linnet_step *step, const float *latent, const int8_t *params,
                                     float *residual, uint8_t *table_index, size_t *count);

/* Chooses the symbols of a step, in [-511, 511], and gives their levels too: those of least
 *
 *     sum over all of (residual - level / 2)^2 + bit_worth * bits
 *
 * among the levels next to each residual and 0; bit_worth lies within 0..LINNET_MAX_BIT_WORTH.
 * With `trellis` (see linnet_rans_decode), by Viterbi's algorithm along the four paths. `table_index` is what
 * linnet_step_tables gives. `symbols` and `coded_with` have room for `count` and receive the `coded` symbols that are
 * not skipped and the table of each, for linnet_rans_encode. NaN counts as 0. `workspace` has linnet_search_size(count)
 * bytes, aligned for uint32_t; `count` is below 2^32. */
#define LINNET_MAX_BIT_WORTH 1000
LINNET_API size_t linnet_search_size(size_t count); /* SIZE_MAX if that does not fit */
LINNET_API int linnet_search(const linnet_tables *tables, int trellis, float bit_worth, const float *residual,
                             const uint8_t *table_index, size_t count, void *workspace, int16_t *levels,
                             int16_t *symbols, uint8_t *coded_with, size_t *coded);

/* What the hyper-analysis sees of `count` latents in full-scale units: companding[clamp(round(128 * latent)) + 128],
 * 0 for NaN. Encoder only. */
LINNET_API int linnet_compand(const float *latent, size_t count, const int8_t *companding, int8_t *companded);

/* ---- Pixels and network planes ----
 *
 * Planes are (h / 2, w / 2, 12) int8: channel = 4 * colour + 2 * (y & 1) + (x & 1), value = pixel - 128, with x and y
 * counted from the region's corner. Pixels are 8-bit RGB, row_stride bytes from row to row (at least 3 * width). */

/* Takes the region (x0, y0, region_w, region_h), both sizes even, out of a frame (width, height). Outside the frame
 * its outermost 16 pixels are mirrored, the border's first, and then the last of them repeats; the corner lies within
 * +-2^40. */
LINNET_API int linnet_pixels_to_planes(const uint8_t *rgb, uint32_t width, uint32_t height, size_t row_stride,
                                       int64_t x0, int64_t y0, uint32_t region_w, uint32_t region_h, int8_t *planes);

/* Writes the crop, in pixels and of any parity, of (planes_h, planes_w, 12) planes to `rgb`, which points to the crop's
 * corner. Nothing but the crop's pixels is touched, so threads may fill neighbouring windows of one frame. */
LINNET_API int linnet_planes_to_pixels(const int8_t *planes, uint32_t planes_w, uint32_t planes_h, uint32_t crop_x,
                                       uint32_t crop_y, uint32_t crop_w, uint32_t crop_h, uint8_t *rgb,
                                       size_t row_stride);

/* ---- Linear filters: convolutions of few channels in the format "fp32-exact" (docs/integers.md) ----
 *
 * Planes of 16-bit numbers, two channels side by side, with a border around them. Channel c of position (y, x) is
 *
 *     data[((c / 2 * (height + 2 * border) + border + y) * (width + 2 * border) + border + x) * 2 + c % 2]
 *
 * The caller fills all of it with zeros first, which the border and the partner of an odd last channel keep. */
typedef struct linnet_planes {
    int16_t *data;
    uint32_t height, width, channels, border;
} linnet_planes;

#define LINNET_MAX_TARGETS 1024
#define LINNET_MAX_PLANES 1073741824 /* numbers of planes, or of a target */

/* (height, width, channels) int8 into planes of an even number of channels. */
LINNET_API int linnet_planes_fill(const linnet_planes *planes, const int8_t *values);

/* Channels of (height / block, width / block, value_channels) int8 into planes: at (y, x) channel c becomes
 *
 *     values[whole[y % block][x % block][c]] << shift, plus values[part[y % block][x % block][c]]
 *
 * of position (y / block, x / block). Both tables are (block, block, channels), at most LINNET_MAX_TARGETS; shift is
 * 0..7. */
LINNET_API int linnet_planes_join(const linnet_planes *planes, const int8_t *values, uint32_t value_channels,
                                  uint32_t block, const int32_t *whole, const int32_t *part, uint32_t shift);

/* Repeats the outermost values in the border. */
LINNET_API int linnet_planes_edge(const linnet_planes *planes);

/* What planes of an even number of channels and of `bits` bits, 9..15, are in 8: (height, width, channels) int8, halves
 * rounded up, saturated. `added`, of the same shape or NULL, is added first. */
LINNET_API int linnet_planes_narrow(const linnet_planes *planes, uint32_t bits, const int8_t *added, int8_t *values);

typedef struct linnet_filter {
    uint32_t inputs, outputs, size; /* channels, and the kernel's side: odd */
    uint32_t bits;                  /* of the results, 2..16; or 0, and they are float32 */
    const int16_t *weight;          /* (outputs / 3, inputs / 2, size, size, 3, 2), both rounded up, with zeros */
    const int32_t *bias;            /* outputs */
    const uint8_t *shift;           /* outputs: sums count 2^-shift; 2..31 where results are integers, else 0..63 */
} linnet_filter;

/* Where results go: those at (y, x) to one of
 *
 *     block > 1   position (y / block, x / block), as channel[y % block][x % block][output]
 *     grow > 1    position (grow * y + i, grow * x + j), as channel c; channel[output] is (c * grow + i) * grow + j
 *     both 1      position (y, x), as channel[output]
 *
 * or nowhere where `channel` is -1. Integers go to planes, float32 to an array (height, width, channels), with `border`
 * 0 and `grow` 1. */
typedef struct linnet_target {
    void *data;
    uint32_t height, width, channels, border, block, grow; /* block * outputs <= LINNET_MAX_TARGETS */
    const int32_t *channel;                                /* (block, block, outputs) */
} linnet_target;

/* The convolution of `source`, whose size is that of the target times block / grow, at its rows [first, last). Integers
 * are (bias + sum) / 2^shift, halves round up, and what `bits` cannot hold saturates. Sums wrap around at 32 bits. The
 * border is at least size / 2. With `other`, a filter that is alike in outputs and bits, and integers, its results over
 * `other_source`, of the size of `source`, are added, saturated again. Threads may compute different rows at the same
 * time. */
LINNET_API int linnet_filter_rows(const linnet_filter *filter, const linnet_planes *source, const linnet_filter *other,
                                  const linnet_planes *other_source, uint32_t first, uint32_t last,
                                  const linnet_target *target);

#ifdef __cplusplus
}
#endif

#endif
